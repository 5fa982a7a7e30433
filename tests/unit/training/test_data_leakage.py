from __future__ import annotations

from dataclasses import replace

import pytest

from helpers.tiny_dataset import tiny_dataset
from helpers.untrained_models import untrained_bundle
from zoomseg.datasets.layouts import Dataset
from zoomseg.io.bundle import JSON
from zoomseg.training import data_leakage

HELD_OUT = ("case_2", "case_3")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


def warned(data: Dataset, held_out: tuple[str, ...] = HELD_OUT, **provenance: JSON) -> str | None:
    model = replace(untrained_bundle(), provenance=provenance)
    return data_leakage.warning([model], ["old"], held_out, data)


def test_names_the_held_out_cases_that_a_model_was_trained_on(data: Dataset) -> None:
    assert warned(data, data_set="tiny", training_cases=["case_0", "case_3"]) == (
        "1 of the 2 held-out cases were among the training cases of old (case_3), so their scores will be "
        "too high"
    )


def test_of_several_models_those_that_saw_the_cases_are_named(data: Dataset) -> None:
    """As the folds of a cross-validation."""
    folds = [["case_0", "case_1"], ["case_0", "case_2"], ["case_3"]]
    models = [
        replace(untrained_bundle(), provenance={"data_set": "tiny", "training_cases": list(cases)})
        for cases in folds
    ]
    found = data_leakage.warning(models, ["fold-0", "fold-1", "fold-2"], HELD_OUT, data)
    assert found is not None
    assert found.startswith(
        "2 of the 2 held-out cases were among the training cases of fold-1, fold-2 (case_2"
    )


def test_a_model_that_names_no_cases_may_have_seen_them(data: Dataset) -> None:
    found = warned(data, data_set="tiny", training_cases=24)
    assert found is not None
    assert found.startswith("old was trained on cases of this data set and does not say on which")


@pytest.mark.parametrize(
    ("data_set", "training_cases", "held_out"),
    [
        ("another", ["case_3"], HELD_OUT),
        ("another", 24, HELD_OUT),
        ("tiny", ["case_0", "case_1"], HELD_OUT),
        ("tiny", 24, ()),
    ],
)
def test_nothing_is_said_otherwise(
    data: Dataset, data_set: str, training_cases: JSON, held_out: tuple[str, ...]
) -> None:
    assert warned(data, held_out, data_set=data_set, training_cases=training_cases) is None
