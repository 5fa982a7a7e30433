"""Probability maps on disk: 0 to 1 on the scan's own grid, recorded in run.json, and refused for votes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case
from helpers.untrained_models import predictor, untrained_bundle
from zoomseg.core.case import Case
from zoomseg.core.errors import OutputError, RecipeError
from zoomseg.core.geometry import Orientation
from zoomseg.inference import probability_maps
from zoomseg.inference.batch import ExtraOutputs
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.inference.outputs import segment_to_folder
from zoomseg.inference.predictor import Predictor
from zoomseg.io.scans import ScanInput, write_image
from zoomseg.pipeline.probability_map import LEVELS, probability_map

MAPS = ExtraOutputs(probabilities=("right kidney",))


@pytest.fixture
def scan(tmp_path: Path) -> ScanInput:
    image = tiny_case(1)[0].reoriented(Orientation((1, 0, 2), (True, False, True)))
    write_image(tmp_path / "in" / "a.nii.gz", image)
    return ScanInput("a", (tmp_path / "in" / "a.nii.gz",))


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()


def test_on_the_scans_own_grid_from_zero_to_one(scan: ScanInput, tmp_path: Path) -> None:
    assert segment_to_folder([scan], tmp_path / "out", predictor(), extra=MAPS) == ()
    assert {p.name for p in (tmp_path / "out" / "probabilities").iterdir()} == {"a-right_kidney.nii.gz"}
    made, image = (
        nib.load(tmp_path / path) for path in ("out/probabilities/a-right_kidney.nii.gz", "in/a.nii.gz")
    )
    assert np.allclose(made.affine, image.affine)
    assert made.get_data_dtype() == np.uint8
    run = json.loads((tmp_path / "out" / "run.json").read_text())
    assert run["cases"]["a"]["probabilities"] == {"right kidney": "probabilities/a-right_kidney.nii.gz"}

    case = tiny_case(1)[0]
    result = predictor().predict(Case("a", case))
    recipe = untrained_bundle().recipe
    expected = probability_map("right kidney", case.grid, recipe, result.stages) / LEVELS
    shown = np.asarray(made.dataobj)
    assert shown.max() <= 1
    assert shown.std() > 0.01
    canonical = nib.as_closest_canonical(made).get_fdata()
    assert nib.aff2axcodes(image.affine) != ("R", "A", "S")
    assert np.abs(canonical - expected).max() <= 1.01 / LEVELS


def test_votes_are_refused_before_anything_is_computed(scan: ScanInput, tmp_path: Path) -> None:
    bundle = untrained_bundle()
    stages = tuple(s.model_copy(update={"fusion": "majority_vote"}) for s in bundle.recipe.stages)
    voting = Predictor(replace(bundle, recipe=bundle.recipe.model_copy(update={"stages": stages})), CPU)
    with pytest.raises(RecipeError, match="has no probability maps"):
        segment_to_folder([scan], tmp_path / "out", voting, extra=MAPS)
    assert not (tmp_path / "out").exists()


def test_no_map_replaces_a_scan(scan: ScanInput, tmp_path: Path) -> None:
    (tmp_path / "out" / "probabilities").mkdir(parents=True)
    inside = tmp_path / "out" / "probabilities" / "a-right_kidney.nii.gz"
    scan.paths[0].rename(inside)
    with pytest.raises(OutputError, match="is the scan itself"):
        segment_to_folder([ScanInput("a", (inside,))], tmp_path / "out", predictor(), extra=MAPS)


def test_names_of_organs_stay_in_the_folder() -> None:
    found = probability_maps.paths(Path("out"), "a", ["../vena cava (inf.)", "left_kidney"])
    assert found == {
        "../vena cava (inf.)": Path("out/probabilities/a-vena_cava_inf.nii.gz"),
        "left_kidney": Path("out/probabilities/a-left_kidney.nii.gz"),
    }


def test_no_two_organs_share_a_file() -> None:
    organs = ["左肾", "右肾", "kidney+cyst", "kidney cyst", "Kidney/Cyst", "Ösophagus", "+", "--"]
    found = probability_maps.paths(Path("out"), "a", organs).values()
    assert [path.name.removesuffix(".nii.gz") for path in found] == [
        "a-左肾",
        "a-右肾",
        "a-kidney_cyst",
        "a-kidney_cyst_2",
        "a-Kidney_Cyst_3",
        "a-Ösophagus",
        "a-organ",
        "a-organ_2",
    ]


def test_memory_does_not_grow_with_organs_and_holds_the_stages() -> None:
    grid = tiny_case(1)[0].grid
    both, one = ExtraOutputs(probabilities=SCHEMA.names), MAPS
    assert one.held
    assert both.writing_bytes(grid) == one.writing_bytes(grid) > 3 * grid.box.voxels
    assert ExtraOutputs(stages=True).writing_bytes(grid) == 0


def test_memory_is_asked_for_before_a_scan_is_read(
    scan: ScanInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, bool]] = []
    monkeypatch.setattr(Predictor, "admit", lambda self, grid, reading, keep: asked.append((reading, keep)))
    limited = Predictor(untrained_bundle(), CPU, limits=MemoryLimits(CPU, ram=2**40))
    for extra in (ExtraOutputs(), MAPS):
        segment_to_folder([scan], tmp_path / "out", limited, extra=extra)
    (without, kept), (with_maps, kept_with_maps) = asked
    assert with_maps - without == MAPS.writing_bytes(tiny_case(1)[0].grid)
    assert (kept, kept_with_maps) == (False, True)
