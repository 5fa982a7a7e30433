"""A model without a region learns one, from scans that it labels itself."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_recipe
from helpers.untrained_models import untrained
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, ModelError, ScanError, TrainingError
from zoomseg.core.geometry import Orientation
from zoomseg.core.volume import LabelMap
from zoomseg.inference.load import load_predictor
from zoomseg.io import bundle
from zoomseg.io.scans import read_labels, write_image
from zoomseg.recipe.load import dump, load
from zoomseg.recipe.spec import (
    BoxAround,
    DilatedForeground,
    FixedShape,
    FixedSpacing,
    ImageInput,
    Recipe,
    Stage,
    WholeVolume,
)
from zoomseg.training import acceleration, record, training_run
from zoomseg.training.acceleration import Acceleration
from zoomseg.training.log import NullObserver
from zoomseg.training.requested_recipe import TrainingRequest

SCANS = 5


class Oracle:
    """Replaces the model for labelling scans: its labels are correct."""

    channels = 1

    def __init__(self) -> None:
        self.seen: list[str] = []

    def predict(self, case: Case, organs: object = None, keep: bool = True) -> object:
        self.seen.append(case.id)
        labels = tiny_case(int(case.id[-1]))[1]
        return type("Found", (), {"labels": labels})


class Notes(NullObserver):
    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)


def everywhere() -> Recipe:
    """A single stage for the whole scan, in eight tiles or more."""
    fine = tiny_recipe(together=False).stages[1]
    grid = fine.grid.model_copy(update={"tile": (8, 8, 8), "overlap": 0.5})
    stage = fine.model_copy(
        update={"name": "whole", "grid": grid, "roi": WholeVolume(), "inputs": (ImageInput(),)}
    )
    return tiny_recipe(together=False).model_copy(update={"stages": (stage,), "roi_expansion": False})


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    (tmp_path / "scans").mkdir()
    for seed in range(SCANS):
        write_image(tmp_path / "scans" / f"scan_{seed}.nii.gz", tiny_case(seed)[0])
    return tmp_path / "scans"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    bundle.save(untrained(everywhere(), SCHEMA), tmp_path / "slow")
    return tmp_path / "slow"


@pytest.fixture
def oracle(monkeypatch: pytest.MonkeyPatch) -> Oracle:
    made = Oracle()
    monkeypatch.setattr(acceleration, "load_predictor", lambda *_, **__: made)
    planned = load("default").model_copy(
        update={"coarse_voxels": 1000, "fine_voxels": 4000, "fine_patch_voxels": 700, "base_channels": (8, 8)}
    )
    monkeypatch.setattr(acceleration, "load", lambda name: planned)
    return made


def begin(scans: Path, model: Path, out: Path, small: bool = False) -> Acceleration:
    request = TrainingRequest(epochs=1)
    return acceleration.begin((str(model),), scans, out, small, request)


def test_the_model_computes_around_what_the_coarse_stage_finds(
    scans: Path, model: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "fast"
    run = begin(scans, model, out)
    run.label(CPU, NullObserver())
    assert sorted(oracle.seen) == [f"scan_{n}" for n in range(SCANS)]
    assert len(run.split.validation) == 1
    assert run.organs == SCHEMA.names
    coarse = run.region_stage(CPU, NullObserver())
    assert coarse.domain is not None
    far = tuple(tuple(value + 1e4 for value in row) for row in coarse.domain.intensities)
    unlike = replace(coarse, domain=replace(coarse.domain, intensities=far))
    regions = run.choose(unlike, CPU, NullObserver())  # a held-out scan is not refused
    chosen = regions["whole"]
    assert chosen.lowest_recall >= 0.999
    assert chosen.roi.of == "region"
    assert chosen.tile_share < 1
    run.write(coarse, regions, NullObserver())
    monkeypatch.setattr(acceleration, "load_predictor", load_predictor)
    run.compare(regions, CPU, NullObserver())
    fast = bundle.load(out)
    assert [stage.name for stage in fast.recipe.stages] == ["region", "whole"]
    assert [stage.fusion for stage in fast.recipe.stages] == ["none", "replace_in_roi"]
    assert set(fast.graphs) == {"region", "whole"}
    told = json.loads((out / "region.json").read_text())
    assert told["scans"] == list(run.split.validation)
    assert told["stages"]["whole"]["lowest_recall"] == chosen.lowest_recall
    # Inside its region the stage predicts as before, outside it predicts background.
    case = Case("a", tiny_case(9)[0])
    result = load_predictor([out], CPU).predict(case)
    records = {record.stage: record for record in result.records}
    assert records["whole"].tiles < 5 * 4 * 3
    region = result.stages["whole"].region
    assert not result.labels.data[~region.on(result.labels.grid).mask_in(result.labels.grid.box)].any()


@pytest.mark.parametrize(
    ("orientation", "stored", "order"),
    [
        ("canonical", "ASR", (0, 1, 2)),
        ("stored", "ASR", (1, 2, 0)),
        ("ASR", "RAS", (1, 2, 0)),
        ("stored", "LPS", (0, 1, 2)),
    ],
)
def test_the_coarse_stage_is_planned_for_the_axes_that_the_model_reads(
    orientation: str,
    stored: str,
    order: tuple[int, int, int],
    oracle: Oracle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def coarse(folder: Path, axes: str, orientation: str) -> Stage:
        (folder / "scans").mkdir(parents=True)
        for seed in range(2):
            image = tiny_case(seed)[0]
            image = image.reoriented(Orientation.towards(axes, image.grid))
            write_image(folder / "scans" / f"scan_{seed}.nii.gz", image)

        def answer(case: Case, **_: object) -> object:
            labels = tiny_case(int(case.id[-1]))[1]
            return SimpleNamespace(labels=labels.reoriented(Orientation.towards(axes, labels.grid)))

        monkeypatch.setattr(oracle, "predict", answer)
        recipe = everywhere().model_copy(update={"orientation": orientation})
        bundle.save(untrained(recipe, SCHEMA), folder / "slow")
        run = begin(folder / "scans", folder / "slow", folder / "fast")
        run.label(CPU, NullObserver())
        (stage,) = run._region_recipe(CPU, NullObserver()).stages
        return stage

    planned = coarse(tmp_path / "canonical", "RAS", "canonical").grid
    grid = coarse(tmp_path / "own", stored, orientation).grid
    assert isinstance(planned, FixedSpacing)
    assert isinstance(grid, FixedSpacing)
    assert len(set(planned.tile)) > 1  # otherwise their order would not show
    assert grid.tile == tuple(planned.tile[axis] for axis in order)
    assert grid.mm == tuple(planned.mm[axis] for axis in order)


def test_what_was_interrupted_goes_on(scans: Path, model: Path, oracle: Oracle, tmp_path: Path) -> None:
    run = begin(scans, model, tmp_path / "fast")
    run.label(CPU, NullObserver())
    again = acceleration.reopen([str(model)], scans, tmp_path / "fast")
    again.label(CPU, NullObserver())
    assert len(oracle.seen) == SCANS
    assert again.split == run.split
    assert (again.models, again.request.epochs, again.longer) == ((str(model.resolve()),), 1, False)
    assert acceleration.reopen([str(model)], scans, tmp_path / "fast", epochs=2).longer
    last = acceleration.reopen([str(model)], scans, tmp_path / "fast")
    assert (last.request.epochs, last.longer) == (2, False)
    another = shutil.copytree(model, tmp_path / "another")
    with pytest.raises(TrainingError, match="another cannot be given to resume the training in"):
        acceleration.reopen([str(another)], scans, tmp_path / "fast")
    with pytest.raises(TrainingError, match="small True cannot be given"):
        acceleration.reopen([str(model)], scans, tmp_path / "fast", settings={"small": True})
    (scans / "scan_0.nii.gz").unlink()
    with pytest.raises(TrainingError, match="has other scans than"):
        acceleration.reopen([str(model)], scans, tmp_path / "fast")


def test_a_scan_that_could_not_be_used_is_tried_again_until_the_training_begins(
    scans: Path, model: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may not have answered. Afterwards, the split of the scans must not change."""
    run = begin(scans, model, tmp_path / "fast")
    predict = oracle.predict

    def without_memory(case: Case, **how: object) -> object:
        if case.id == "scan_2":
            raise ScanError("a network disk did not answer")
        return predict(case, **how)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(oracle, "predict", without_memory)
        run.label(CPU, NullObserver())
    oracle.seen.clear()
    again = acceleration.reopen([str(model)], scans, tmp_path / "fast")
    again.label(CPU, NullObserver())
    assert oracle.seen == ["scan_2"]
    assert len(again.split.train) + len(again.split.validation) == SCANS
    file = tmp_path / "fast" / "distillation" / "labels" / "labels.json"
    found = json.loads(file.read_text())
    file.write_text(json.dumps({"cases": {**found["cases"], "scan_2": None}}))
    (tmp_path / "fast" / "distillation" / "region.yaml").write_text("")
    acceleration.reopen([str(model)], scans, tmp_path / "fast").label(CPU, NullObserver())
    assert oracle.seen == ["scan_2"]


def test_an_error_of_ours_in_one_scan_does_not_end_the_labelling(
    scans: Path, model: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = oracle.predict

    def broken(case: Case, **how: object) -> object:
        if case.id == "scan_2":
            raise RuntimeError("x")
        return predict(case, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(oracle, "predict", broken)
    notes = Notes()
    run = begin(scans, model, tmp_path / "fast")
    run.label(CPU, notes)
    (told,) = (line for line in notes.told if line.startswith("scan_2: not used ("))
    assert "unexpected RuntimeError" in told
    assert sorted((*run.split.train, *run.split.validation)) == ["scan_0", "scan_1", "scan_3", "scan_4"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"../scan_2": []}, "case ../scan_2"),
        ({"scan_2": ["spleen"]}, "case scan_2"),
        ({"another": []}, "case another is none of the scans in"),
    ],
)
def test_a_damaged_list_of_labels_is_refused(
    change: dict[str, list[str]], reason: str, scans: Path, model: Path, oracle: Oracle, tmp_path: Path
) -> None:
    run = begin(scans, model, tmp_path / "fast")
    run.label(CPU, NullObserver())
    file = tmp_path / "fast" / "distillation" / "labels" / "labels.json"
    file.write_text(json.dumps({"cases": {**json.loads(file.read_text())["cases"], **change}}))
    again = acceleration.reopen([str(model)], scans, tmp_path / "fast")
    with pytest.raises(TrainingError, match=f"is damaged .{re.escape(reason)}"):
        _ = again.dataset


def test_organs_that_no_scan_learned_from_has_are_told_and_left_out(
    scans: Path, model: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(scans, model, tmp_path / "fast")
    (held_out,) = acceleration.folds([f"scan_{n}" for n in range(SCANS)], SCANS, 0)[0]

    def right_only_in(case: Case, **_: object) -> object:
        labels = tiny_case(int(case.id[-1]))[1]
        data = labels.data if case.id == held_out else np.where(labels.data == 2, 0, labels.data)
        return type("Found", (), {"labels": LabelMap(data.astype(np.uint8), labels.grid, SCHEMA)})

    monkeypatch.setattr(oracle, "predict", right_only_in)
    notes = Notes()
    run.label(CPU, notes)
    assert run.split.validation == (held_out,)
    assert run.organs == ("left kidney",)
    assert any("not predicted by the coarse stage: right kidney" in line for line in notes.told)
    case = next(case for case in run.dataset.cases if case.id == held_out)
    assert case.labels is not None
    labels = read_labels(case.labels, run.dataset.schema)
    assert np.array_equal(labels.data == 1, tiny_case(int(held_out[-1]))[1].data == 1)
    assert labels.data.max() == 1
    case.labels.write_bytes(b"of another split")
    again = acceleration.reopen([str(model)], scans, tmp_path / "fast").dataset
    assert np.array_equal(read_labels(case.labels, again.schema).data, labels.data)


def test_a_small_cascade_learns_the_models_labels(
    scans: Path, model: Path, oracle: Oracle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begin(scans, model, tmp_path / "small", small=True)
    run.label(CPU, NullObserver())
    run = replace(run, request=replace(run.request, recipe=_tiny(tmp_path)))
    trained = run.small_cascade(CPU, NullObserver())
    assert trained.provenance["training_cases"] == list(run.split.train)
    assert trained.provenance["data_set"] == "scans, labelled by slow"
    assert [stage.name for stage in trained.recipe.stages] == ["coarse", "fine"]
    asked: list[object] = []
    monkeypatch.setattr(training_run, "resume", lambda *given: asked.append(given[-2:]))
    replace(run, longer=True, request=replace(run.request, epochs=2)).small_cascade(CPU, NullObserver())
    assert asked == [(None, 2)]


def _tiny(folder: Path) -> str:
    file = folder / "tiny.yaml"
    file.write_text(dump(tiny_recipe(together=True, iterations=4)))
    return str(file)


def test_what_cannot_be_accelerated_is_refused(scans: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    write_image(tmp_path / "one" / "a.nii.gz", tiny_case(0)[0])
    with pytest.raises(DatasetError, match="contains one scan; at least two are needed"):
        begin(tmp_path / "one", model, tmp_path / "x")
    begin(scans, model, tmp_path / "fast")
    with pytest.raises(ModelError, match="already holds a training"):
        begin(scans, model, tmp_path / "fast")
    assert record.read_acceleration(tmp_path / "fast").small is False
    looks_closer = tiny_recipe(together=False).stages
    boxed = looks_closer[1].model_copy(update={"roi": BoxAround(of="coarse")})
    shape = FixedShape(shape=(8, 8, 8), tile=(8, 8, 8))
    first = looks_closer[0].model_copy(update={"grid": shape})
    recipe = everywhere().model_copy(update={"stages": (first, boxed)})
    bundle.save(untrained(recipe, SCHEMA), tmp_path / "boxes")
    with pytest.raises(ModelError, match="has no stage whose region is the whole scan"):
        begin(scans, tmp_path / "boxes", tmp_path / "y")


def test_an_accelerated_model_is_not_accelerated_again(scans: Path, tmp_path: Path) -> None:
    """Its coarse stage looks at all of a scan, too."""
    coarse, fine = tiny_recipe(together=False).stages
    first = coarse.model_copy(update={"name": acceleration.REGION, "fusion": "none"})
    second = fine.model_copy(
        update={
            "name": "whole",
            "roi": DilatedForeground(of=acceleration.REGION, radius_vox=1),
            "inputs": (ImageInput(),),
        }
    )
    recipe = everywhere().model_copy(update={"stages": (first, second)})
    bundle.save(untrained(recipe, SCHEMA), tmp_path / "fast")
    with pytest.raises(ModelError, match="it is accelerated; give the model that it was made from"):
        begin(scans, tmp_path / "fast", tmp_path / "faster")
    assert begin(scans, tmp_path / "fast", tmp_path / "small", small=True).small
