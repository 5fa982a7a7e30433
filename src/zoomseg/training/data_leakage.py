"""Held-out cases that a model from which a training learns has already seen."""

from __future__ import annotations

from collections.abc import Sequence

from zoomseg.datasets.layouts import Dataset
from zoomseg.io.bundle import Bundle


def warning(
    models: Sequence[Bundle], names: Sequence[str], held_out: Sequence[str], dataset: Dataset
) -> str | None:
    """What a user should know if models were, or may have been, trained on cases that a new one is scored on.

    Args:
        models, names: initial models or teachers, and what they are called.
        held_out: ids of the cases.

    Returns:
        None if the models are of other data sets, or were trained on other cases of this one.
    """
    trained = {
        name: model.provenance.get("training_cases")
        for name, model in zip(names, models, strict=True)
        if model.provenance.get("data_set") == dataset.name
    }
    known = {name: set(map(str, cases)) for name, cases in trained.items() if isinstance(cases, list)}
    seen = [case for case in held_out if any(case in cases for cases in known.values())]
    if seen:
        those = [name for name, cases in known.items() if not cases.isdisjoint(seen)]
        return (
            f"{len(seen)} of the {len(held_out)} held-out cases were among the training cases of "
            f"{', '.join(those)} ({', '.join(seen[:3])}), so their scores will be too high"
        )
    unknown = [name for name, cases in trained.items() if not isinstance(cases, list)]
    if held_out and unknown:
        return (
            f"{', '.join(unknown)} was trained on cases of this data set and does not say on which; if the "
            "held-out ones were among them, their scores will be too high"
        )
    return None
