"""Draw the figures of the documentation into ``docs/figures``: ``python docs/figures.py [FOLDER]``.

The packages are those of the import contract. What the other figures show is computed by ZoomSeg's own
functions on a phantom: regions, tiles, weights and losses are those that a scan would get. Nothing is
trained for this; a perfect prediction on the coarse stage's grid stands in for its network, as in
``zoomseg ceiling``. A test draws the figures again and compares.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from scipy import ndimage

from layers import description, layers
from zoomseg.anatomy.colours import organ_colour
from zoomseg.core import tiling
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.region import Region
from zoomseg.core.resample import resample, resample_labels
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.phantom import phantom_case
from zoomseg.evaluation.attribution import BOUNDARY_MM, LOSSES, Attribution, OrganRegion, attribute
from zoomseg.evaluation.figures import COLOURS, REGION_COLOUR
from zoomseg.evaluation.html_report import PARTS
from zoomseg.pipeline.roi import find_region
from zoomseg.recipe.spec import BodyMask, BoxAround, DilatedForeground, RoiSpec

Mask = npt.NDArray[np.bool_]

FOLDER = Path(__file__).parent / "figures"
HEIGHT_MM = 10.0
"""Of the axial slice that is shown: pancreas, liver, spleen and kidneys meet it."""
COARSE_MM, FINE_MM = (8.0, 8.0, 8.0), (3.0, 3.0, 3.0)
TILE: Index3 = (24, 24, 24)
TILE_COLOUR = "#f2d16b"
LAYER_COLOUR = "#2a9d8f"
WIDE = 10.0
"""Inches, of the figure of the packages."""
_TEXT = "#39434d"


# --- what is shown --------------------------------------------------------------------------------


def coarse_prior(labels: LabelMap) -> StagePrediction:
    """What a perfect coarse stage says: the reference on its grid."""
    grid = labels.grid.with_spacing(COARSE_MM)
    classes = resample_labels(labels, grid).data
    certain = np.moveaxis(np.eye(labels.schema.classes, dtype=np.float32)[classes], -1, 0)
    return StagePrediction(certain, grid, labels.schema.names, Region.whole(grid), "coarse")


def region_of(spec: RoiSpec, case: Case) -> Region:
    """Where the fine stage looks, on its grid."""
    assert case.labels is not None
    grid = case.image.grid.with_spacing(FINE_MM)
    found = find_region(spec, grid, case.image, {"coarse": coarse_prior(case.labels)}, "empty")
    assert found is not None
    return found


# --- slices ---------------------------------------------------------------------------------------


def _figure(columns: int, width: float = 3.5, height: float = 3.5) -> tuple[Figure, list[Axes]]:
    figure = Figure(
        figsize=(width * columns, height), facecolor="white", layout=ConstrainedLayoutEngine(h_pad=0.1)
    )
    FigureCanvasAgg(figure)
    return figure, list(np.ravel(figure.subplots(1, columns)))


def _plane(grid: Grid) -> int:
    return round(float(grid.index((0.0, 0.0, HEIGHT_MM))[2]))


def _extent(grid: Grid) -> tuple[float, float, float, float]:
    """Outer faces in mm."""
    low, high = grid.world((-0.5, -0.5, 0.0)), grid.world(np.array(grid.shape) - 0.5)
    return (float(low[0]), float(high[0]), float(low[1]), float(high[1]))


def _draw_scan(panel: Axes, image: Volume, title: str) -> None:
    """The slice as a radiologist looks at it: the patient's right is on the left."""
    grey = image.data[0, :, :, _plane(image.grid)]
    panel.imshow(grey.T, cmap="gray", vmin=-160, vmax=240, origin="lower", extent=_extent(image.grid))
    left, right, front, back = _extent(image.grid)
    panel.set(xlim=(right, left), ylim=(front, back), xticks=[], yticks=[], facecolor="black")
    panel.set_title(title, fontsize=10, color=_TEXT)


def _tint(panel: Axes, mask: Mask, grid: Grid, colour: str, opacity: float) -> None:
    """``mask [I, J, K]`` on a grid over the slice."""
    here = mask[:, :, _plane(grid)]
    shown = np.zeros((*here.shape, 4))
    shown[here] = (*to_rgb(colour), opacity)
    panel.imshow(shown.transpose(1, 0, 2), origin="lower", extent=_extent(grid), interpolation="nearest")


def _draw_labels(panel: Axes, labels: LabelMap, opacity: float = 0.6) -> None:
    for c, name in enumerate(labels.schema.names, start=1):
        red, green, blue = organ_colour(name)
        _tint(panel, labels.data == c, labels.grid, f"#{red:02x}{green:02x}{blue:02x}", opacity)


def _outline(panel: Axes, box: Box, grid: Grid, **style: object) -> None:
    low, high = (grid.world(np.array(corner) - 0.5) for corner in (box.start, box.stop))
    panel.add_patch(Rectangle((low[0], low[1]), high[0] - low[0], high[1] - low[1], fill=False, **style))  # type: ignore[arg-type]


def _draw_region(panel: Axes, region: Region) -> None:
    _tint(panel, region.mask_in(region.grid.box), region.grid, REGION_COLOUR, 0.4)


# --- figures --------------------------------------------------------------------------------------


def coarse_to_fine(case: Case) -> Figure:
    """A coarse prediction, the box around one of its organs with the fine stage's tiles, and the fine one."""
    assert case.labels is not None
    region = region_of(BoxAround(of="coarse", labels=("pancreas",), margin_mm=15), case)
    coarse = region.grid.with_spacing(COARSE_MM)
    fine = case.image.grid.with_spacing(FINE_MM)
    cover = tiling.cover(region, TILE, (0, 0, 0), 0.25)
    figure, (first, second, third) = _figure(3)
    _draw_scan(first, resample(case.image, coarse), "coarse: the whole scan, 8 mm voxels")
    _draw_labels(first, resample_labels(case.labels, coarse))
    _draw_scan(second, case.image, f"a box around its pancreas: {len(cover.tiles)} tiles")
    for tile in cover.tiles:
        _outline(second, tile.inner, fine, edgecolor=TILE_COLOUR, linewidth=1.4)
    _outline(second, region.box, fine, edgecolor=REGION_COLOUR, linewidth=2, linestyle="--")
    within = resample(case.image, fine.crop(region.box))
    _draw_scan(third, within, "fine: the region, 3 mm voxels")
    prediction = resample_labels(case.labels, within.grid)
    only = np.where(prediction.data == prediction.schema.class_of("pancreas"), prediction.data, np.uint8(0))
    _draw_labels(third, LabelMap(only, within.grid, prediction.schema))
    return figure


def regions(case: Case) -> Figure:
    """Three kinds of region in one scan."""
    specs: Mapping[str, RoiSpec] = {
        "body_mask": BodyMask(),
        "dilated_foreground, radius_vox: 3": DilatedForeground(of="coarse"),
        "box of the pancreas, margin_mm: 15": BoxAround(of="coarse", labels=("pancreas",), margin_mm=15),
    }
    figure, panels = _figure(3)
    for panel, (name, spec) in zip(panels, specs.items(), strict=True):
        found = region_of(spec, case)
        share = found.voxels / found.grid.box.voxels
        _draw_scan(panel, case.image, f"{name}\n{share:.0%} of the scan")
        _draw_region(panel, found)
    return figure


def tiles(case: Case) -> Figure:
    """The tiles of one row over a region, and the weight of each prediction along a line through them."""
    region = region_of(DilatedForeground(of="coarse"), case)
    cover = tiling.cover(region, TILE, (0, 0, 0), 0.0)
    plane = _plane(region.grid)
    row = next(row for k, row in cover.rows if k <= plane < k + TILE[2])
    figure, (left, right) = _figure(2, 4.6, 3.9)
    count, of_box = len(cover.tiles), len(cover.tiles) + cover.skipped
    title = (
        f"{len(row)} of the {count} tiles are in this slice;\nwithout the region, the box would need {of_box}"
    )
    _draw_scan(left, case.image, title)
    _draw_region(left, region)
    for tile in row:
        _outline(left, tile.inner, region.grid, edgecolor=TILE_COLOUR, linewidth=1.4)
    _draw_shares(right)
    return figure


def _draw_shares(panel: Axes) -> None:
    """Four tiles in a line, each sharing half of its size with the next: their shares in the mean."""
    count, size = 4, TILE[0]
    one = tiling.importance_map((size, 1, 1))[:, 0, 0]
    weights = np.zeros((count, size * (count + 1) // 2))
    for number, weight in enumerate(weights):
        weight[number * size // 2 : number * size // 2 + size] = one
    shares = weights / weights.sum(axis=0)
    for number, share in enumerate(shares):
        panel.stackplot(
            np.arange(share.size), shares[:number].sum(axis=0), share, colors=["none", COLOURS[number]]
        )
    panel.set(
        xlim=(0, weights.shape[1] - 1),
        ylim=(0, 1),
        xlabel="voxels along four tiles that share half of their size",
    )
    panel.set_ylabel("share in the mean")
    panel.set_title("weight of each tile", fontsize=10, color=_TEXT)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def wrong_voxels(
    prediction: Mask, reference: Mask, region: Mask, place: OrganRegion, grid: Grid
) -> dict[str, Mask]:
    """By part of the loss, which voxels are in it; ``attribute`` only counts them."""
    outside = reference & ~prediction & ~region
    rest = (prediction ^ reference) & ~outside
    reach = [
        max(BOUNDARY_MM, own, stage) for own, stage in zip(grid.spacing_mm, place.spacing_mm, strict=True)
    ]
    sampling = np.array(grid.spacing_mm) / reach
    depth = ndimage.distance_transform_edt(reference, sampling)
    depth += ndimage.distance_transform_edt(~reference, sampling)
    near = rest & (depth <= 1 + 1e-6)
    nothing = np.zeros_like(reference)
    return {
        "lost_coarse": nothing if place.found else outside,
        "lost_region": outside if place.found else nothing,
        "lost_boundary": near,
        "lost_elsewhere": rest & ~near,
    }


def losses(case: Case) -> Figure:
    """Two organs of a prediction with faults, each wrong voxel in the colour of its part."""
    assert case.labels is not None
    grid = case.image.grid
    box = grid.box_of(
        Grid.from_spacing((188, 124, 150), (1.0, 1.0, 1.0), (-88.0, -62.0, -60.0)),
        Box((0, 0, 0), (188, 124, 150)),
    )
    region = Region(grid, box).mask_in(grid.box)
    figure, panels = _figure(2, 4.9, 4.0)
    for panel, (organ, found) in zip(panels, {"liver": True, "spleen": False}.items(), strict=True):
        reference = case.labels.data == case.labels.schema.class_of(organ)
        prediction = (np.roll(reference, -1, axis=0) | (_ball(grid) if found else False)) & region
        place = OrganRegion(region, found, grid.spacing_mm)
        said = attribute(prediction, reference, grid.spacing_mm, place)
        wrong = wrong_voxels(prediction, reference, region, place, grid)
        _check(said, wrong, int(prediction.sum() + reference.sum()))
        lost = sum(getattr(said, part) for part in LOSSES)
        how = "found" if found else "missed"
        _draw_scan(panel, case.image, f"{organ}, {how} by the coarse stage: Dice {1 - lost:.2f}")
        for (part, mask), colour in zip(wrong.items(), PARTS.values(), strict=True):
            _tint(panel, mask, grid, colour, 1.0)
            panel.set_xlabel(f"{panel.get_xlabel()}   {part} {getattr(said, part):.3f}".strip(), fontsize=7)
        _draw_contour(panel, reference, grid)
        panel.set_ylim(-110, 105)  # without table and air
        _outline(panel, box, grid, edgecolor=REGION_COLOUR, linewidth=1.8, linestyle="--")
    entries: list[Artist] = [Patch(color=colour, label=name) for name, colour in PARTS.items()]
    entries.append(Line2D([], [], color="black", label="reference"))
    entries.append(Line2D([], [], color=REGION_COLOUR, linestyle="--", label="region"))
    figure.legend(handles=entries, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


def _ball(grid: Grid) -> Mask:
    """Something round in the region, far from liver and spleen, that a network might take for either."""
    centre = grid.index((-30.0, 30.0, HEIGHT_MM))
    away = [(np.arange(n) - c) * s for n, c, s in zip(grid.shape, centre, grid.spacing_mm, strict=True)]
    x, y, z = np.ix_(*away)
    out: Mask = x * x + y * y + z * z < 13.0**2
    return out


def _draw_contour(panel: Axes, mask: Mask, grid: Grid) -> None:
    first, last = grid.world((0, 0, 0)), grid.world(np.array(grid.shape) - 1)
    x, y = (np.linspace(first[axis], last[axis], grid.shape[axis]) for axis in (0, 1))
    here = mask[:, :, _plane(grid)].T.astype(float)
    panel.contour(x, y, here, levels=[0.5], colors=["black"], linewidths=1)


def _check(said: Attribution, wrong: Mapping[str, Mask], total: int) -> None:
    """The picture shows what is counted."""
    for part, mask in wrong.items():
        assert np.isclose(np.count_nonzero(mask) / total, getattr(said, part)), part


def packages() -> Figure:
    """The packages as layers, each with what it says of itself; a layer imports only what is below it."""
    rows = [[_described(name, len(row)) for name in row] for row in layers()]
    heights = [0.39 + 0.16 * max(text.count("\n") + (len(row) > 1) for _, text in row) for row in rows]
    tops = np.cumsum([0.0, *heights])
    figure = Figure(figsize=(WIDE, tops[-1]), facecolor="white")
    FigureCanvasAgg(figure)
    panel = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    panel.set(xlim=(0, WIDE), ylim=(tops[-1], 0))
    panel.axis("off")
    red, green, blue = to_rgb(LAYER_COLOUR)
    for row, top, height in zip(rows, tops[:-1], heights, strict=True):
        shade = 0.1 + 0.5 * top / tops[-1]
        colour = (1 - shade * (1 - red), 1 - shade * (1 - green), 1 - shade * (1 - blue))
        width = (WIDE - 0.7) / len(row)
        for column, (name, text) in enumerate(row):
            box = Rectangle((0.6 + column * width, top + 0.03), width - 0.08, height - 0.06, color=colour)
            panel.add_patch(box)
            _label(panel, box, name, text, beside=len(row) == 1)
    arrow = {"arrowstyle": "-|>", "color": _TEXT, "linewidth": 1.6}
    panel.annotate("", xy=(0.38, tops[-1] - 0.1), xytext=(0.38, 0.1), arrowprops=arrow)
    panel.text(0.2, tops[-1] / 2, "imports", rotation=90, va="center", ha="center", color=_TEXT, fontsize=10)
    return figure


def _described(name: str, siblings: int) -> tuple[str, str]:
    """A package's name, and its description in lines that fit into one of so many boxes in a row."""
    return name.removeprefix("zoomseg."), textwrap.fill(
        description(name), 110 if siblings == 1 else 125 // siblings
    )


def _label(panel: Axes, box: Rectangle, name: str, text: str, beside: bool) -> None:
    """Name and description in a package's box: beside each other, or one below the other."""
    x, y, height = box.get_x() + 0.12, box.get_y(), box.get_height()
    panel.text(
        x, y + (height / 2 if beside else 0.15), name, weight="bold", fontsize=11, va="center", color=_TEXT
    )
    x, y = (x + 1.35, y + height / 2) if beside else (x, y + (height + 0.22) / 2)
    panel.text(x, y, text, fontsize=8.5, linespacing=1.2, va="center", color=_TEXT)


FIGURES: Mapping[str, Callable[[Case], Figure]] = {
    "coarse-to-fine": coarse_to_fine,
    "regions": regions,
    "tiles": tiles,
    "error-attribution": losses,
}


def draw(folder: Path) -> None:
    """Write every figure as a PNG of few colours."""
    folder.mkdir(exist_ok=True)
    case = phantom_case(3)
    drawn = {name: figure(case) for name, figure in FIGURES.items()} | {"packages": packages()}
    for name, figure in drawn.items():
        # Without the version of matplotlib, equal figures are equal files.
        figure.savefig(folder / f"{name}.png", dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
