"""Pictures of a scan and its organs, without matplotlib: three planes of all organs, and each organ alone.

All pictures have one intensity window and radiological orientation: the patient's right is on the picture's
left, head or front is up. Arrays are canonical (RAS+).
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from zoomseg.anatomy.colours import RGB, organ_colour
from zoomseg.core.geometry import Box, Grid, Index3, Orientation, Vector3
from zoomseg.core.hounsfield import looks_like_hounsfield
from zoomseg.core.labels import IGNORE
from zoomseg.core.region import class_boxes
from zoomseg.core.volume import LabelMap, Volume

Mask = npt.NDArray[np.bool_]
Range = tuple[float, float]

SOFT_TISSUE_HU = (-160.0, 240.0)
"""Level 40, width 400: the usual abdominal window of CT."""
PERCENTILES = (1.0, 99.5)
"""For intensities without a unit: percentiles of the non-empty voxels that are shown black and white."""
_SAMPLES = 500_000
"""Number of evenly spread voxels from which a scan is characterised."""

BARS_MM = (200, 100, 50, 20, 10, 5, 2, 1)
BAR_SHARE = 0.4
"""A scale bar is the longest of ``BARS_MM`` that is at most this share of a picture's width."""

TILE_PIXELS = 220
"""Side of the square picture of one organ."""
MIN_TILE_MM = 90.0
TILE_MARGIN_MM = 20.0
"""Margin around the organ on each side."""

PANEL_PIXELS = 340
"""Height of the three planes of all organs, which have the same scale."""
_FILL, _GAP = 0.3, 8
_DARK, _LETTER, _WHITE = (16, 21, 27), (242, 209, 107), (235, 240, 244)
_JPEG_QUALITY = 88


@dataclass(frozen=True)
class Plane:
    """A slice through a RAS+ array in radiological orientation: patient's right on the picture's left,
    anterior on the left of a sagittal slice, head or front up."""

    name: str
    across: int
    """Array axis perpendicular to the slice."""
    horizontal: int
    vertical: int
    edges: str
    """Patient directions at the left, right, top and bottom edge. Both horizontal axes run from right to left
    on the screen."""

    def slice(self, array: npt.NDArray[Any], at: int) -> npt.NDArray[Any]:
        """``[horizontal, vertical]``, a view; the remaining axes are in the correct order for every plane."""
        out: npt.NDArray[Any] = np.moveaxis(array, self.across, 0)[at]
        return out


AXIAL = Plane("axial", 2, 0, 1, "RLAP")
PLANES = (AXIAL, Plane("coronal", 1, 0, 2, "RLSI"), Plane("sagittal", 0, 1, 2, "APSI"))


@dataclass(frozen=True)
class DisplayWindow:
    """Intensities shown black and white; ``unit`` is HU for Hounsfield units, otherwise empty."""

    low: float
    high: float
    unit: str = ""

    @property
    def text(self) -> str:
        minus = "\N{MINUS SIGN}"
        return f"{self.low:,.4g} to {self.high:,.4g} {self.unit}".replace("-", minus).strip()


def display_window(image: npt.NDArray[Any]) -> DisplayWindow:
    """The window of a scan ``[I, J, K]``: the same for all CTs, otherwise by its percentiles, so that all
    pictures of a scan have the same grey values."""
    if looks_like_hounsfield(image):
        return DisplayWindow(*SOFT_TISSUE_HU, "HU")
    step = _step(image.size)
    sample = image[::step, ::step, ::step]
    filled = sample[sample > sample.min()]
    low, high = np.percentile(filled if filled.size else sample, PERCENTILES)
    return DisplayWindow(float(low), max(float(high), float(low) + 1e-6))


def bar_mm(width_mm: float) -> int:
    """Length of the scale bar of a picture of this width."""
    return next((mm for mm in BARS_MM if mm <= BAR_SHARE * width_mm), BARS_MM[-1])


def slice_name(plane: Plane, at: int, grid: Grid, own: Grid | None = None) -> str:
    """``axial, k = 45, z = -123 mm``: the slice of a canonical grid by its position along the patient's axis,
    and by its index, counted from 0, on ``own``, the scan's grid as stored."""
    stored = grid if own is None else own
    turned = Orientation.to_canonical(stored)
    axis, flipped = turned.order[plane.across], turned.flip[plane.across]
    index = stored.shape[axis] - 1 - at if flipped else at
    middle = [(n - 1) / 2 for n in grid.shape]
    middle[plane.across] = at
    mm = float(grid.world(middle)[plane.across])
    place = f"{'xyz'[plane.across]} = {mm:.0f} mm".replace("-", "\N{MINUS SIGN}")
    return f"{plane.name}, {'ijk'[axis]} = {index}, {place}"


def centre_of(mask: Mask) -> Index3:
    """On each axis, the slice that halves the mask's voxels: unlike the mean, it always intersects the
    mask."""
    found = []
    for axis in range(3):
        others = tuple(a for a in range(3) if a != axis)
        below = np.cumsum(np.count_nonzero(mask, axis=others))
        found.append(int(np.searchsorted(below, below[-1] / 2)))
    return (found[0], found[1], found[2])


# --- three planes of all organs -------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Overview:
    """Three planes with every organ in its colour; ``where`` names the slices."""

    picture: Image.Image
    where: str

    @property
    def jpeg(self) -> bytes:
        return _jpeg(self.picture)

    @property
    def pixels(self) -> npt.NDArray[np.uint8]:
        """``[row, column, RGB]``."""
        return np.asarray(self.picture)


def overview(
    image: Volume | None, labels: LabelMap, own: Grid | None = None, at: Index3 | None = None
) -> Overview:
    """Three planes with every organ in its colour, through the voxel ``at``, or through the middle of all
    organs. Both volumes are canonical, on one grid; without an image, the background is black. ``own`` as in
    ``slice_name``."""
    at = centre_of_all(labels.data) if at is None else at
    window = None if image is None else display_window(image.data[0])
    panels = _panels(image, window, labels, at)
    width = sum(panel.width for panel in panels) + _GAP * (len(panels) - 1)
    sheet = Image.new("RGB", (width, max(panel.height for panel in panels)), _DARK)
    left = 0
    for panel in panels:
        sheet.paste(panel, (left, 0))
        left += panel.width + _GAP
    named = "; ".join(slice_name(p, at[p.across], labels.grid, own) for p in PLANES)
    return Overview(sheet, named if window is None else f"{named}; window {window.text}")


def _panels(
    image: Volume | None, window: DisplayWindow | None, labels: LabelMap, at: Index3
) -> list[Image.Image]:
    grid, table = labels.grid, _colour_table(labels.schema.names)
    tallest = max(grid.extent_mm[plane.vertical] for plane in PLANES)
    per_mm = PANEL_PIXELS / tallest
    panels = []
    for plane in PLANES:
        view = ((0.0, grid.extent_mm[plane.horizontal]), (0.0, grid.extent_mm[plane.vertical]))
        scene = _Scene(plane, view, grid.spacing_mm, per_mm)
        grey = None if image is None else plane.slice(image.data[0], at[plane.across])
        panels.append(scene.drawn(grey, window, plane.slice(labels.data, at[plane.across]), table))
    return panels


def centre_of_all(classes: npt.NDArray[np.uint8]) -> Index3:
    """The centre of all organs, within a few voxels; the middle of an empty map."""
    step = _step(classes.size)
    some = classes[::step, ::step, ::step] != 0
    if not some.any():
        return (classes.shape[0] // 2, classes.shape[1] // 2, classes.shape[2] // 2)
    i, j, k = centre_of(some)
    return (i * step, j * step, k * step)


def fullest_planes(classes: npt.NDArray[np.uint8]) -> Index3:
    """On each axis, the plane with the largest area of organs."""
    i, j, k = (int(np.argmax(np.count_nonzero(classes, axis=rest))) for rest in ((1, 2), (0, 2), (0, 1)))
    return (i, j, k)


def _step(voxels: int) -> int:
    """Step between the voxels that are read along each axis."""
    return max(1, round(math.cbrt(voxels / _SAMPLES)))


# --- each organ by itself -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class ContactSheet:
    """Square pictures of ``TILE_PIXELS`` side by side, as one JPEG: one for each of ``organs``."""

    jpeg: bytes
    organs: tuple[str, ...]


def contact_sheet(image: Volume, labels: LabelMap, organs: Sequence[str]) -> ContactSheet | None:
    """The organs that were found, each on the axial slice with its largest area, with its outline and a scale
    bar. Canonical volumes on one grid; None if nothing was found."""
    numbers = {organ: labels.schema.class_of(organ) for organ in organs}
    boxes = class_boxes(labels.data, numbers.values())
    window, table = display_window(image.data[0]), _colour_table(labels.schema.names)
    found = tuple(organ for organ in organs if numbers[organ] in boxes)
    if not found:
        return None
    sheet = Image.new("RGB", (TILE_PIXELS * len(found), TILE_PIXELS), _DARK)
    for place, organ in enumerate(found):
        c = numbers[organ]
        sheet.paste(_tile(image, labels, c, boxes[c], window, table), (place * TILE_PIXELS, 0))
    return ContactSheet(_jpeg(sheet), found)


def _tile(
    image: Volume, labels: LabelMap, c: int, box: Box, window: DisplayWindow, table: npt.NDArray[np.uint8]
) -> Image.Image:
    own = labels.data[box.slices] == c
    k = box.start[2] + int(np.argmax(np.count_nonzero(own, axis=(0, 1))))
    spacing, middle, half = labels.grid.spacing_mm, [], 0.0
    for axis in (0, 1):
        low, high = box.start[axis] * spacing[axis], box.stop[axis] * spacing[axis]
        middle.append((low + high) / 2)
        half = max(half, (high - low) / 2 + TILE_MARGIN_MM, MIN_TILE_MM / 2)
    view = ((middle[0] - half, middle[0] + half), (middle[1] - half, middle[1] + half))
    scene = _Scene(AXIAL, view, spacing, TILE_PIXELS / (2 * half))
    classes = np.where(labels.data[:, :, k] == c, np.uint8(c), np.uint8(0))
    return scene.drawn(image.data[0][:, :, k], window, classes, table, letters=False)


# --- one slice ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """The drawn part of a slice, and its size."""

    plane: Plane
    view: tuple[Range, Range]
    """Horizontal and vertical, in mm from the first voxel's outer face; may extend beyond the slice."""
    spacing_mm: Vector3
    pixels_per_mm: float

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        across, up = ((high - low) * self.pixels_per_mm for low, high in self.view)
        return max(1, round(across)), max(1, round(up))

    def drawn(
        self,
        grey: npt.NDArray[Any] | None,
        window: DisplayWindow | None,
        classes: npt.NDArray[np.uint8],
        table: npt.NDArray[np.uint8],
        letters: bool = True,
    ) -> Image.Image:
        """Arrays ``[horizontal, vertical]`` of the slice; ``table`` has a colour for each class."""
        width, height = self.size
        base = np.zeros((height, width, 3), dtype=np.uint8)
        if grey is not None and window is not None:
            base[:] = self._sampled(_as_grey(grey, window), Image.Resampling.BILINEAR)[..., None]
        found = self._sampled(np.where(classes == IGNORE, np.uint8(0), classes), Image.Resampling.NEAREST)
        inside, colours = found > 0, table[found]
        mixed = base + _FILL * (colours.astype(np.float32) - base)
        base = np.where(inside[..., None], mixed.astype(np.uint8), base)
        edges = _edges(found) & inside
        base[edges] = colours[edges]
        picture = Image.fromarray(base)
        self._annotate(picture, letters)
        return picture

    def _sampled(self, array: npt.NDArray[np.uint8], how: Image.Resampling) -> npt.NDArray[np.uint8]:
        """The slice in the picture's pixels, black beyond its end, in display orientation."""
        (left, right), (bottom, top) = self.view
        across, up = self.spacing_mm[self.plane.horizontal], self.spacing_mm[self.plane.vertical]
        rows, columns = array.shape[1], array.shape[0]
        upright = Image.fromarray(np.ascontiguousarray(array.T[::-1, ::-1]))
        # Pillow maps the picture's corners to the slice's, counted in its pixels from the upper left.
        corner = (columns - right / across, rows - top / up)
        matrix = (
            (right - left) / across / self.size[0], 0.0, corner[0],
            0.0, (top - bottom) / up / self.size[1], corner[1],
        )  # fmt: skip
        return np.asarray(upright.transform(self.size, Image.Transform.AFFINE, matrix, how))

    def _annotate(self, picture: Image.Image, letters: bool) -> None:
        pen, (width, height) = ImageDraw.Draw(picture), picture.size
        mm = bar_mm(width / self.pixels_per_mm)
        end = 8 + round(mm * self.pixels_per_mm)
        pen.line((8, height - 8, end, height - 8), fill=_WHITE, width=2)
        _write(pen, (8, height - 12), f"{mm} mm", "ls", _WHITE)
        if letters:
            places = ((4, height // 2), (width - 4, height // 2), (width // 2, 3), (width // 2, height - 3))
            for letter, place, anchor in zip(self.plane.edges, places, ("lm", "rm", "ma", "md"), strict=True):
                _write(pen, place, letter, anchor, _LETTER)


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], text: str, anchor: str, colour: RGB) -> None:
    pen.text(place, text, fill=colour, font=_font(), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(13)


def _as_grey(values: npt.NDArray[Any], window: DisplayWindow) -> npt.NDArray[np.uint8]:
    scaled = (values.astype(np.float32) - window.low) * (255 / (window.high - window.low))
    return np.clip(scaled, 0, 255).astype(np.uint8)


def _edges(found: npt.NDArray[np.uint8]) -> Mask:
    """Pixels next to one of another class."""
    out = np.zeros(found.shape, dtype=np.bool_)
    for axis in (0, 1):
        differ = np.diff(found.astype(np.int16), axis=axis) != 0
        low, high = (np.moveaxis(out, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        turned = np.moveaxis(differ, axis, 0)
        low |= turned
        high |= turned
    return out


def _colour_table(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """``[256, 3]``: a colour for each class."""
    table = np.zeros((256, 3), dtype=np.uint8)
    table[1 : 1 + len(names)] = [organ_colour(name) for name in names]
    return table


def _jpeg(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "jpeg", quality=_JPEG_QUALITY)
    return out.getvalue()
