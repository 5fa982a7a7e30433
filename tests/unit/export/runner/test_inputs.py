"""What the runner's networks see is what the package's see."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.export_packages import pipeline_of, untrained
from helpers.grids import SIGNED_PERMUTATIONS, oriented
from helpers.tiny_dataset import SCHEMA, tiny_recipe
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Box
from zoomseg.core.volume import Volume
from zoomseg.export.runner import inputs, resample
from zoomseg.export.runner.region import Answer, Region
from zoomseg.pipeline.inputs import normalisation
from zoomseg.recipe.spec import IntensitySpec, Window, ZScore


@pytest.mark.parametrize(
    "spec",
    [
        Window(lower=-125, upper=275, output=(-1, 1)),
        Window(lower=-900, upper=700, output=(-1, 1), inner=(-80, 120)),
        ZScore(),
    ],
)
@pytest.mark.parametrize(
    ("dtype", "shape"), [(np.int16, (12, 11, 10)), (np.float32, (12, 11, 10)), (np.int16, (170, 130, 50))]
)
def test_normalised_as_in_the_package(spec: IntensitySpec, dtype: type, shape: tuple[int, int, int]) -> None:
    """The largest has more voxels than statistics are taken of."""
    voxels = np.random.default_rng(0).normal(0, 300, (1, *shape)).astype(dtype)
    image = Volume(voxels.astype(np.float32), oriented(shape))
    expected = normalisation(spec, image).apply(image.data)[0]
    found = inputs.normalised(voxels[0], spec.model_dump(mode="json"))
    assert np.abs(found - expected).max() < 1e-5


def test_a_window_wider_than_the_scans_type() -> None:
    voxels = np.array([[[-128, 0, 127]]], dtype=np.int8)
    found = inputs.normalised(voxels, {"kind": "window", "lower": -1000, "upper": 1000, "output": [0, 1]})
    assert found.ravel() == pytest.approx([0.436, 0.5, 0.5635])


@pytest.mark.parametrize(("order", "flip"), SIGNED_PERMUTATIONS[::5])
def test_reorienting_back_and_forth(order: tuple[int, int, int], flip: tuple[int, int, int]) -> None:
    grid = oriented((5, 4, 3), order=order, flip=flip)
    voxels = np.arange(60, dtype=np.int16).reshape(1, 5, 4, 3)
    scan = inputs.prepare(voxels, grid, {"kind": "window", "lower": 0, "upper": 60, "output": [0, 60]})
    index = np.argwhere(np.ones(scan.grid.shape, dtype=bool))
    own = np.rint(grid.index(scan.grid.world(index))).astype(int)
    assert np.array_equal(scan.raw[0][tuple(index.T)], voxels[0][tuple(own.T)])
    assert np.abs(scan.image - scan.raw).max() < 1e-4
    assert np.array_equal(inputs.reorient(scan.raw[0], scan.orientation.inverse), voxels[0])


def test_a_scan_of_air_alone_is_refused() -> None:
    voxels = np.linspace(-1100, -950, 60).astype(np.int16).reshape(1, 5, 4, 3)
    window = {"kind": "window", "lower": -125, "upper": 275, "output": [-1, 1]}
    with pytest.raises(ScanError, match=r"^no voxel of the scan lies inside the window"):
        inputs.prepare(voxels, oriented((5, 4, 3)), window)
    inputs.prepare(voxels + 900, oriented((5, 4, 3)), window)


def test_grids() -> None:
    stage = pipeline_of(untrained(tiny_recipe(together=True), SCHEMA)).stages[0]
    scan, box = oriented((20, 20, 10), (1, 1, 3)), Box((2, 4, 0), (12, 12, 5))
    for spec, expected in (
        ({"kind": "spacing", "mm": [4, 4, 4]}, scan.with_spacing((4, 4, 4))),
        ({"kind": "downsample", "factor": [2, 2, 1]}, scan.with_spacing((2, 2, 3))),
        ({"kind": "shape", "shape": [5, 2, 5]}, scan.crop(box).with_shape((5, 2, 5))),
    ):
        other = inputs.Stage(**{**vars(stage), "grid": spec})
        assert inputs.stage_grid(other, scan, box) == expected


def test_channels_then_priors() -> None:
    fine = pipeline_of(untrained(tiny_recipe(together=True), SCHEMA, ("CT", "PET"))).stages[1]
    grid = oriented((6, 5, 4))
    voxels = np.stack([np.full(grid.shape, 10, np.int16), np.full(grid.shape, -300, np.int16)])
    scan = inputs.prepare(voxels, grid, {"kind": "window", "lower": -150, "upper": 200, "output": [0, 1]})
    coarse = grid.with_shape((2, 2, 2))
    shares = np.stack([np.full((2, 2, 2), x, np.float32) for x in (0.7, 0.1, 0.2)])
    answers = {"coarse": Answer(shares, coarse, SCHEMA.names, Region.whole(coarse))}
    target = grid.with_spacing((0.7, 2, 1))
    found = inputs.assemble(fine, scan, answers, target)
    assert found.shape == (4, *target.shape)
    assert found.std(axis=(1, 2, 3)).max() < 1e-6
    assert found.mean(axis=(1, 2, 3)) == pytest.approx([160 / 350, 0.0, 0.1, 0.2], abs=1e-6)
    assert np.array_equal(found[:1], resample.linear(scan.image[:1], grid, target))
