"""The picture shows the planes in radiological orientation, with organs at their positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from helpers import dciodvfy
from helpers.dicom_annotations import ORIENTATIONS, drawn_on, grid_of, series_on
from helpers.tiny_dataset import SCHEMA
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.dicom.write.secondary_capture import OPACITY, PANEL, picture, write_capture

GRID = Grid.from_spacing((40, 20, 10), (1.0, 1.0, 2.0))
"""RAS+: 40 mm from left to right, 20 from back to front and from feet to head."""


def shown(where: tuple[int, int, int], grid: Grid = GRID, value: float = 240.0) -> np.ndarray:
    """The picture of a scan that is black except for one voxel, which is also labelled."""
    classes = np.zeros(grid.shape, np.uint8)
    classes[where] = 1
    values = np.full((1, *grid.shape), -1000.0, np.float32)
    values[(0, *where)] = value
    schema = LabelSchema(SCHEMA.names, SCHEMA.values)
    return picture(LabelMap(classes, grid, schema), Volume(values, grid), ct=True)


def middles(drawn: np.ndarray) -> list[tuple[float, float]]:
    """Centre of the non-black pixels in each of the three panels: share of its height and width."""
    widths = [PANEL, PANEL, PANEL // 2]
    ends = np.cumsum(widths)
    assert drawn.shape == (PANEL // 2, ends[-1], 3)
    found = []
    for end, width in zip(ends, widths, strict=True):
        rows, columns = np.nonzero(drawn[:, end - width : end].any(axis=-1))
        found.append((rows.mean() / drawn.shape[0], columns.mean() / width))
    return found


def test_right_is_left_front_is_up_and_head_is_up() -> None:
    axial, coronal, sagittal = middles(shown((39, 19, 9)))  # right, in front, at the head
    assert axial == pytest.approx((1 / 40, 1 / 80), abs=0.01)
    assert coronal == pytest.approx((1 / 20, 1 / 80), abs=0.01)
    assert sagittal == pytest.approx((1 / 20, 1 / 40), abs=0.01)
    axial, coronal, sagittal = middles(shown((0, 0, 0)))
    assert axial == pytest.approx((39 / 40, 79 / 80), abs=0.01)
    assert coronal == pytest.approx((19 / 20, 79 / 80), abs=0.01)
    assert sagittal == pytest.approx((19 / 20, 39 / 40), abs=0.01)


def test_a_scan_that_is_stored_otherwise_looks_the_same() -> None:
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[:2, 3] = (39.0, 19.0)
    flipped = Grid(GRID.shape, affine)
    assert np.array_equal(shown((0, 0, 9), flipped), shown((39, 19, 9)))


def test_colours_lie_over_the_window() -> None:
    white = shown((20, 10, 5))
    colour = np.array(organ_colour(SCHEMA.names[0]))
    assert (
        white.reshape(-1, 3).max(axis=0).tolist() == ((1 - OPACITY) * 255 + OPACITY * colour).round().tolist()
    )
    grey = shown((20, 10, 5), value=40.0)
    assert grey.reshape(-1, 3).max(axis=0) == pytest.approx((1 - OPACITY) * 127.5 + OPACITY * colour, abs=1)


def test_values_without_a_unit_are_shown_by_their_range() -> None:
    values = np.linspace(0, 5000, 8000, dtype=np.float32).reshape(1, 40, 20, 10)
    classes = np.zeros(GRID.shape, np.uint8)
    drawn = picture(LabelMap(classes, GRID, SCHEMA), Volume(values, GRID), ct=False)
    assert drawn[..., 0].max() > 230
    assert (drawn[..., 0] == drawn[..., 1]).all()


@pytest.mark.parametrize("name", ORIENTATIONS)
def test_it_belongs_to_the_study_and_is_valid(name: str, tmp_path: Path) -> None:
    series, path = series_on(grid_of(name)), tmp_path / "capture.dcm"
    image = Volume(np.zeros((1, *series.grid.shape), np.int16), series.grid)
    assert write_capture(path, drawn_on(series.grid), image, series, "abdomen-ct", "seed")
    dataset = pydicom.dcmread(path)
    assert dataset.StudyInstanceUID == series.study_uid
    assert dataset.PatientName == dict(series.patient)["PatientName"]
    assert dataset.BurnedInAnnotation == "NO"
    first = dataset.SOPInstanceUID
    write_capture(path, drawn_on(series.grid), image, series, "abdomen-ct", "seed")
    assert pydicom.dcmread(path).SOPInstanceUID == first
    if dciodvfy.VERIFIER is not None:
        assert dciodvfy.found_by(path) == []


def test_without_an_organ_there_is_no_picture(tmp_path: Path) -> None:
    series = series_on(grid_of("axial"))
    labels = drawn_on(series.grid)
    nothing = replace(labels, data=np.zeros_like(labels.data))
    image = Volume(np.zeros((1, *series.grid.shape), np.int16), series.grid)
    assert not write_capture(tmp_path / "a.dcm", nothing, image, series, "m")
    assert not (tmp_path / "a.dcm").exists()
