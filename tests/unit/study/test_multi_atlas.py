"""A fold's training cases as atlases: only complete ones, computed once; their prediction becomes a label
map."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_dataset, tiny_recipe
from zoomseg.atlas.library import AtlasLibrary
from zoomseg.atlas.register import RegistrationError
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import DatasetError, RecipeError
from zoomseg.core.extras import MissingPackageError
from zoomseg.core.region import Region
from zoomseg.core.volume import Volume
from zoomseg.datasets.layouts import Dataset
from zoomseg.io.files import writable_directory
from zoomseg.io.scans import read_labels
from zoomseg.pipeline import stage_input
from zoomseg.recipe.load import dump
from zoomseg.recipe.spec import ATLAS, AtlasSpec
from zoomseg.study.ablations import Ablation, StudyTraining, TableRow
from zoomseg.study.multi_atlas import segment_by_atlas
from zoomseg.study.recipe_edits import chain, only, times_atlas, without_atlas
from zoomseg.study.run import run_ablation
from zoomseg.study.trainings import StudyObserver, StudySettings, Trainings, open_trainings

ALONE = TableRow("atlases alone", None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("atlases"))


def trainings(data: Dataset, folder: Path, atlas: AtlasSpec | None, said: list[str]) -> Trainings:
    path = folder / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=True, iterations=6).model_copy(update={"atlas": atlas})))
    study = Ablation("tiny", str(path), "", (ALONE,), baseline=ALONE.name, folds=2)
    return open_trainings(study, data, folder / "out", StudySettings(), CPU, StudyObserver(said.append))


@pytest.fixture
def opened(data: Dataset, tmp_path: Path) -> Trainings:
    return trainings(data, tmp_path, AtlasSpec(spacing_mm=(2.0, 2.0, 3.0)), [])


def split_by_brightness(self: AtlasLibrary, image: Volume, **_: object) -> StagePrediction:
    """Replaces registration: bright voxels are a kidney, left or right according to their position."""
    bright = image.data[0] > 0.6
    sides = np.arange(image.grid.shape[0]).reshape(-1, 1, 1) < image.grid.shape[0] // 2
    maps = np.stack([~bright, bright & sides, bright & ~sides]).astype(np.float32)
    return StagePrediction(maps, image.grid, self.schema.names, Region.whole(image.grid), ATLAS)


def refusing(error: Exception) -> Callable[..., StagePrediction]:
    def prior(*_: object, **__: object) -> StagePrediction:
        raise error

    return prior


def test_atlases_are_the_training_cases_and_read_once(
    opened: Trainings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[AtlasLibrary] = []

    def remember(self: AtlasLibrary, image: Volume, **named: object) -> StagePrediction:
        seen.append(self)
        assert named["cache"] == opened.out / "atlases" / "registered"
        return split_by_brightness(self, image)

    monkeypatch.setattr(AtlasLibrary, "prior", remember)
    case = opened.dataset.load(opened.dataset.cases[0])
    scan = stage_input.prepare(case, opened.recipe)
    opened.atlas_of(1)(scan)
    monkeypatch.setattr(AtlasLibrary, "build", refusing(AssertionError("read again")))
    opened.atlas_of(1)(scan)
    for library in seen:
        assert {atlas.id for atlas in library.atlases} == set(opened.split(1).train)
        assert library.schema == SCHEMA


def test_cases_that_are_drawn_in_part_are_no_atlases(data: Dataset, tmp_path: Path) -> None:
    partly = replace(
        data,
        cases=tuple(
            c if c.id == "case_0" else replace(c, annotated=frozenset(["left kidney"])) for c in data.cases
        ),
    )
    opened = trainings(partly, tmp_path, AtlasSpec(), [])
    with_it = next(fold for fold in (0, 1) if "case_0" in opened.split(fold).train)
    opened.atlas_of(with_it)
    library = AtlasLibrary.load(opened.out / "atlases" / f"fold-{with_it}")
    assert [atlas.id for atlas in library.atlases] == ["case_0"]
    with pytest.raises(DatasetError, match="no training case is annotated completely"):
        opened.atlas_of(1 - with_it)


def test_a_recipe_without_an_atlas(data: Dataset, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="recipe 'tiny' has no atlas prior"):
        trainings(data, tmp_path, None, []).atlas_of(0)


def test_what_the_atlases_say_is_the_label_map(
    opened: Trainings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(AtlasLibrary, "prior", split_by_brightness)
    assert (
        segment_by_atlas(opened, 0, opened.dataset.subset(["case_2"]), writable_directory(tmp_path / "p"))
        == []
    )
    case = opened.dataset.load(opened.dataset.cases[2])
    found = read_labels(tmp_path / "p" / "case_2.nii.gz", SCHEMA)
    assert found.grid.same_as(case.image.grid)
    # The recipe's window is -150 to 200, so 0.6 is 60 of the scan's own unit.
    bright = case.image.data[0] > 60
    half = np.arange(24).reshape(-1, 1, 1) < 12
    expected = np.where(bright, np.where(half, 1, 2), 0).astype(np.uint8)
    assert np.array_equal(found.data, expected)


def test_a_scan_that_cannot_be_registered_is_named_a_missing_library_stops(
    opened: Trainings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    out = writable_directory(tmp_path / "p")
    monkeypatch.setattr(AtlasLibrary, "prior", refusing(RegistrationError("no transform")))
    assert segment_by_atlas(opened, 0, opened.dataset.subset(["case_1", "case_2"]), out) == [
        "case_1: no transform",
        "case_2: no transform",
    ]
    monkeypatch.setattr(AtlasLibrary, "prior", refusing(MemoryError()))
    (problem,) = segment_by_atlas(opened, 0, opened.dataset.subset(["case_1"]), out)
    assert problem.startswith("case_1: ")
    assert problem.endswith("does not fit in memory")
    monkeypatch.setattr(AtlasLibrary, "prior", refusing(MissingPackageError("install it")))
    with pytest.raises(MissingPackageError, match="install it"):
        segment_by_atlas(opened, 0, opened.dataset.subset(["case_1"]), out)


def test_a_test_case_with_the_id_of_an_atlas_is_not_that_atlas(
    opened: Trainings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    excluded: list[object] = []

    def remember(self: AtlasLibrary, image: Volume, **named: object) -> StagePrediction:
        excluded.append(named["exclude"])
        return split_by_brightness(self, image)

    monkeypatch.setattr(AtlasLibrary, "prior", remember)
    unseen = opened.dataset.subset(opened.split(0).train[:1])
    assert segment_by_atlas(opened, 0, unseen, writable_directory(tmp_path / "p")) == []
    assert excluded == [None]


def test_networks_answer_times_the_atlas(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same training, with and without an atlas that lacks the organ on the left."""

    def right_only(self: AtlasLibrary, image: Volume, **_: object) -> StagePrediction:
        left = (np.arange(image.grid.shape[0]) < image.grid.shape[0] // 2).reshape(-1, 1, 1)
        left = np.broadcast_to(left, image.grid.shape)
        maps = np.stack([np.ones(image.grid.shape, dtype=np.float32), ~left, ~left])
        return StagePrediction(
            maps / maps.sum(axis=0), image.grid, self.schema.names, Region.whole(image.grid), ATLAS
        )

    monkeypatch.setattr(AtlasLibrary, "prior", right_only)
    opened = trainings(data, tmp_path, AtlasSpec(), [])
    plain = StudyTraining("coarse", chain(without_atlas, only("coarse")))
    product = times_atlas("coarse", str(tmp_path / "tiny.yaml"))
    rows = (TableRow("network", plain), TableRow("times atlas", plain, product))
    study = Ablation("tiny", None, "", rows, baseline="network")
    assert run_ablation(study, opened).failed == ()
    case = opened.split(0).validation[0]
    network, combined = (
        read_labels(opened.out / "rows" / name / "fold-0" / "predictions" / f"{case}.nii.gz", SCHEMA).data > 0
        for name in ("network", "times-atlas")
    )
    assert network[:8].any()
    assert not combined[:8].any()
    assert np.array_equal(combined[18:], network[18:])  # outside the transition of the coarse grid


def test_a_row_of_the_table_without_any_training(opened: Trainings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AtlasLibrary, "prior", split_by_brightness)
    study = opened.study
    assert isinstance(study, Ablation)
    outcome = run_ablation(study, opened)
    (row,) = outcome.rows
    assert [case.id for case in row.evaluation.cases] == list(opened.split(0).validation)
    assert row.evaluation.mean["dice"] > 0.5
    assert not (opened.out / "runs").exists()
