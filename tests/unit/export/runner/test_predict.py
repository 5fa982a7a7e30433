"""The runner's label map is that of ``zoomseg predict``, voxel by voxel, with the same networks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.export_packages import pipeline_of, torch_networks, untrained
from helpers.grids import oriented
from helpers.small_recipes import shrunk
from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_dataset, tiny_recipe
from zoomseg.anatomy.positions import OrganPlaces
from zoomseg.core.case import Case
from zoomseg.core.errors import ModelError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import Volume
from zoomseg.datasets.layouts import Dataset
from zoomseg.datasets.phantom import phantom_case
from zoomseg.export.runner import fusion, predict
from zoomseg.inference.predictor import Predictor
from zoomseg.io.bundle import Bundle
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.recipe.load import from_dict
from zoomseg.recipe.spec import Recipe

RESENC = {
    "kind": "resenc_unet",
    "channels": [4, 8],
    "strides": [[1, 1, 1], [2, 2, 2]],
    "kernels": [[3, 3, 3], [3, 3, 3]],
    "blocks": [1, 1],
}
TRAINING = {"patch": [8, 8, 8], "iterations": 1}
BOX = {"kind": "box", "of": "first", "labels": ["left kidney"], "margin_mm": 8}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "BLOCK_VOXELS", 2500)


def both(bundle: Bundle, image: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Label maps of the runner and of the package."""
    networks = torch_networks(bundle)
    found = predict.segment(pipeline_of(bundle), networks, image.data, image.grid)
    return found, Predictor(bundle, CPU).predict(Case("x", image)).labels.data


def stage(name: str, **changes: object) -> dict[str, object]:
    grid = {"kind": "spacing", "mm": [4, 4, 4], "tile": [8, 8, 8]}
    return {"name": name, "grid": grid, "network": RESENC, "training": TRAINING, **changes}


def recipe(*stages: dict[str, object], **changes: object) -> Recipe:
    window = {"kind": "window", "lower": -150, "upper": 200}
    made = from_dict({"name": "made", "intensity": window, "stages": list(stages), **changes})
    assert isinstance(made, Recipe)
    return made


SHAPE = {"kind": "shape", "shape": [12, 12, 8], "tile": [12, 12, 8]}
THIN = {"kind": "downsample", "factor": [2, 2, 1], "tile": [8, 8, 8], "overlap": 0.5}
VALID = {"kind": "downsample", "factor": [1, 1, 1], "tile": [24, 24, 24], "padding": "valid"}
UNET = {"kind": "unet3d", "channels": [4, 8]}
FIRST = stage("first", fusion="none")
PRIOR = {"kind": "prior", "of": "first", "labels": ["right kidney"]}
MADE = {
    "box on a fixed shape, pasted": recipe(
        stage("first", grid=THIN),
        stage("second", roi=BOX, grid=SHAPE, labels=["right kidney"], fusion="paste"),
    ),
    "two that compete, one with auto-context": recipe(
        FIRST,
        stage("left", roi=BOX, labels=["left kidney"], fusion="most_probable"),
        stage(
            "right",
            grid=THIN,
            inputs=[{"kind": "image"}, PRIOR],
            labels=["right kidney"],
            fusion="most_probable",
        ),
        largest_component="all",
    ),
    "body mask, valid padding, decided on its own grid": recipe(
        stage(
            "body",
            roi={"kind": "body_mask", "threshold": 40},
            grid=VALID,
            network=UNET,
            argmax_on="stage_grid",
        ),
        intensity={"kind": "zscore"},
        largest_component=["left kidney"],
    ),
    "without islands": recipe(
        stage("whole", grid=THIN),
        islands={"labels": "all", "below": 0.5},
    ),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("seed", [0, 4])
def test_made_recipes(name: str, seed: int) -> None:
    found, expected = both(untrained(MADE[name], SCHEMA, seed=seed), tiny_case(seed)[0])
    assert len(np.unique(expected)) > 1
    assert np.array_equal(found, expected)


SHIPPED = {"default": 4, "roth2018-cascade": 1, "roth2018-pyramid": 3, "flare22-whole-volume": 0}
"""Recipe -> a seed of weights that find something, but not the same everywhere."""


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes(name: str, data: Dataset) -> None:
    bundle = untrained(shrunk(name, data, 1), data.schema, seed=SHIPPED[name])
    found, expected = both(bundle, tiny_case(9)[0])
    assert len(np.unique(expected)) > 1
    assert np.array_equal(found, expected)


NEAR = {"kind": "dilated_foreground", "of": "first", "radius_vox": 1}
CLOSE = BOX | {"labels": ["left kidney", "right kidney"], "margin_mm": 4}
WIDENED = {
    "mask": stage("second", roi=NEAR),
    "box": stage("second", roi=CLOSE),
    "fixed shape": stage("second", roi=CLOSE, grid=SHAPE),
}


@pytest.mark.parametrize("name", WIDENED)
def test_a_region_that_cuts_an_organ_is_widened(name: str) -> None:
    """The first stage finds a few voxels; the second one what it likes wherever it is asked."""
    bundle = untrained(recipe(stage("first", fusion="none", grid=SHAPE), WIDENED[name]), SCHEMA, seed=2)
    first = dict(bundle.weights["first"])
    first["heads.0.bias"] = first["heads.0.bias"] + np.float32([3.0, 0.0, 0.0])
    bundle = replace(bundle, weights={**bundle.weights, "first": first})
    grid = Grid.from_spacing((48, 40, 32), (3, 3, 4), (-72, -60, -64))
    image = Volume(phantom_case(4, grid).image.data * 0.3, grid)
    assert Predictor(bundle, CPU).predict(Case("x", image)).records[1].widened
    found, expected = both(bundle, image)
    assert len(np.unique(expected)) > 1
    assert np.array_equal(found, expected)


GRIDS = {
    "flipped": oriented((24, 20, 16), (2, 2, 3), (24, -20, 24), flip=(1, 0, 1)),
    "permuted": oriented((16, 24, 20), (3, 2, 2), (-20, 20, -24), order=(2, 0, 1), flip=(0, 1, 0)),
    "oblique": oriented((24, 20, 16), (2, 2, 3), (-24, -20, -24), angles_deg=(8, -5, 12)),
    "one slice": oriented((24, 20, 1), (2, 2, 3), (-24, -20, 0)),
    "anisotropic": oriented((40, 36, 5), (1.2, 1.1, 9), (-24, -20, -22)),
}


@pytest.mark.parametrize("name", GRIDS)
def test_scans_in_any_orientation(name: str) -> None:
    values = phantom_case(4, GRIDS[name]).image.data * 0.3
    bundle = untrained(tiny_recipe(together=True), SCHEMA, seed=2)
    found, expected = both(bundle, Volume(values, GRIDS[name]))
    assert found.shape == GRIDS[name].shape
    assert len(np.unique(expected)) > 2
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("on_missing", ["empty", "whole_volume"])
def test_when_the_first_stage_finds_nothing(on_missing: str) -> None:
    made = MADE["two that compete, one with auto-context"].model_copy(update={"on_missing": on_missing})
    bundle = untrained(made, SCHEMA, seed=1)
    first = dict(bundle.weights["first"])
    first["heads.0.bias"] = np.float32([50.0, 0.0, 0.0])
    silent = replace(bundle, weights={**bundle.weights, "first": first})
    found, expected = both(silent, tiny_case(1)[0])
    assert len(np.unique(expected)) > 1
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("two that compete, one with auto-context", "stage 'first' on"),
        ("body mask, valid padding, decided on its own grid", "the body mask of stage 'body' on"),
    ],
)
def test_a_scan_that_cannot_fit_is_refused(name: str, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything as large as that is made."""
    bundle = untrained(MADE[name], SCHEMA)
    image = Volume(tiny_case(1)[0].data, Grid.from_spacing((24, 20, 16), (20, 20, 30)))
    scan_bytes = image.data.size * (4 + 4)
    monkeypatch.setattr(predict.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": scan_bytes}.get)
    with pytest.raises(ScanError, match=rf"^{what} .* this machine has 0.0 GB; is the scan's spacing right"):
        predict.segment(pipeline_of(bundle), torch_networks(bundle), image.data, image.grid)
    monkeypatch.setattr(predict.os, "sysconf", {"SC_PAGE_SIZE": 1, "SC_PHYS_PAGES": scan_bytes - 1}.get)
    with pytest.raises(ScanError, match=r"^a scan of \(24, 20, 16\) voxels needs"):
        predict.segment(pipeline_of(bundle), {}, image.data, image.grid)


def test_the_number_of_channels_is_checked() -> None:
    bundle = untrained(tiny_recipe(together=True), SCHEMA, ("CT", "PET"))
    voxels, grid = np.zeros((1, 4, 4, 4)), Grid.from_spacing((4, 4, 4), (1, 1, 1))
    with pytest.raises(ScanError, match=r"has 1 channel\(s\), the model needs 2: CT, PET"):
        predict.segment(pipeline_of(bundle), {}, voxels, grid)


BESIDE = ((-200.0, 200.0), (-50.0, 50.0), (-10.0, 10.0))
DOMAIN = TrainingDomain(
    modality="CT",
    intensities=((-20.0,) * 6 + (0.0,) * 7 + (20.0,) * 6,),
    darkest=(-150.0, -20.0),
    cross_section_cm2=(1.0, 2.0),
    organs={"liver": OrganPlaces(None, {"left kidney": BESIDE, "right kidney": BESIDE})},
)


def test_scans_are_compared_with_those_of_the_training() -> None:
    """As `zoomseg predict` does: the same warnings, and the same refusals."""
    bundle = replace(untrained(tiny_recipe(together=True), SCHEMA), domain=DOMAIN)
    image, told = tiny_case(1)[0], []
    networks, pipeline = torch_networks(bundle), pipeline_of(bundle)
    predict.segment(pipeline, networks, image.data, image.grid, told.append)
    assert tuple(told) == Predictor(bundle, CPU).predict(Case("x", image)).notes
    assert [note.split(" measures")[0] for note in told] == ["the body in it"]
    with pytest.raises(ScanError, match=r"^the scan is not in the unit"):
        predict.segment(pipeline, networks, image.data + 150, image.grid)


def test_parts_of_organs_where_training_never_had_them_are_taken_out() -> None:
    schema = LabelSchema.consecutive(("left kidney", "right kidney", "liver"))
    bundle = replace(untrained(tiny_recipe(together=True), schema), domain=DOMAIN)
    grid = Grid.from_spacing((40, 20, 80), (5.0, 5.0, 5.0))
    canvas, told = fusion.Canvas.blank(grid, schema), []
    for c, i in ((1, 5), (2, 30), (3, 20)):
        canvas.labels[i : i + 3, 5:8, 70:73] = c
    expected = canvas.labels.copy()
    canvas.labels[20:22, 5:7, 5:7] = 3
    predict._put_in_place(canvas, pipeline_of(bundle), told.append)
    assert (canvas.labels == expected).all()
    # Its upper end at 32.5 mm; 40 mm below the kidneys' median, at 355 mm, it might still lie.
    assert told == ["liver: 1 part (1.0 ml) removed, 282 mm from where training had it"]


def test_numbers_that_overflow_are_no_answer() -> None:
    bundle = untrained(tiny_recipe(together=True), SCHEMA)
    image = tiny_case(0)[0]

    def overflowing(inputs: np.ndarray) -> np.ndarray:
        return np.full((1, 3, *inputs.shape[2:]), np.nan, dtype=np.float32)

    networks = torch_networks(bundle) | {"fine": overflowing}
    with pytest.raises(ModelError, match="stage 'fine' answered with numbers that are not finite"):
        predict.segment(pipeline_of(bundle), networks, image.data, image.grid)
