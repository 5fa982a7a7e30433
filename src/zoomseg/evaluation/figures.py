"""The report's pictures as PNG: Dice by organ, contours in three planes, training curves.

Figures are created without pyplot, so drawing has no global state and needs no display. matplotlib is
imported by the drawing functions, as the base installation does not include it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zoomseg.core.extras import how_to_install, installed
from zoomseg.core.geometry import Grid, Index3, Vector3
from zoomseg.evaluation.metrics import FarthestPoint
from zoomseg.inference.organ_pictures import (
    PLANES,
    DisplayWindow,
    Plane,
    Range,
    bar_mm,
    centre_of,
    slice_name,
)

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Mask = npt.NDArray[np.bool_]
_Draw = Callable[["Axes", Mask, Mask, tuple[float, float]], None]

REFERENCE_COLOUR = "#3fc1f2"
PREDICTION_COLOUR = "#ff9d2e"
AGREEMENT_COLOUR = "#e6ebef"
REGION_COLOUR = "#f26d8d"
MARK_COLOUR = "#f2d16b"
_INK = "#1d2733"
_MUTED = "#66727f"
_ACCENT = "#1f6f8b"
_DARK = "#10151b"
COLOURS = (_ACCENT, "#d9822b", "#5b8c5a", "#8e5ea2", "#b04a5a", "#4a5a6a")
"""Colours of lines in one plot."""

CONTEXT_MM = 25.0
"""Margin around the organ on each side."""
SMALLEST_VIEW_MM = 90.0


def without_figures() -> tuple[str, ...]:
    """The reason why nothing can be drawn here; empty if it can."""
    if installed("matplotlib"):
        return ()
    return (f"no plots and contours, as matplotlib is not installed: {how_to_install('matplotlib')}",)


def _figure(width: float, height: float, **options: Any) -> Figure:
    """A figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), **options)


def _png(figure: Figure, dpi: int) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    out = io.BytesIO()
    # Without the version of matplotlib, equal figures are equal files.
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


# --- contours in three planes ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OrganView:
    """One organ of one case, all ``[I, J, K]`` on one RAS+ grid; prediction or reference is not empty."""

    prediction: Mask
    reference: Mask
    grid: Grid
    stored: Grid | None = None
    """As in ``organ_pictures.slice_name``."""
    image: npt.NDArray[Any] | None = None
    window: DisplayWindow | None = None
    """For the image, in every panel."""
    region: Mask | None = None
    """Region of the stage that predicts the organ."""
    farthest: FarthestPoint | None = None
    """Where the surfaces are farthest apart."""

    def slice_name(self, plane: Plane, at: int) -> str:
        return slice_name(plane, at, self.grid, self.stored)


def overlay(view: OrganView) -> bytes:
    """Contours, and below them the difference, of one organ in three planes through its centre; below these
    contours in the planes through the farthest point, if there is one. Without an image, the background is
    black."""
    shown = view.reference if view.reference.any() else view.prediction
    centre = centre_of(shown)
    rows: list[tuple[Index3, _Draw]] = [(centre, _draw_contours), (centre, _draw_difference)]
    if view.farthest is not None:
        rows.append((view.farthest.voxel, _draw_contours))
    figure = _figure(12, 0.9 + 3.9 * len(rows), facecolor=_DARK)
    # Space for the titles above, the legend below and the letters of direction around each panel.
    axes = figure.subplots(
        len(rows),
        3,
        squeeze=False,
        gridspec_kw={
            "left": 0.03, "right": 0.97, "top": 1 - 0.4 / figure.get_figheight(),
            "bottom": 0.6 / figure.get_figheight(), "wspace": 0.1, "hspace": 0.14,
        },
    )  # fmt: skip
    for panels, (at, draw) in zip(axes, rows, strict=True):
        for panel, plane in zip(panels, PLANES, strict=True):
            _draw_panel(panel, view, plane, at, draw)
    if view.farthest is not None:
        for panel, plane in zip(axes[-1], PLANES, strict=True):
            _mark(panel, plane, view.farthest, view.grid.spacing_mm)
    _legend(figure, view.region is not None, view.farthest)
    return _png(figure, dpi=100)


def _draw_panel(panel: Axes, view: OrganView, plane: Plane, at: Index3, draw: _Draw) -> None:
    spacing_mm, here = view.grid.spacing_mm, at[plane.across]
    sides = _window(_in_planes(view.prediction | view.reference, at), spacing_mm)
    seen = (sides[plane.horizontal], sides[plane.vertical])
    spacing = (spacing_mm[plane.horizontal], spacing_mm[plane.vertical])
    _prepare(panel, plane, seen)
    if view.image is not None and view.window is not None:
        _draw_image(panel, plane.slice(view.image, here), view.window, spacing)
    draw(panel, plane.slice(view.prediction, here), plane.slice(view.reference, here), spacing)
    if view.region is not None:
        _contour(panel, plane.slice(view.region, here), spacing, REGION_COLOUR, "dashed")
    _scale_bar(panel, seen)
    panel.set_title(view.slice_name(plane, here), color="#c9d2da", fontsize=11, pad=6)


def _scale_bar(panel: Axes, seen: tuple[Range, Range]) -> None:
    """A scale bar at the lower left, where the horizontal axis has its highest numbers."""
    from matplotlib.patheffects import withStroke

    (low, high), (bottom, top) = seen
    mm, edge = bar_mm(high - low), 0.05 * (high - low)
    outline = [withStroke(linewidth=3.5, foreground="black")]
    y = bottom + 0.05 * (top - bottom)
    panel.plot((high - edge, high - edge - mm), (y, y), color="white", linewidth=2, path_effects=outline)
    panel.annotate(
        f"{mm} mm", (high - edge, y), (0, 3), textcoords="offset points", color="white", fontsize=10,
        path_effects=[withStroke(linewidth=2.5, foreground="black")],
    )  # fmt: skip


def _mark(panel: Axes, plane: Plane, point: FarthestPoint, spacing_mm: Vector3) -> None:
    """A ring around the farthest point."""
    x, y = ((point.voxel[a] + 0.5) * spacing_mm[a] for a in (plane.horizontal, plane.vertical))
    panel.plot(
        x, y, "o", markersize=16, markerfacecolor="none", markeredgecolor=MARK_COLOUR, markeredgewidth=2
    )


def _in_planes(mask: Mask, at: Index3) -> Mask:
    """The mask in the slices through ``at``: other parts must not widen the view."""
    shown = np.zeros_like(mask)
    for plane in PLANES:
        where = tuple(slice(at[a], at[a] + 1) if a == plane.across else slice(None) for a in range(3))
        shown[where] = mask[where]
    return shown


def _window(mask: Mask, spacing_mm: Vector3) -> list[tuple[float, float]]:
    """Per axis, the range (mm from the first voxel's outer face) to be shown: a cube around the organ, within
    the scan."""
    low, high, extent = [], [], []
    for axis in range(3):
        planes = np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis)))
        low.append(planes[0] * spacing_mm[axis])
        high.append((planes[-1] + 1) * spacing_mm[axis])
        extent.append(mask.shape[axis] * spacing_mm[axis])
    widest = max(h - w for w, h in zip(low, high, strict=True))
    half = max(widest + 2 * CONTEXT_MM, SMALLEST_VIEW_MM) / 2
    out = []
    for w, h, e in zip(low, high, extent, strict=True):
        middle = (w + h) / 2
        out.append((max(0.0, middle - half), min(e, middle + half)))
    return out


def _prepare(panel: Axes, plane: Plane, seen: tuple[Range, Range]) -> None:
    from matplotlib.patheffects import withStroke

    panel.set_facecolor("black")
    panel.set_xticks([])
    panel.set_yticks([])
    for spine in panel.spines.values():
        spine.set_visible(False)
    panel.set_xlim(*reversed(seen[0]))
    panel.set_ylim(*seen[1])
    panel.set_aspect("equal", anchor="N")
    panel.set_autoscale_on(False)
    places = (
        (0.02, 0.5, "left", "center"),
        (0.98, 0.5, "right", "center"),
        (0.5, 0.98, "center", "top"),
        (0.5, 0.02, "center", "bottom"),
    )
    for letter, (x, y, horizontal, vertical) in zip(plane.edges, places, strict=True):
        panel.text(
            x, y, letter, transform=panel.transAxes, ha=horizontal, va=vertical, color="#f2d16b",
            fontsize=11, fontweight="bold", zorder=10,
            path_effects=[withStroke(linewidth=2.5, foreground="black")],
        )  # fmt: skip


def _extent(shape: tuple[int, ...], spacing: tuple[float, float]) -> tuple[float, float, float, float]:
    return (0.0, shape[0] * spacing[0], 0.0, shape[1] * spacing[1])


def _draw_image(
    panel: Axes, grey: npt.NDArray[Any], window: DisplayWindow, spacing: tuple[float, float]
) -> None:
    panel.imshow(
        grey.T, cmap="gray", vmin=window.low, vmax=window.high, origin="lower",
        extent=_extent(grey.shape, spacing), interpolation="bilinear", aspect="equal",
    )  # fmt: skip


def _draw_contours(panel: Axes, prediction: Mask, reference: Mask, spacing: tuple[float, float]) -> None:
    for mask, colour in ((reference, REFERENCE_COLOUR), (prediction, PREDICTION_COLOUR)):
        _contour(panel, mask, spacing, colour, "solid")


def _contour(panel: Axes, mask: Mask, spacing: tuple[float, float], colour: str, style: str) -> None:
    if mask.any():
        padded = np.pad(mask, 1).astype(np.float32)  # so that a contour closes at the scan's border
        x, y = ((np.arange(n) - 0.5) * s for n, s in zip(padded.shape, spacing, strict=True))
        panel.contour(x, y, padded.T, levels=[0.5], colors=[colour], linewidths=1.6, linestyles=[style])


def _draw_difference(panel: Axes, prediction: Mask, reference: Mask, spacing: tuple[float, float]) -> None:
    from matplotlib.colors import to_rgb

    colours = np.zeros((*prediction.shape, 4))
    for mask, colour, opacity in (
        (prediction & reference, AGREEMENT_COLOUR, 0.4),
        (reference & ~prediction, REFERENCE_COLOUR, 0.8),
        (prediction & ~reference, PREDICTION_COLOUR, 0.8),
    ):
        colours[mask] = (*to_rgb(colour), opacity)
    panel.imshow(
        colours.transpose(1, 0, 2), origin="lower", extent=_extent(prediction.shape, spacing),
        interpolation="nearest", aspect="equal",
    )  # fmt: skip


def _legend(figure: Figure, region: bool, farthest: FarthestPoint | None) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[Artist] = [
        Patch(color=REFERENCE_COLOUR, label="reference (difference: false negative)"),
        Patch(color=PREDICTION_COLOUR, label="prediction (difference: false positive)"),
        Patch(color=AGREEMENT_COLOUR, alpha=0.6, label="difference: both"),
    ]
    if region:
        entries.append(Line2D([], [], color=REGION_COLOUR, linestyle="dashed", label="region of the stage"))
    if farthest is not None:
        label = f"farthest apart: {farthest.distance_mm:.1f} mm"
        entries.append(
            Line2D([], [], color="none", marker="o", markerfacecolor="none", markeredgecolor=MARK_COLOUR,
                   markersize=10, label=label)
        )  # fmt: skip
    figure.legend(
        handles=entries,
        loc="lower center",
        ncols=len(entries),
        frameon=False,
        labelcolor="#c9d2da",
        fontsize=11,
    )


# --- plots ----------------------------------------------------------------------------------------


def _plot(height: float) -> Figure:
    return _figure(9.5, height, facecolor="white", layout="constrained")


def _plain(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#c5ced6")
    axes.tick_params(colors=_MUTED, length=0, labelsize=10)
    axes.set_axisbelow(True)


def literal(name: str) -> str:
    """A literal name: text between two dollar signs would be a formula, which may be malformed, and legends
    would omit a name that begins with an underscore."""
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def dice_by_organ(dice: Mapping[str, Sequence[float]]) -> bytes:
    """Box plot of Dice per organ, with a dot per case; organs without a case are left empty."""
    names = list(dice)
    figure = _plot(0.9 + 0.42 * len(names))
    axes = figure.subplots()
    _plain(axes)
    rows = np.arange(len(names))[::-1]
    jitter = np.random.default_rng(0)
    for row, name in zip(rows, names, strict=True):
        values = np.asarray(dice[name])
        if values.size == 0:
            continue
        axes.boxplot(
            [values], positions=[row], orientation="horizontal", widths=0.55, showfliers=False,
            patch_artist=True, boxprops={"facecolor": "#d7e8ee", "edgecolor": _ACCENT},
            medianprops={"color": _INK, "linewidth": 1.8}, whiskerprops={"color": _ACCENT},
            capprops={"color": _ACCENT}, manage_ticks=False,
        )  # fmt: skip
        spread = jitter.uniform(-0.16, 0.16, values.size)
        axes.scatter(values, row + spread, s=13, color=_ACCENT, alpha=0.65, linewidths=0, zorder=3)
    axes.set_yticks(rows, [literal(name) for name in names], color=_INK, fontsize=11)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(-0.01, 1.01)
    axes.set_xticks(np.linspace(0, 1, 11))
    axes.grid(axis="x", color="#e8edf1")
    axes.set_xlabel("Dice", color=_MUTED)
    return _png(figure, dpi=150)


def losses_by_organ(losses: Mapping[str, Sequence[float]], parts: Mapping[str, str]) -> bytes:
    """Stacked bars: per organ the mean Dice lost in each part, NaN if unknown.

    Args:
        losses: by organ, one number per part.
        parts: names of the parts, and their colours.
    """
    names = list(losses)
    known = np.array([losses[name] for name in names], dtype=float)
    values = np.nan_to_num(known)
    figure = _plot(1.5 + 0.42 * len(names))
    axes = figure.subplots()
    _plain(axes)
    rows, done = np.arange(len(names))[::-1], np.zeros(len(names))
    for column, (part, colour) in zip(values.T, parts.items(), strict=True):
        axes.barh(rows, column, left=done, height=0.6, color=colour, label=part)
        done = done + column
    for row, total, known_total in zip(rows, done, ~np.isnan(known).any(axis=1), strict=True):
        text = f"{total:.3f}" if known_total else "\N{EN DASH}"
        at = (total, row)
        axes.annotate(text, at, (5, 0), textcoords="offset points", va="center", color=_MUTED, fontsize=10)
    axes.set_yticks(rows, [literal(name) for name in names], color=_INK, fontsize=11)
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.set_xlim(0, max(1.12 * float(done.max()), 0.02))
    axes.grid(axis="x", color="#e8edf1")
    axes.set_xlabel("Dice lost", color=_MUTED)
    figure.legend(loc="outside upper left", ncols=len(parts), frameon=False, fontsize=10, labelcolor=_INK)
    return _png(figure, dpi=150)


@dataclass(frozen=True)
class Interval:
    """A number with its interval, NaN if either does not exist; ``filled``: whether it is highlighted."""

    value: float
    low: float
    high: float
    filled: bool


def differences_by_organ(
    organs: Sequence[str], lines: Mapping[str, Mapping[str, Interval]], what: str
) -> bytes:
    """Per organ a dot with its interval for each of ``lines`` (by name, then organ), beside a line at 0."""
    step = 0.26
    figure = _plot(1.2 + len(organs) * (0.2 + step * len(lines)))
    axes = figure.subplots()
    _plain(axes)
    rows = -np.arange(len(organs)) * (0.2 + step * len(lines)) / (0.2 + step)
    axes.axvline(0, color=_MUTED, linewidth=1)
    for number, (name, found) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        offset = (0.5 * (len(lines) - 1) - number) * step / (0.2 + step)
        for row, organ in zip(rows + offset, organs, strict=True):
            if organ not in found or np.isnan(found[organ].value):
                continue
            one = found[organ]
            axes.plot((one.low, one.high), (row, row), color=colour, linewidth=1.8)
            face = colour if one.filled else "white"
            axes.plot(one.value, row, "o", color=colour, markerfacecolor=face, markersize=6.5)
        axes.plot([], [], "o-", color=colour, label=literal(name))
    axes.set_yticks(rows, [literal(organ) for organ in organs], color=_INK, fontsize=11)
    axes.set_ylim(rows[-1] - 0.8, 0.8)
    axes.grid(axis="x", color="#e8edf1")
    axes.set_xlabel(literal(what), color=_MUTED)
    figure.legend(loc="outside upper left", ncols=2, frameon=False, fontsize=10, labelcolor=_INK)
    return _png(figure, dpi=150)


@dataclass(frozen=True)
class Curve:
    """One line of a training log: a name, steps, and loss and Dice at each."""

    name: str
    steps: tuple[float, ...]
    loss: tuple[float, ...]
    dice: tuple[float, ...]


def training_curves(curves: Sequence[Curve]) -> bytes:
    """Loss and Dice over training steps, one line per curve."""
    figure = _plot(3.6)
    left, right = figure.subplots(1, 2)
    for axes, metric in ((left, "loss"), (right, "dice")):
        _plain(axes)
        axes.grid(axis="y", color="#e8edf1")
        axes.set_xlabel("step", color=_MUTED)
        axes.set_title("Loss" if metric == "loss" else "Dice on patches", color=_INK, fontsize=12, loc="left")
        for i, curve in enumerate(curves):
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(curve.steps, getattr(curve, metric), color=colour, linewidth=1.6, label=curve.name)
    right.set_ylim(0, 1)
    right.legend(frameon=False, fontsize=9, labelcolor=_INK)
    return _png(figure, dpi=150)
