"""Pictures: the correct slices, orientation and colours."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from PIL import Image

from zoomseg.core.geometry import Grid
from zoomseg.evaluation import figures
from zoomseg.evaluation.figures import (
    Curve,
    OrganView,
    dice_by_organ,
    losses_by_organ,
    overlay,
    training_curves,
)
from zoomseg.evaluation.metrics import FarthestPoint
from zoomseg.inference.organ_pictures import DisplayWindow

SPACING = (1.0, 1.0, 5.0)
SHAPE = (60, 50, 12)


def masks() -> tuple[np.ndarray, np.ndarray]:
    prediction, reference = np.zeros((2, *SHAPE), dtype=bool)
    reference[10:30, 20:40, 3:7] = True
    prediction[14:34, 20:40, 4:8] = True
    return prediction, reference


def view(prediction: np.ndarray, reference: np.ndarray, **more: object) -> OrganView:
    spacing = more.pop("spacing", SPACING)
    return OrganView(prediction, reference, Grid.from_spacing(prediction.shape, spacing), **more)


def letters(panel) -> str:
    return "".join(text.get_text() for text in panel.texts if len(text.get_text()) == 1)


def pixels(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """Figures before they are encoded."""
    made: list[Figure] = []
    to_png = figures._png
    monkeypatch.setattr(figures, "_png", lambda figure, dpi: made.append(figure) or to_png(figure, dpi))
    return made


def test_radiological_convention(drawn):
    """R on the left, A at the top or left, S at the top, in every panel."""
    overlay(view(*masks()))
    axial, coronal, sagittal = drawn[0].axes[:3]
    for panel, edges in ((axial, "RLAP"), (coronal, "RLSI"), (sagittal, "APSI")):
        assert letters(panel) == edges
        left, right = panel.get_xlim()
        bottom, top = panel.get_ylim()
        # Array axes run to the patient's right, front and head: right and front belong on the left.
        assert left > right
        assert top > bottom


def test_panels_show_the_organ_in_millimetres(drawn):
    overlay(view(*masks()))
    coronal = drawn[0].axes[1]
    low, high = sorted(coronal.get_ylim())
    assert low <= 15
    assert high >= 40  # slices 3 to 8 of 5 mm
    assert coronal.get_aspect() == 1.0


def test_contour_lies_on_the_voxel_edges(drawn):
    overlay(view(*masks()))
    axial = drawn[0].axes[0]
    reference = axial.collections[0].get_paths()[0].vertices
    assert (reference.min(axis=0).tolist(), reference.max(axis=0).tolist()) == ([10.0, 20.0], [30.0, 40.0])


def test_the_region_is_drawn_in_all_panels(drawn):
    prediction, reference = masks()
    region = np.zeros(SHAPE, dtype=bool)
    region[8:35, 15:45, 2:10] = True
    overlay(view(prediction, reference, region=region))
    for panel in drawn[0].axes:
        assert to_hex(panel.collections[-1].get_edgecolor()[0]) == figures.REGION_COLOUR
    axial = drawn[0].axes[0].collections[-1].get_paths()[0].vertices
    assert (axial.min(axis=0).tolist(), axial.max(axis=0).tolist()) == ([8.0, 15.0], [35.0, 45.0])
    assert "region of the stage" in [text.get_text() for text in drawn[0].legends[0].get_texts()]


def test_difference_shows_each_kind_of_voxel(drawn):
    overlay(view(*masks()))
    axial = np.asarray(drawn[0].axes[3].images[-1].get_array())  # [vertical, horizontal, RGBA]

    def voxels(colour: str) -> int:
        return int((axial == np.array([*to_rgb(colour), axial[..., 3].max()])).all(axis=-1).sum())

    assert voxels(figures.REFERENCE_COLOUR) == 4 * 20
    assert voxels(figures.PREDICTION_COLOUR) == 4 * 20
    assert int((axial[..., 3] > 0).sum()) == 24 * 20


def test_view_is_not_widened_by_what_is_not_shown(drawn):
    prediction, reference = np.zeros((2, 400, 50, 40), dtype=bool)
    reference[10:30, 20:40, 3:9] = True
    prediction[390:, :5, 35:] = True
    overlay(view(prediction, reference, spacing=(1.0, 1.0, 1.0)))
    assert max(drawn[0].axes[0].get_xlim()) < 100


def test_image_is_drawn_under_the_contours():
    prediction, reference = masks()
    ramp = np.broadcast_to(np.arange(SHAPE[0])[:, None, None], SHAPE).astype(np.float32)
    shown = view(prediction, reference, image=ramp, window=DisplayWindow(0, 60))
    without, with_ = (pixels(overlay(one)) for one in (view(prediction, reference), shown))
    assert with_.mean() > without.mean() + 20


def test_every_panel_has_the_same_window(drawn):
    """Even if it shows only air."""
    prediction, reference = masks()
    image = np.zeros(SHAPE, dtype=np.float32)
    image[:, :, 8:] = 1000
    farthest = FarthestPoint((33, 39, 7), 12.0)
    overlay(
        view(prediction, reference, image=image, window=DisplayWindow(-160, 240, "HU"), farthest=farthest)
    )
    assert len(drawn[0].axes) == 9
    assert {panel.images[0].get_clim() for panel in drawn[0].axes} == {(-160, 240)}


def test_panels_name_their_slice_and_have_a_scale_bar(drawn):
    """The reference's voxels are i 10 to 29, j 20 to 39, k 3 to 6."""
    overlay(view(*masks()))
    titles = [panel.get_title() for panel in drawn[0].axes[:3]]
    assert titles == ["axial, k = 4, z = 20 mm", "coronal, j = 29, y = 29 mm", "sagittal, i = 19, x = 19 mm"]
    axial = drawn[0].axes[0]
    (bar,) = (line for line in axial.lines if line.get_color() == "white")
    assert abs(np.ptp(bar.get_xdata())) == 20
    assert "20 mm" in [text.get_text() for text in axial.texts]


def test_the_last_row_shows_where_the_surfaces_are_farthest_apart(drawn):
    """At any distance from the organ's centre."""
    prediction, reference = np.zeros((2, *SHAPE), dtype=bool)
    reference[10:20, 20:30, 3:7] = prediction[10:20, 20:30, 3:7] = True
    prediction[50, 45, 10] = True
    overlay(view(prediction, reference, farthest=FarthestPoint((50, 45, 10), 45.6)))
    for panel, (x, y) in zip(drawn[0].axes[6:], ((50.5, 45.5), (50.5, 52.5), (45.5, 52.5)), strict=True):
        (ring,) = (line for line in panel.lines if line.get_marker() == "o")
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (x, y)
        low, high = sorted(panel.get_xlim())
        assert low < x < high
        assert panel.collections, "the contour around it"
    assert drawn[0].axes[6].get_title() == "axial, k = 10, z = 50 mm"
    assert "farthest apart: 45.6 mm" in [text.get_text() for text in drawn[0].legends[0].get_texts()]


@pytest.mark.parametrize(("which", "colour"), [(0, figures.PREDICTION_COLOUR), (1, figures.REFERENCE_COLOUR)])
def test_organ_that_only_one_map_has(drawn, which, colour):
    shown = [np.zeros(SHAPE, dtype=bool)] * 2
    shown[which] = masks()[which]
    overlay(view(*shown))
    for panel in drawn[0].axes[:3]:
        (contour,) = panel.collections
        assert contour.get_edgecolor()[0, :3].tolist() == pytest.approx(to_rgb(colour))


def test_constant_image_and_whole_volume():
    ones = np.ones((5, 4, 1), dtype=bool)
    shown = view(ones, ones, image=np.zeros((5, 4, 1)), window=DisplayWindow(0, 1))
    assert overlay(shown)[:8] == b"\x89PNG\r\n\x1a\n"


def test_box_plot_has_a_dot_per_case_and_a_row_per_organ(drawn):
    dice_by_organ({"liver": [0.9, 0.95, 0.8], "spleen": [], "aorta": [0.5]})
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["liver", "spleen", "aorta"]
    dots = np.concatenate([c.get_offsets() for c in axes.collections])
    assert dots[:, 0].tolist() == [0.9, 0.95, 0.8, 0.5]
    assert np.rint(dots[:, 1]).tolist() == [2, 2, 2, 0]


def test_losses_are_stacked_in_order(drawn):
    losses = {"liver": [0.125, 0.0, 0.25], "spleen": [float("nan")] * 3}
    losses_by_organ(losses, {"coarse": "#000000", "region": "#777777", "boundary": "#ff0000"})
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["liver", "spleen"]
    liver, spleen = ([(bars[n].get_x(), bars[n].get_width()) for bars in axes.containers] for n in (0, 1))
    assert liver == [(0, 0.125), (0.125, 0.0), (0.125, 0.25)]
    assert spleen == [(0, 0), (0, 0), (0, 0)]
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == ["coarse", "region", "boundary"]
    assert [text.get_text() for text in axes.texts] == ["0.375", "\N{EN DASH}"]


def test_differences_have_a_dot_and_an_interval_per_organ_and_name(drawn):
    """A name with two dollar signs would be interpreted as a formula, which is malformed here."""
    names, missing = ("liver", r"$\bad{$"), figures.Interval(*3 * (float("nan"),), filled=False)
    one = {names[0]: figures.Interval(0.1, 0.0, 0.3, filled=True), names[1]: missing}
    two = {names[0]: figures.Interval(-0.2, -0.4, 0.1, filled=False)}
    figures.differences_by_organ(names, {"one": one, "two": two}, "Dice")
    dots = [line for line in drawn[0].axes[0].lines if line.get_marker() == "o" and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in dots] == [0.1, -0.2]
    assert dots[0].get_markerfacecolor() == dots[0].get_color()
    assert dots[1].get_markerfacecolor() == "white"
    assert dots[0].get_ydata()[0] > dots[1].get_ydata()[0], "in order of the names, from above"
    spans = [tuple(line.get_xdata()) for line in drawn[0].axes[0].lines if line.get_marker() == "None"]
    assert spans == [(0, 0), (0.0, 0.3), (-0.4, 0.1)], "the line at 0, then the intervals"


def test_equal_figures_are_equal_bytes():
    curve = [Curve("coarse", (0.0, 1.0), (2.0, 1.0), (0.1, 0.5))]
    assert training_curves(curve) == training_curves(curve)


def test_curves_show_loss_and_dice(drawn):
    training_curves([Curve("coarse", (0.0, 10.0), (2.0, 1.0), (0.1, 0.5))])
    loss, dice = (axes.get_lines()[0] for axes in drawn[0].axes)
    assert loss.get_xydata().tolist() == [[0.0, 2.0], [10.0, 1.0]]
    assert dice.get_xydata().tolist() == [[0.0, 0.1], [10.0, 0.5]]
