"""The script that takes the documentation's pictures runs, and its pictures show the expected content."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

import screenshots
from browser import chromium
from helpers.tiny_dataset import SCHEMA, tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.phantom import phantom_case
from zoomseg.io import bundle
from zoomseg.io.scans import write_image

in_browser = pytest.mark.skipif(
    chromium.EXECUTABLE is None, reason="no Chromium here (Debian's package: chromium)"
)


def pixels(picture: bytes) -> np.ndarray:
    """``[rows, columns, 3]`` of 0 to 255."""
    shown = matplotlib.image.imread(io.BytesIO(picture))[..., :3]
    return np.rint(255 * shown)


def test_the_result_shows_every_organ_in_colour() -> None:
    case = phantom_case(0, Grid.from_spacing((60, 50, 50), (6.0, 6.0, 6.0)))
    assert case.labels is not None
    liver = case.labels.schema.names.index("liver") + 1
    data = np.where(case.labels.data == liver, 0, case.labels.data)
    without = LabelMap(data, case.labels.grid, case.labels.schema)

    def colourful(labels: LabelMap) -> int:
        shown = pixels(screenshots._png(screenshots.result_picture(case.image, labels)))
        return int(np.count_nonzero(np.ptp(shown, axis=-1) > 30))

    assert colourful(case.labels) > colourful(without) + 5000


@pytest.mark.slow
@in_browser
def test_the_page_is_taken_with_its_organs(tmp_path: Path) -> None:
    bundle.save(untrained_bundle(), tmp_path / "tiny")
    write_image(tmp_path / "scan.nii.gz", tiny_case(9)[0])
    page = screenshots.serve_page(tmp_path / "scan.nii.gz", tmp_path / "tiny", SCHEMA.names[-1], tmp_path)
    shown = pixels(page)
    assert shown.shape[1] == screenshots.PAGE_SIZE[0]
    assert np.count_nonzero(np.ptp(shown, axis=-1) > 30) > 5000


@pytest.mark.slow
@in_browser
def test_the_report_is_taken_from_its_top(tmp_path: Path) -> None:
    report = tmp_path / "report.html"
    report.write_text(
        "<body style='margin:0;background:#0000ff'><div style='height:100px;background:#ff0000'>"
    )
    shown = pixels(screenshots.report_page(report, tmp_path))
    assert shown[50, 50].tolist() == [255, 0, 0]
    assert shown[150, 50].tolist() == [0, 0, 255]
