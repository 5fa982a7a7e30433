"""Several imported models as one: it predicts what each of them predicts alone, with the later one over the
earlier."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from helpers import nnunet_models
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import MAX_CLASSES, LabelSchema
from zoomseg.core.volume import Volume
from zoomseg.importing.combined import combined
from zoomseg.importing.nnunet.run import import_models, read_models
from zoomseg.inference.load import load_predictor, ready_predictor
from zoomseg.io import bundle
from zoomseg.io.bundle import Bundle

Labels = npt.NDArray[np.uint8]


def scan() -> Case:
    rng = np.random.default_rng(3)
    data = rng.normal(60, 60, size=(26, 28, 17)).astype(np.float32)
    return Case("a", Volume(data[None], Grid(data.shape, np.diag([-1.5, 1.0, 2.0, 1.0]))))


def given(
    folder: Path, seed: int, labels: tuple[str, ...], mm: float = 1.5, residual: bool = False, **more: Any
) -> Path:
    """A trained model with random weights."""
    network = nnunet_models.random_network(residual, seed=seed, classes=1 + len(labels))
    known = nnunet_models.plans(residual)
    known["configurations"]["3d_fullres"]["spacing"] = [3.0, mm, 1.25]
    known["dataset_name"] = f"Dataset{seed:03d}_Part{seed}"
    values = {"background": 0} | {name: n for n, name in enumerate(labels, start=1)}
    return nnunet_models.write(folder, network, known, labels=values, **more)


def one(path: Path) -> Bundle:
    return read_models(path)["0"]


def found(model: Bundle, keep: bool = False) -> dict[str, npt.NDArray[np.bool_]]:
    """The voxels of each label."""
    labels = ready_predictor(model, "cpu").predict(scan(), keep=keep).labels
    return {name: labels.data == labels.schema.class_of(name) for name in labels.schema.names}


@pytest.fixture
def models(tmp_path: Path) -> tuple[Bundle, Bundle, Bundle]:
    return (
        one(given(tmp_path / "a", 1, ("liver", "spleen"))),
        one(given(tmp_path / "b", 2, ("aorta", "left kidney", "right kidney"), 2.0, residual=True)),
        one(given(tmp_path / "c", 3, ("Spleen", "pancreas", "liver"))),
    )


@pytest.mark.parametrize("keep", [False, True], ids=["slab by slab", "held"])
def test_every_model_finds_what_it_finds_alone_and_the_later_one_wins(
    models: tuple[Bundle, Bundle, Bundle], keep: bool
) -> None:
    a, b, _ = models
    alone = found(a) | found(b)
    together = found(combined([a, b], ["A", "B"]), keep)
    assert list(together) == ["liver", "spleen", "aorta", "left kidney", "right kidney"]
    later = alone["aorta"] | alone["left kidney"] | alone["right kidney"]
    assert (later & (alone["liver"] | alone["spleen"])).sum() > 100  # they do contradict each other
    for name in ("aorta", "left kidney", "right kidney"):
        assert np.array_equal(together[name], alone[name])
    for name in ("liver", "spleen"):
        assert np.array_equal(together[name], alone[name] & ~later)
    other = found(combined([b, a], ["B", "A"]), keep)
    assert np.array_equal(other["liver"], alone["liver"])
    assert np.array_equal(other["aorta"], alone["aorta"] & ~(alone["liver"] | alone["spleen"]))


def test_of_a_name_that_two_have_the_last_one_decides(models: tuple[Bundle, Bundle, Bundle]) -> None:
    a, _, c = models
    model = combined([a, c], ["A", "C"])
    assert model.schema.names == ("liver", "spleen", "pancreas")
    assert [stage.labels for stage in model.recipe.stages] == [
        ("liver", "spleen"),
        ("spleen", "pancreas", "liver"),
    ]
    together, alone = found(model), found(c)
    assert np.array_equal(together["liver"], alone["liver"])
    assert np.array_equal(together["spleen"], alone["Spleen"])
    assert np.array_equal(together["pancreas"], alone["pancreas"])


def test_labels_may_be_given_in_an_order(models: tuple[Bundle, Bundle, Bundle]) -> None:
    a, b, _ = models
    order = ["right kidney", "spleen", "aorta", "liver", "left kidney"]
    plain, ordered = found(combined([a, b], ["A", "B"])), found(combined([a, b], ["A", "B"], order))
    assert list(ordered) == order
    assert all(np.array_equal(plain[name], ordered[name]) for name in order)
    with pytest.raises(ModelError, match="label 'aorta' is none of those expected: liver, spleen"):
        combined([a, b], ["A", "B"], ["liver", "spleen"])


def test_models_of_more_labels_than_a_label_map_holds_are_refused(
    models: tuple[Bundle, Bundle, Bundle],
) -> None:
    a, b, _ = models
    half = [
        replace(model, schema=LabelSchema.consecutive([f"{side} {n}" for n in range(MAX_CLASSES // 2 + 1)]))
        for model, side in ((a, "left rib"), (b, "right rib"))
    ]
    with pytest.raises(ModelError, match=f"too many labels together: at most {MAX_CLASSES} labels"):
        combined(half, ["A", "B"])


def test_each_stage_is_named_after_its_model_and_sees_its_own_intensities(
    models: tuple[Bundle, Bundle, Bundle],
) -> None:
    a, b, _ = models
    model = combined([a, b, b], ["Dataset001_A", "Dataset001_B", "Dataset001_B"])
    assert [stage.name for stage in model.recipe.stages] == [
        "dataset001-a",
        "dataset001-b",
        "dataset001-b-3",
    ]
    assert [stage.intensity for stage in model.recipe.stages] == [
        a.recipe.intensity,
        b.recipe.intensity,
        b.recipe.intensity,
    ]
    assert [part["fold"] for part in model.provenance["combined_of"]] == ["0", "0", "0"]  # type: ignore[union-attr,index,call-overload]


def test_stages_of_equal_and_of_numbered_names_differ(models: tuple[Bundle, Bundle, Bundle]) -> None:
    a, b, c = models
    model = combined([a, b, c], ["x", "x-3", "x"])
    assert [stage.name for stage in model.recipe.stages] == ["x", "x-3", "x-4"]


def test_models_that_see_scans_turned_differently_are_refused(models: tuple[Bundle, Bundle, Bundle]) -> None:
    a, b, _ = models
    turned = Bundle(
        b.recipe.model_copy(update={"orientation": "canonical"}), b.schema, b.channel_names, b.weights, {}
    )
    with pytest.raises(ModelError, match="orientation is stored in the one and canonical in the other"):
        combined([a, turned], ["A", "B"])


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        (("CT",), ("ct",), True),
        (("CT",), ("MR",), False),
        (("T1",), ("T2",), False),
        (("T1", "T2"), ("T2", "T1"), False),
        (("a", "b"), ("B", "A"), False),
        (("image",), ("CT",), True),  # the one may be the other
        (("image", "mask"), ("scan", "extra"), True),
    ],
)
def test_models_of_other_channels_are_refused_as_far_as_names_tell(
    ours: tuple[str, ...], theirs: tuple[str, ...], alike: bool, models: tuple[Bundle, Bundle, Bundle]
) -> None:
    own, other = replace(models[0], channel_names=ours), replace(models[1], channel_names=theirs)
    if alike:
        assert combined([own, other], ["A", "B"]).channel_names == ours
        return
    said = f"channels are {', '.join(ours)} in the one and {', '.join(theirs)} in the other"
    with pytest.raises(ModelError, match=said):
        combined([own, other], ["A", "B"])


def test_a_combined_model_is_written_with_its_graphs_and_folds(tmp_path: Path) -> None:
    a = given(tmp_path / "a", 1, ("liver", "spleen"), folds=("0", "1"))
    b = given(tmp_path / "b", 2, ("aorta",), folds=("0", "1"))
    folders = import_models([a, b], tmp_path / "model")
    assert [folder.name for folder in folders] == ["fold-0", "fold-1"]
    assert list(bundle.load(folders[0]).graphs) == ["dataset001-part1", "dataset002-part2"]
    labels: Labels = load_predictor([tmp_path / "model"], "cpu").predict(scan(), keep=False).labels.data
    alone = load_predictor([folders[0]], "cpu").predict(scan(), keep=False).labels.data
    assert (labels != alone).mean() < 1e-3  # both folds have the same weights here
    (single,) = import_models([a, b], tmp_path / "single", ("1",))
    assert single == tmp_path / "single"


def test_models_of_other_folds_are_refused(tmp_path: Path) -> None:
    a = given(tmp_path / "a", 1, ("liver",), folds=("0", "1"))
    b = given(tmp_path / "b", 2, ("aorta",))
    with pytest.raises(ModelError, match=r"has folds 0, 1, Dataset002_Part2 has 0; choose .* with --folds"):
        import_models([a, b], tmp_path / "model")


def test_regions_in_another_order_than_the_labels_before_are_refused(tmp_path: Path) -> None:
    first = one(given(tmp_path / "a", 1, ("core", "tumour")))
    labels = {"background": 0, "tumour": [1, 2], "core": 2}
    network = nnunet_models.random_network(False, classes=2)
    second = one(nnunet_models.write(tmp_path / "b", network, labels=labels, order=[1, 2]))
    with pytest.raises(ModelError, match="has labels that overlap, in another order"):
        combined((first, second), ("a", "b"))
    model = combined((second, first), ("b", "a"))
    assert [stage.labels_overlap for stage in model.recipe.stages] == [True, False]
