"""The page in a real browser: load, run, toggle an organ, download."""

from __future__ import annotations

import io
import time
from pathlib import Path

import matplotlib.image
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from browser import chromium
from helpers.servers import server_process
from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import untrained_bundle
from zoomseg.io import bundle
from zoomseg.io.scans import write_image

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium here (Debian's package: chromium)"),
]
COLOURFUL = 0.12
"""A pixel whose red, green and blue values differ by more belongs to an organ, as scans are grey."""


def colourful(page: chromium.Page) -> int:
    """Number of pixels of the viewer's picture that are not grey (including the crosshair and the orientation
    cube)."""
    picture: npt.NDArray[np.float32] = matplotlib.image.imread(io.BytesIO(page.screenshot()))[..., :3]
    x, y, width, height = page.evaluate(
        "(() => { const r = document.querySelector('.picture').getBoundingClientRect();"
        "return [r.x, r.y, r.width, r.height].map(Math.round); })()"
    )
    shown = picture[y : y + height, x : x + width]
    return int((shown.max(-1) - shown.min(-1) > COLOURFUL).sum())


def test_a_scan_is_dropped_segmented_looked_at_and_downloaded(tmp_path: Path) -> None:
    bundle.save(untrained_bundle(), tmp_path / "tiny")
    write_image(tmp_path / "scan.nii.gz", tiny_case(9)[0])
    with (
        server_process(tmp_path / "jobs", tmp_path / "tiny") as (_, client),
        chromium.opened(str(client.base_url), tmp_path) as page,
    ):
        page.wait_for("document.querySelector('#formats').textContent.includes('.zip')")
        page.choose_file("#file", tmp_path / "scan.nii.gz")
        page.wait_for("document.querySelector('.job.running .stages')")
        page.wait_for("document.querySelector('#result').dataset.shown", seconds=120)
        assert page.evaluate("document.querySelector('.job .state')?.textContent").startswith("done in")
        page.wait_for("document.querySelector('.below .where')?.textContent.includes('mm')")
        organs = page.evaluate("[...document.querySelectorAll('.organ .name')].map(e => e.textContent)")
        assert organs == ["left kidney", "right kidney"]
        page.press("Crosshair")

        before = settled(page)
        page.click("[aria-label='Show left kidney']")
        page.click("[aria-label='Show right kidney']")
        after = settled(page)
        assert after < 0.5 * before

        page.click(".menu summary")
        (job,) = client.get("/jobs").json()
        page.click("a[data-result='labels.nii.gz']")
        labels = downloaded(tmp_path / "downloads" / "scan.labels.nii.gz")
        assert labels == client.get(f"/jobs/{job['id']}/labels.nii.gz").content
        values = np.asarray(nib.load(tmp_path / "downloads" / "scan.labels.nii.gz").dataobj)
        assert set(np.unique(values)) <= {0, 3, 7}

        page.click(f"[aria-label='Delete {job['name']}']")
        page.wait_for("document.querySelectorAll('.job').length === 0")
        assert client.get("/jobs").json() == []
        assert page.complaints == []


def settled(page: chromium.Page) -> int:
    """``colourful`` after drawing has finished."""
    last = -1
    for _ in range(30):
        time.sleep(0.5)
        now = colourful(page)
        if now == last:
            return now
        last = now
    raise AssertionError("the picture does not come to rest")


def downloaded(path: Path) -> bytes:
    """Wait until a download is complete; returns its file."""
    for _ in range(100):
        if path.is_file():
            return path.read_bytes()
        time.sleep(0.1)
    raise AssertionError(f"no {path.name}, but {[p.name for p in path.parent.iterdir()]}")
