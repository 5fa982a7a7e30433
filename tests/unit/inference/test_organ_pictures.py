"""Pictures of organs: the correct slice, orientation, scale and window."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.inference import organ_pictures
from zoomseg.inference.organ_pictures import (
    AXIAL,
    PANEL_PIXELS,
    PLANES,
    SOFT_TISSUE_HU,
    TILE_PIXELS,
    DisplayWindow,
    bar_mm,
    centre_of,
    contact_sheet,
    display_window,
    fullest_planes,
    overview,
    slice_name,
)

SCHEMA = LabelSchema.consecutive(("liver", "spleen", "pancreas"))
GRID = Grid.from_spacing((60, 50, 40), (2.0, 2.0, 5.0), (-50.0, -20.0, 300.0))


def labels() -> LabelMap:
    """The liver is on the right, where indices are high, the spleen on the left."""
    data = np.zeros(GRID.shape, dtype=np.uint8)
    data[35:50, 20:40, 10:30] = SCHEMA.class_of("liver")
    data[5:15, 5:15, 20:25] = SCHEMA.class_of("spleen")
    return LabelMap(data, GRID, SCHEMA)


def grey(value: float = 40.0) -> Volume:
    return Volume(np.full((1, *GRID.shape), value, dtype=np.float32), GRID)


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)


def coloured(picture: np.ndarray, organ: str) -> np.ndarray:
    """Pixels closer to the organ's colour, as blended with grey, than to any grey."""
    red, green, blue = organ_colour(organ)
    spread = picture.max(axis=-1) - picture.min(axis=-1)
    hue = (np.sign(picture[..., 0] - picture[..., 2]) == np.sign(red - blue)) & (
        np.sign(picture[..., 0] - picture[..., 1]) == np.sign(red - green)
    )
    return (spread > 12) & hue


class TestWindow:
    def test_every_ct_has_the_same(self) -> None:
        noise = np.random.default_rng(0)
        ct = np.full((40, 40, 40), -1000.0)
        ct[8:32, 8:32] = noise.normal(50, 20, (24, 24, 40))
        ct[10, 10, 10] = 3000
        assert display_window(ct) == DisplayWindow(*SOFT_TISSUE_HU, "HU")
        assert display_window(ct).text == "\N{MINUS SIGN}160 to 240 HU"

    def test_others_have_their_own_percentiles_without_the_background(self) -> None:
        mr = np.zeros((40, 40, 40), dtype=np.float32)
        mr[10:30, 10:30] = np.linspace(100, 300, 20 * 20 * 40).reshape(20, 20, 40)
        window = display_window(mr)
        assert (window.low, window.high) == (pytest.approx(102, abs=0.1), pytest.approx(299, abs=0.1))
        assert window.unit == ""

    def test_a_constant_image_has_one_that_can_be_divided_by(self) -> None:
        window = display_window(np.full((4, 4, 4), 7.0))
        assert window.high > window.low == 7


def test_centre_meets_a_hollow_organ() -> None:
    """The mean of a C-shape is outside it."""
    mask = np.zeros((20, 20, 20), dtype=bool)
    mask[2:18, 2:18, 10] = True
    mask[5:18, 5:15, 10] = False
    at = centre_of(mask)
    assert all(mask.take(at[axis], axis=axis).any() for axis in range(3))


@pytest.mark.parametrize(("width", "mm"), [(90, 20), (124, 20), (125, 50), (600, 200), (2.4, 1)])
def test_scale_bars(width: float, mm: int) -> None:
    assert bar_mm(width) == mm


def test_slices_are_named_by_the_stored_index_and_the_place() -> None:
    stored = Grid(
        (40, 60, 50),
        np.array([[0, -2.0, 0, 68], [0, 0, 2.0, -20], [-5.0, 0, 0, 495], [0, 0, 0, 1]]),
    )
    turned = Orientation.to_canonical(stored).grid(stored)
    assert turned.same_as(GRID)
    assert slice_name(AXIAL, 4, GRID) == "axial, k = 4, z = 320 mm"
    assert slice_name(AXIAL, 4, GRID, stored) == "axial, i = 35, z = 320 mm"
    assert slice_name(PLANES[2], 0, GRID, stored) == "sagittal, j = 59, x = \N{MINUS SIGN}50 mm"


class TestOverview:
    def test_planes_stand_at_one_scale(self) -> None:
        picture = pixels(overview(grey(), labels()).jpeg)
        per_mm = PANEL_PIXELS / 200  # 40 slices of 5 mm are the tallest
        width = round(120 * per_mm) * 2 + round(100 * per_mm) + 2 * organ_pictures._GAP
        assert picture.shape == (PANEL_PIXELS, width, 3)

    def test_right_is_left_and_head_is_up(self) -> None:
        """The spleen's indices are low, which is the patient's left in RAS+."""
        data = labels().data.copy()
        data[5:15, 20:40, 25:29] = SCHEMA.class_of("spleen")
        shown = overview(grey(), LabelMap(data, GRID, SCHEMA))
        assert shown.where.startswith("axial, k = 2")
        per_mm = PANEL_PIXELS / 200
        coronal = pixels(shown.jpeg)[:, round(120 * per_mm) + organ_pictures._GAP :][:, : round(120 * per_mm)]
        liver = np.argwhere(coloured(coronal, "liver")).mean(axis=0)
        spleen = np.argwhere(coloured(coronal, "spleen")).mean(axis=0)
        assert liver[1] < coronal.shape[1] / 2 < spleen[1]
        assert spleen[0] < liver[0]

    def test_an_organ_is_as_large_as_it_is(self) -> None:
        per_mm = PANEL_PIXELS / 200
        axial = pixels(overview(grey(), labels()).jpeg)[: round(100 * per_mm), : round(120 * per_mm)]
        liver = np.argwhere(coloured(axial, "liver")[20:-20, 20:-20])  # without the letters at the border
        height, width = np.ptp(liver, axis=0)
        assert (height, width) == (pytest.approx(40 * per_mm, abs=4), pytest.approx(30 * per_mm, abs=4))

    def test_without_organs_it_shows_the_middle_and_without_image_the_organs(self) -> None:
        empty = LabelMap(np.zeros(GRID.shape, dtype=np.uint8), GRID, SCHEMA)
        assert overview(grey(), empty).where.startswith("axial, k = 20")
        black = overview(None, labels())
        assert "window" not in black.where
        assert coloured(pixels(black.jpeg), "liver").any()


class TestContactSheet:
    def test_only_what_was_found_in_order(self) -> None:
        sheet = contact_sheet(grey(), labels(), SCHEMA.names)
        assert sheet is not None
        assert sheet.organs == ("liver", "spleen")
        picture = pixels(sheet.jpeg)
        assert picture.shape == (TILE_PIXELS, 2 * TILE_PIXELS, 3)
        left, right = picture[:, :TILE_PIXELS], picture[:, TILE_PIXELS:]
        assert coloured(left, "liver").sum() > 1000
        assert coloured(right, "spleen").sum() > 500
        assert not coloured(left, "spleen").any()

    def test_an_organ_stands_in_the_middle(self) -> None:
        sheet = contact_sheet(grey(), labels(), ["liver"])
        assert sheet is not None
        middle = np.argwhere(coloured(pixels(sheet.jpeg), "liver")).mean(axis=0)
        assert middle == pytest.approx([TILE_PIXELS / 2] * 2, abs=3)

    def test_the_slice_is_the_one_with_most_of_the_organ(self) -> None:
        """And the scan on that slice lies under it."""
        image, found = grey(0.0), labels()
        image.data[0, :, :, 0] = -1000  # of the window's percentiles the lowest value does not count
        found.data[30:55, 15:45, 12] = SCHEMA.class_of("liver")
        image.data[0, :, :, 12] = 240
        sheet = contact_sheet(image, found, ["liver"])
        assert sheet is not None
        assert pixels(sheet.jpeg)[33, TILE_PIXELS // 2].min() > 200

    def test_nothing_found(self) -> None:
        assert contact_sheet(grey(), labels(), ["pancreas"]) is None


def test_the_planes_with_the_largest_area_of_organs() -> None:
    data = np.zeros((6, 5, 4), dtype=np.uint8)
    data[1:5, 2, 3] = 1
    data[4, 2, 1:4] = 2
    assert fullest_planes(data) == (4, 2, 3)
