"""Take the pictures of real results and of pages.

    PYTHONPATH=tests python docs/screenshots.py CT DEMO [FOLDER]

CT is a scan whose licence allows pictures of it to be published: the README shows ``example_ct.nii.gz`` of
TotalSegmentator (Wasserthal et al. 2023, CC BY 4.0). DEMO is the folder that ``zoomseg demo`` wrote. Scans
and label maps stay outside the repository; only these pictures are part of it. Needs Chromium.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image
from scipy.special import entr

import zoomseg
from browser import chromium
from helpers.servers import server_process
from zoomseg.anatomy.colours import organ_colour
from zoomseg.api import Result
from zoomseg.core.geometry import Orientation
from zoomseg.core.resample import resample, resample_labels
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.io.bundle import ABDOMEN_CT, INCLUDED_MODELS
from zoomseg.io.scans import ScanInput, read_scan

FOLDER = Path(__file__).parent / "screenshots"
WINDOW_HU = (-160.0, 240.0)
SHOWN_MM = (1.0, 1.0, 1.0)
"""Spacing at which slices are drawn."""
AXIAL, CORONAL = 2, 1
BACKGROUND, TEXT = "#0d1117", "#e6ebef"
PAGE_SIZE, REPORT_SIZE = (1280, 960), (1100, 1150)
SHOWN_ORGAN = "pancreas"
"""The planes of the page go through it, as many others lie around it."""


# --- slices of a result -----------------------------------------------------------------------------


def result_picture(scan: Volume, labels: LabelMap) -> Figure:
    """An axial slice without and with the organs in their colours, and a coronal one with them."""
    image, organs = _upright(scan, labels)
    figure = _figure(11.0, 3.8)
    panels = figure.subplots(1, 3)
    axial, coronal = (_busiest(organs, axis) for axis in (AXIAL, CORONAL))
    for panel, axis, at in zip(panels, (AXIAL, AXIAL, CORONAL), (axial, axial, coronal), strict=True):
        _draw_slice(panel, image, axis, at)
    _draw_organs(panels[1], organs, AXIAL, axial)
    _draw_organs(panels[2], organs, CORONAL, coronal)
    lowest = int(np.flatnonzero((organs.data > 0).any((0, 1)))[0])
    panels[2].set_ylim(max(0, lowest - 20), organs.data.shape[2] - 1)
    names = [name for c, name in enumerate(organs.schema.names, start=1) if (organs.data == c).any()]
    figure.legend(
        handles=[Patch(color=_colour(name), label=name) for name in names],
        loc="outside lower center",
        ncols=6,
        frameon=False,
        labelcolor=TEXT,
        fontsize=9,
    )
    return figure


def uncertainty_picture(scan: Volume, result: Result) -> Figure:
    """An axial slice: the scan, its organs, and the entropy of the last stage's probabilities in bits."""
    found = result.probabilities
    assert found is not None
    entropy = entr(np.asarray(found.probabilities)).sum(axis=0) / np.log(2)
    image, organs = _upright(scan, result.labels)
    uncertain = resample(Volume(entropy[None].astype(np.float32), found.grid), image.grid)
    at = _busiest(organs, AXIAL)
    figure = _figure(11.0, 3.1)
    panels = figure.subplots(1, 3)
    for panel in panels:
        _draw_slice(panel, image, AXIAL, at)
    _draw_organs(panels[1], organs, AXIAL, at)
    bits = _slice(uncertain.data[0], AXIAL, at)
    shown = panels[2].imshow(
        np.ma.masked_less(bits, 0.1), cmap="inferno", vmin=0, vmax=2, origin="lower", alpha=0.85
    )
    bar = figure.colorbar(shown, ax=panels[2], shrink=0.8, label="entropy, bits")
    bar.ax.tick_params(colors=TEXT)
    bar.ax.yaxis.label.set_color(TEXT)
    return figure


def _upright(scan: Volume, labels: LabelMap) -> tuple[Volume, LabelMap]:
    """Scan and label map at the shown spacing, their axes towards right, front and head."""
    canonical = scan.reoriented(Orientation.to_canonical(scan.grid))
    image = resample(canonical, canonical.grid.with_spacing(SHOWN_MM))
    return image, resample_labels(labels, image.grid)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), facecolor=BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _busiest(organs: LabelMap, axis: int) -> int:
    """The slice across an axis that shows the most organs, and of these the most voxels."""

    def shows(at: int) -> tuple[int, int]:
        here = np.take(organs.data, at, axis)
        return len(np.unique(here)), int(np.count_nonzero(here))

    return max(range(organs.data.shape[axis]), key=shows)


def _slice(data: npt.NDArray[np.generic], axis: int, at: int) -> npt.NDArray[np.generic]:
    """Rows are the vertical axis, and the patient's right is on the left; the grid is RAS+."""
    return np.take(data, at, axis).T[:, ::-1]


def _draw_slice(panel: Axes, image: Volume, axis: int, at: int) -> None:
    low, high = WINDOW_HU
    panel.imshow(
        _slice(image.data[0], axis, at),
        cmap="gray",
        vmin=low,
        vmax=high,
        origin="lower",
        interpolation="bilinear",
    )
    panel.axis("off")


def _draw_organs(panel: Axes, organs: LabelMap, axis: int, at: int) -> None:
    here = _slice(organs.data, axis, at)
    shown = np.zeros((*here.shape, 4))
    for c, name in enumerate(organs.schema.names, start=1):
        shown[here == c] = (*(part / 255 for part in organ_colour(name)), 0.65)
    panel.imshow(shown, origin="lower", interpolation="nearest")


def _colour(name: str) -> str:
    return to_hex([part / 255 for part in organ_colour(name)])


# --- pages in a browser -----------------------------------------------------------------------------


def serve_page(ct: Path, model: Path, organ: str, folder: Path) -> bytes:
    """The page of ``zoomseg serve`` with a finished result, its planes through ``organ``, as PNG."""
    with (
        server_process(folder / "jobs", model) as (_, client),
        chromium.opened(str(client.base_url), folder, PAGE_SIZE) as page,
    ):
        page.wait_for("document.querySelector('#formats').textContent.includes('.zip')")
        page.choose_file("#file", ct)
        page.wait_for("document.querySelector('#result').dataset.shown", seconds=600)
        page.wait_for("document.querySelector('.below .where').textContent.includes('mm')", seconds=300)
        wanted = f"name => name.textContent === {json.dumps(organ)}"
        page.evaluate(f"[...document.querySelectorAll('.organ .name')].find({wanted}).click()")
        time.sleep(3)  # the 3D view is drawn last
        return page.screenshot()


def report_page(report: Path, folder: Path) -> bytes:
    """The upper part of a report of ``zoomseg evaluate``, as PNG."""
    with chromium.opened(report.resolve().as_uri(), folder, REPORT_SIZE) as page:
        return page.screenshot()


# --- files ------------------------------------------------------------------------------------------


def take(ct: Path, demo: Path, folder: Path) -> None:
    """Write every picture as JPEG."""
    folder.mkdir(exist_ok=True)
    scan = read_scan(ScanInput(ct.name, (ct,))).image
    result = zoomseg.load(ABDOMEN_CT).predict(ct, probabilities=True)
    _write(folder / "result.jpg", _png(result_picture(scan, result.labels)))
    _write(folder / "uncertainty.jpg", _png(uncertainty_picture(scan, result)))
    with tempfile.TemporaryDirectory() as temporary:
        _write(
            folder / "serve.jpg", serve_page(ct, INCLUDED_MODELS / ABDOMEN_CT, SHOWN_ORGAN, Path(temporary))
        )
    with tempfile.TemporaryDirectory() as temporary:
        _write(folder / "report.jpg", report_page(demo / "report.html", Path(temporary)))


def _png(figure: Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=100)
    return out.getvalue()


def _write(path: Path, picture: bytes) -> None:
    Image.open(io.BytesIO(picture)).convert("RGB").save(path, quality=90, subsampling=0, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("ct", type=Path)
    parser.add_argument("demo", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER)
    arguments = parser.parse_args()
    take(arguments.ct, arguments.demo, arguments.folder)


if __name__ == "__main__":
    main()
