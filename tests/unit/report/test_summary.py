"""Rows of ``summary.csv``: volumes, intensities and flags of known shapes."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch

from zoomseg.core.errors import GeometryError, OutputError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.report import summary
from zoomseg.report.summary import OrganRow, organ_rows, write_summary

GRID = Grid.from_spacing((8, 9, 10), (2.0, 2.5, 4.0))
SCHEMA = LabelSchema(("liver", "spleen", "aorta"), (6, 1, 8))


def scan() -> tuple[LabelMap, Volume]:
    classes = torch.zeros(GRID.shape, dtype=torch.uint8)
    classes[2:4, 2:5, 2:7] = 1
    classes[5:7, 5:7, 8:] = 3
    image = torch.arange(GRID.box.voxels, dtype=torch.float32).reshape(1, *GRID.shape)
    return LabelMap(classes, GRID, SCHEMA), Volume(image, GRID)


def test_values():
    labels, image = scan()
    liver, spleen, aorta = organ_rows("a", labels, image, {"liver": 0.75})
    expected = float(image.data[0, 2:4, 2:5, 2:7].mean())
    assert liver == OrganRow("a", "liver", pytest.approx(30 * 0.02), pytest.approx(expected), 0.75, ())
    assert spleen == OrganRow("a", "spleen", 0.0, None, None, ("missing",))
    assert aorta.flags == ("touches_border",)
    assert aorta.volume_ml == pytest.approx(8 * 0.02)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("plane", [0, -1])
def test_every_border_is_looked_at(axis, plane):
    classes = torch.zeros(GRID.shape, dtype=torch.uint8)
    at = [4, 4, 4]
    at[axis] = plane
    classes[tuple(at)] = 2
    classes[4, 4, 4] = 1
    labels = LabelMap(classes, GRID, SCHEMA)
    rows = organ_rows("a", labels, scan()[1], {})
    assert [row.flags for row in rows] == [(), ("touches_border",), ("missing",)]


@pytest.mark.parametrize("lying", [(2, 1, 0), (1, 2, 0), (0, 2, 1)])
@pytest.mark.parametrize("image_too", [False, True])
def test_how_arrays_lie_in_memory_does_not_matter(lying, image_too):
    labels, image = scan()
    back = tuple(np.argsort(lying))
    turned = LabelMap(labels.data.permute(lying).contiguous().permute(back), GRID, SCHEMA)
    intensities = image.data[0].permute(lying).contiguous().permute(back)[None] if image_too else image.data
    assert turned.data.stride() != labels.data.stride()
    assert organ_rows("a", turned, Volume(intensities, GRID), {}) == organ_rows("a", labels, image, {})


def test_slabs_add_up(monkeypatch):
    labels, image = scan()
    whole = organ_rows("a", labels, image, {})
    monkeypatch.setattr(summary, "SLAB_VOXELS", 1)
    assert organ_rows("a", labels, image, {}) == whole


def test_sums_do_not_lose_precision():
    """A million voxels of 1000.1 summed in float32 would be off in the fourth digit."""
    grid = Grid.from_spacing((100, 100, 100), (1.0, 1.0, 1.0))
    labels = LabelMap(torch.ones(grid.shape, dtype=torch.uint8), grid, SCHEMA)
    image = Volume(torch.full((1, *grid.shape), 1000.1), grid)
    row = organ_rows("a", labels, image, {})[0]
    assert row.mean_intensity == pytest.approx(float(np.float32(1000.1)), abs=1e-6)


def test_only_wanted_organs():
    assert [row.organ for row in organ_rows("a", *scan(), {}, organs=["aorta"])] == ["aorta"]


def test_other_grid_is_refused():
    labels, image = scan()
    shifted = Volume(image.data, Grid.from_spacing(GRID.shape, GRID.spacing_mm, (5.0, 0.0, 0.0)))
    with pytest.raises(GeometryError, match="case a: labels and image lie on different grids"):
        organ_rows("a", labels, shifted, {})


def test_file(tmp_path):
    rows = [
        OrganRow("a,b", "liver", 1234.5678, -12.3456, 0.98765, ()),
        OrganRow("c", "spleen", 0.0, None, None, ("missing", "odd")),
    ]
    write_summary(tmp_path / "summary.csv", rows)
    with (tmp_path / "summary.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table == [
        ["case", "organ", "volume_ml", "mean_intensity", "confidence", "flags"],
        ["a,b", "liver", "1234.568", "-12.346", "0.9877", ""],
        ["c", "spleen", "0.000", "", "", "missing;odd"],
    ]


def test_unwritable_place(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        write_summary(tmp_path / "file" / "summary.csv", [])
