"""Combine several models into one: each keeps its stages, and writes its prediction over those of the models
before it.

The labels are those of all models; each keeps its own grids, networks and intensities. Recipe keys that
concern a scan as a whole (its orientation, its cropping) must be equal.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import re
from collections.abc import Mapping, Sequence

from zoomseg.core.arrays import AnyNumpy
from zoomseg.core.errors import LabelError, ModelError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.modality import named
from zoomseg.importing.nnunet.network import LAST_LAYERS
from zoomseg.io.bundle import JSON, Bundle
from zoomseg.recipe import graph
from zoomseg.recipe.quantities import MAX_NAME
from zoomseg.recipe.spec import Stage

OWN_KEYS = {"name", "description", "source", "intensity", "stages", "train_together"}
"""Keys of a recipe that may differ between combined models."""

_PREFIX = 100
"""Maximum number of characters in a stage's name that identify its model."""


def combined(
    models: Sequence[Bundle],
    names: Sequence[str],
    labels: Sequence[str] | None = None,
    name: str = "combined",
) -> Bundle:
    """One model from several imported ones.

    Labels with the same meaning, in any spelling, are one label of the result, which only the last of these
    models predicts. Where two models label the same voxel differently, the later one's label is used.

    Args:
        models: in the order in which they are written to the label map.
        names: of the models; prefixes of their stages.
        labels: names and order of the result's labels, if those are known; otherwise those of the models, one
            model after the other.
        name: of the result.

    Raises:
        ModelError: they read different channels, or treat a scan as a whole differently; there are too many
            labels; or ``labels`` lack one.
    """
    _check_alike(models, names)
    schema = _schema(models, labels)
    prefixes = _distinct(names)
    stages: list[Stage] = []
    weights: dict[str, Mapping[str, AnyNumpy]] = {}
    groups: list[tuple[str, ...]] = []
    for model, prefix in zip(models, prefixes, strict=True):
        new = {s.name: _stage_name(prefix, s.name, len(model.recipe.stages)) for s in model.recipe.stages}
        own = graph.renamed(model.recipe, new)
        groups += own.train_together
        for before, stage in zip(model.recipe.stages, own.stages, strict=True):
            known = tuple(_known(schema, label) for label in graph.resolve_labels(stage, model.schema))
            stages.append(_entering(stage, model, known))
            weights[stage.name] = _in_order(model, before.name, _places(known, schema))
    recipe = models[0].recipe.model_copy(
        update={
            "name": _slug(name) or "combined",
            "description": f"Combined of {', '.join(names)}.",
            "stages": tuple(stages),
            "train_together": tuple(groups),
        }
    )
    graph.validate(recipe)
    graph.validate_labels(recipe, schema)
    return Bundle(recipe, schema, models[0].channel_names, weights, _provenance(models, names))


def _check_alike(models: Sequence[Bundle], names: Sequence[str]) -> None:
    def shown(model: Bundle) -> dict[str, object]:
        whole = model.recipe.model_dump(mode="json", exclude=OWN_KEYS)
        return {"number of channels": len(model.channel_names), **whole}

    first = shown(models[0])
    for model, name in zip(models[1:], names[1:], strict=True):
        for key, value in shown(model).items():
            if value != first[key]:
                raise ModelError(
                    f"{names[0]} and {name} cannot become one model: {key} is {first[key]} in the one and "
                    f"{value} in the other; import them each for itself"
                )
        if _differ(models[0].channel_names, model.channel_names):
            raise ModelError(
                f"{names[0]} and {name} cannot become one model: channels are "
                f"{', '.join(models[0].channel_names)} in the one and {', '.join(model.channel_names)} in "
                "the other; import them each for itself or, if these are the same, give them one "
                "name in the dataset.json of both"
            )


def _differ(ours: Sequence[str], theirs: Sequence[str]) -> bool:
    """Whether channels are not the same ones, as far as their names tell: they are in another order, or two
    that state a modality or sequence have different names. Both models read the same channels of a scan."""
    own, other = ([name.strip().casefold() for name in names] for names in (ours, theirs))
    pairs = [(a, b) for a, b in zip(own, other, strict=True) if a != b]
    return bool(pairs) and (sorted(own) == sorted(other) or any(named(a) and named(b) for a, b in pairs))


def _schema(models: Sequence[Bundle], labels: Sequence[str] | None) -> LabelSchema:
    found = LabelSchema.consecutive(models[0].schema.names if labels is None else labels)
    for label in (label for model in models for label in model.schema.names):
        if found.find(label) is not None:
            continue
        if labels is not None:
            raise ModelError(f"label '{label}' is none of those expected: {', '.join(labels)}")
        try:
            found = LabelSchema.consecutive((*found.names, label))
        except LabelError as error:
            raise ModelError(f"the models have too many labels together: {error}") from error
    return found


def _known(schema: LabelSchema, label: str) -> str:
    known = schema.find(label)
    assert known is not None  # the schema was created from these labels
    return known


def _places(labels: tuple[str, ...], schema: LabelSchema) -> tuple[int, ...]:
    """The order of a network's classes, background first, in a stage of these labels."""
    ordered = sorted(range(len(labels)), key=lambda n: schema.class_of(labels[n]))
    return (0, *(n + 1 for n in ordered))


def _in_order(model: Bundle, stage: str, places: tuple[int, ...]) -> Mapping[str, AnyNumpy]:
    """A stage's weights with the last layer's classes reordered.

    Raises:
        ModelError: other stages read its prediction, and expect the original order.
    """
    weights = model.weights[stage]
    if places == tuple(range(len(places))):
        return weights
    if graph.stage_of(model.recipe, stage).labels_overlap:
        raise ModelError(
            f"{model.recipe.name} has labels that overlap, in another order than the model before it; give "
            "it first, or import them each for itself"
        )
    if len(model.recipe.stages) > 1:
        raise ModelError(
            f"{model.recipe.name} is a cascade that names its labels in another order than the model before "
            "it; give it first"
        )
    return {
        key: value[list(places)] if key.startswith(LAST_LAYERS) else value for key, value in weights.items()
    }


def _entering(stage: Stage, model: Bundle, labels: tuple[str, ...]) -> Stage:
    """A stage with its own intensity normalisation, whose prediction does not erase others' labels."""
    update = {
        "intensity": graph.intensity_of(model.recipe, stage),
        "labels": labels,
        "fusion": "none" if stage.fusion == "none" else "paste",
    }
    return stage.model_copy(update=update)


def _distinct(names: Sequence[str]) -> list[str]:
    """Short names for stages, all different."""
    found: list[str] = []
    for name in names:
        slug = (_slug(name) or "model")[:_PREFIX]
        numbered = (f"{slug}-{n}" for n in itertools.count(len(found) + 1))
        found.append(next(own for own in itertools.chain([slug], numbered) if own not in found))
    return found


def _slug(name: str) -> str:
    return re.sub("[^a-z0-9]+", "-", name.lower()).lstrip("-0123456789").rstrip("-")[:MAX_NAME]


def _stage_name(prefix: str, stage: str, stages: int) -> str:
    return prefix if stages == 1 else f"{prefix}-{stage}"[:MAX_NAME]


def _provenance(models: Sequence[Bundle], names: Sequence[str]) -> dict[str, JSON]:
    return {
        "combined_of": [{"name": n, **m.provenance} for n, m in zip(names, models, strict=True)],
        "zoomseg": importlib.metadata.version("zoomseg"),
    }
