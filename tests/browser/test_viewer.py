"""The viewer in a real browser: conventions, windows, measuring, review, corrections that are trained on."""

from __future__ import annotations

import io
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import matplotlib.image
import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from browser import chromium
from helpers.servers import server_process
from helpers.tiny_dataset import tiny_case, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.cli.main import main
from zoomseg.core.volume import Volume
from zoomseg.datasets.layouts import open_dataset
from zoomseg.io import bundle
from zoomseg.io.scans import write_array, write_image
from zoomseg.recipe.load import dump

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium.EXECUTABLE is None, reason="no Chromium here (Debian's package: chromium)"),
]
NAMES = ("first", "second")


@dataclass(frozen=True)
class Served:
    """A server with two finished scans."""

    client: httpx.Client
    folder: Path
    jobs: tuple[str, str]

    def result(self, job: str, name: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The voxels of a result, and its affine."""
        content = self.client.get(f"/jobs/{job}/{name}").content
        place = self.folder / f"fetched-{name}"
        place.write_bytes(content)
        image = nib.load(place)
        return np.asarray(image.dataobj).astype(np.int64), image.affine


def reorient(file: Path, axes: str) -> None:
    """Store a scan along other axes; every voxel keeps its world position."""
    image = nib.load(file)
    wanted = nib.orientations.axcodes2ornt(axes)
    change = nib.orientations.ornt_transform(nib.io_orientation(image.affine), wanted)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine).as_reoriented(change), file)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    bundle.save(untrained_bundle(), folder / "tiny")
    with server_process(folder / "jobs", folder / "tiny") as (_, client):
        jobs = []
        for seed, name in enumerate(NAMES):
            image = tiny_case(seed)[0]
            air = image.data.copy()
            air[0, :2] = -1000  # makes it a CT
            write_image(folder / f"{name}.nii.gz", Volume(air, image.grid))
            if name == "second":
                reorient(folder / f"{name}.nii.gz", "SPL")
            content = (folder / f"{name}.nii.gz").read_bytes()
            jobs.append(client.post("/jobs", params={"name": f"{name}.nii.gz"}, content=content).json()["id"])
        end = time.monotonic() + 180
        while any(client.get(f"/jobs/{job}").json()["state"] != "finished" for job in jobs):
            assert time.monotonic() < end, client.get("/jobs").json()
            time.sleep(0.3)
        yield Served(client, folder, (jobs[0], jobs[1]))


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[chromium.Page]:
    with chromium.opened(f"{served.client.base_url}?scan={served.jobs[0]}", tmp_path) as opened:
        wait_until_shown(opened)
        yield opened
        assert opened.complaints == []


def wait_until_shown(page: chromium.Page) -> None:
    page.wait_for("document.querySelector('#result').dataset.shown")
    page.wait_for("document.querySelector('.below .where')?.textContent.includes('mm')")


def at(page: chromium.Page, x: float, y: float) -> tuple[float, float]:
    """Window coordinates of a point of the picture, given relative to the picture's size."""
    left, top, width, height = page.evaluate(
        "(() => { const r = document.querySelector('.picture').getBoundingClientRect();"
        "return [r.x, r.y, r.width, r.height]; })()"
    )
    return left + x * width, top + y * height


def position(page: chromium.Page) -> list[int]:
    """Position of the crosshair in mm."""
    found = re.match(r"(-?\d+), (-?\d+), (-?\d+) mm", page.text(".below .where"))
    assert found is not None
    return [int(n) for n in found.groups()]


def pixel(page: chromium.Page, point: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Red, green and blue of a point of the window."""
    picture = matplotlib.image.imread(io.BytesIO(page.screenshot()))
    return np.asarray(picture[round(point[1]), round(point[0]), :3], np.float32)


def test_with_many_labels_the_background_has_no_colour(tmp_path: Path) -> None:
    image, labels = tiny_case(0)
    write_image(tmp_path / "scan.nii.gz", image)
    values = np.choose(labels.data, [0, 1, 117]).astype(np.uint8)
    write_array(tmp_path / "labels.nii.gz", values, labels.grid)
    command = [sys.executable, "-u", "-m", "zoomseg", "view", "scan.nii.gz", "labels.nii.gz", "--no-browser"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        found = re.match(r"Open (http://\S+)", process.stdout.readline())
        assert found is not None
        with chromium.opened(found[1], tmp_path) as page:
            page.wait_for("document.querySelector('.below .where')?.textContent.includes('mm')")
            page.press("Axial")
            page.press("label 117")
            page.press("Crosshair")
            time.sleep(1)
            # The two organs lie to the left and right of the centre; above and below it there are none.
            assert np.ptp(pixel(page, at(page, 0.5, 0.1))) < 0.02
            assert np.ptp(pixel(page, at(page, 0.5, 0.9))) < 0.02
            colours = [pixel(page, at(page, x, 0.5)) for x in (0.35, 0.65)]
            assert min(np.ptp(colour) for colour in colours) > 0.1
            assert page.complaints == []
    finally:
        process.kill()
        process.wait()


def test_it_opens_in_an_organ_and_goes_to_the_one_that_is_clicked(page: chromium.Page) -> None:
    assert page.text(".below .where").split(" · ")[2] in ("left kidney", "right kidney")
    for name in page.evaluate(
        "[...document.querySelectorAll('.organ .name:enabled')].map(e => e.textContent)"
    ):
        page.press(name)
        assert page.text(".below .where").split(" · ")[2] == name


def test_planes_lie_as_radiologists_have_them(page: chromium.Page) -> None:
    # The patient's right and anterior are displayed on the left. As RAS+ coordinates are compared,
    # positions are expected to be larger on the left.
    for view, axis in (("Sagittal", 1), ("Axial", 0), ("Coronal", 0)):
        page.press(view)
        page.drag(at(page, 0.42, 0.5), at(page, 0.42, 0.5))
        left = position(page)[axis]
        page.drag(at(page, 0.58, 0.5), at(page, 0.58, 0.5))
        assert left > position(page)[axis], view


def test_ct_has_windows_and_the_right_button_changes_them(page: chromium.Page) -> None:
    assert page.text(".bar .where") == "L 40 W 400"
    page.choose(".bar select", "Lung")
    assert page.text(".bar .where") == "L -600 W 1,500"
    page.drag(at(page, 0.2, 0.2), at(page, 0.3, 0.2), button="right")
    found = re.match(r"L (-?[\d,]+) W ([\d,]+)", page.text(".bar .where"))
    assert found is not None
    assert found[1] == "-600"
    assert int(found[2].replace(",", "")) > 1500
    assert page.evaluate("document.querySelector('.bar select').selectedOptions[0].text") == "By hand"


def test_the_buttons_follow_niivue_s_keys(page: chromium.Page) -> None:
    page.press("Axial")
    page.drag(at(page, 0.5, 0.5), at(page, 0.5, 0.5))  # gives it the focus
    for expected in ("Coronal", "Sagittal", "Planes, 3D", "3D"):
        page.key("v")
        time.sleep(0.1)  # NiiVue ignores a key within 50 ms of the previous one
        assert page.text(".choice [aria-pressed=true]") == expected


def test_a_line_is_as_long_as_its_ends_are_apart(page: chromium.Page) -> None:
    page.press("Axial")
    start, end = at(page, 0.42, 0.45), at(page, 0.55, 0.6)
    ends = []
    for point in (start, end):
        page.drag(point, point)
        ends.append(position(page))
    page.press("Distance")
    page.drag(start, end)
    measured = float(page.text(".measured li").removesuffix(" mm"))
    assert measured == pytest.approx(math.dist(*ends), abs=1.5)  # positions are displayed in whole mm
    page.press("Clear")
    assert page.evaluate("document.querySelectorAll('.measured li').length") == 0


def test_an_ellipse_s_statistics_are_those_of_the_voxels_in_it(page: chromium.Page) -> None:
    found = page.evaluate(
        """(async () => {
          const { ellipseStatistics } = await import("/static/scene.js");
          const image = {
            dimsRAS: [3, 10, 8, 4], pixDimsRAS: [1, 0.5, 2, 3],
            getValue: (i, j, k) => 100 * i + 10 * j + k,
          };
          const corner = (i, j, k) => [(i + 0.5) / 10, (j + 0.5) / 8, (k + 0.5) / 4];
          return ellipseStatistics(image, { start: corner(2, 1, 3), end: corner(6, 5, 3), plane: 0 });
        })()"""
    )
    i, j = np.meshgrid(np.arange(10), np.arange(8), indexing="ij")
    inside = ((i - 4) / 2) ** 2 + ((j - 3) / 2) ** 2 <= 1
    values = (100 * i + 10 * j + 3)[inside]
    assert found["voxels"] == inside.sum() == 13
    assert found["area_mm2"] == pytest.approx(13 * 0.5 * 2)
    assert [found[k] for k in ("mean", "sd", "min", "max")] == pytest.approx(
        [values.mean(), values.std(), values.min(), values.max()]
    )


def test_a_review_is_there_after_reloading(page: chromium.Page, served: Served) -> None:
    page.click("[aria-label='Reject left kidney']")
    comment = "document.querySelector(\"input[aria-label='Comment on right kidney']\")"
    page.evaluate(f"{comment}.value = 'too small'")
    page.evaluate(f"{comment}.dispatchEvent(new Event('change'))")
    page.wait_for("document.querySelector('#problem').hidden")
    end = time.monotonic() + 20
    while True:
        organs = served.client.get(f"/jobs/{served.jobs[0]}/review.json").json()["organs"]
        if [(o["verdict"], o["comment"]) for o in organs] == [("rejected", ""), (None, "too small")]:
            break
        assert time.monotonic() < end, organs
        time.sleep(0.1)
    page.evaluate("document.body.dataset.before = 'reloading'")
    page.call("Page.reload")
    page.wait_for("document.querySelector('#result') && !document.body.dataset.before")
    wait_until_shown(page)
    for verdict, expected in (("Accept", "false"), ("Reject", "true")):
        button = f"document.querySelector(\"[aria-label='{verdict} left kidney']\")"
        assert page.evaluate(f"{button}.ariaPressed") == expected
    assert page.evaluate(f"[{comment}.value, {comment}.hidden]") == ["too small", False]


def answer(page: chromium.Page, instead: str) -> None:
    """Replace the page's requests: ``instead`` is JavaScript that may return an answer for ``url``."""
    page.evaluate(
        "window.realFetch ??= window.fetch;"
        f"window.fetch = async (url, options) => {{ {instead}; return realFetch(url, options); }}; 0"
    )


def refusing(condition: str) -> str:
    """A failure, for ``answer``, of requests that satisfy a JavaScript condition."""
    return f'if ({condition}) return new Response(\'{{"detail": "refused"}}\', {{ status: 507 }})'


def test_a_review_that_is_not_stored_is_not_shown_as_given(page: chromium.Page, served: Served) -> None:
    accept = "[aria-label='Accept right kidney']"
    pressed = f'document.querySelector("{accept}").ariaPressed'
    row = "[...document.querySelectorAll('.organs .problem')].map((e) => e.textContent).join('')"
    answer(page, refusing("options?.method === 'PUT'"))
    page.click(accept)
    page.wait_for(f"{row} === 'Not saved: refused'")
    assert page.evaluate(pressed) == "false"
    answer(page, "0")
    page.click(accept)
    page.wait_for(f"{row} === ''")
    assert page.evaluate(pressed) == "true"
    page.click(accept)  # as it was
    page.wait_for(f"{pressed} === 'false'")


def test_a_server_that_responds_again_is_not_said_to_be_silent(page: chromium.Page) -> None:
    answer(page, "if (url === 'jobs') throw new TypeError('no network')")
    page.wait_for("document.querySelector('#problem').textContent.startsWith('The server does not respond')")
    answer(page, "0")
    page.wait_for("document.querySelector('#problem').hidden")


def shown(page: chromium.Page) -> list[str]:
    """What the page says of the scan that it shows: its name, its organs, what lies at the crosshair."""
    assert page.evaluate("document.querySelectorAll('figure').length") == 1
    return [page.text(place) for place in ("#title", ".organs", ".below .where")]


def show(page: chromium.Page, name: str) -> list[str]:
    """Show a scan and wait; returns ``shown``."""
    page.evaluate("delete document.querySelector('#result').dataset.shown")
    page.click(f"[aria-label='Show {name}.nii.gz']")
    wait_until_shown(page)
    return shown(page)


def test_of_two_scans_that_load_at_once_the_one_asked_for_last_is_shown(
    page: chromium.Page, served: Served
) -> None:
    first, second = served.jobs
    expected = [show(page, name) for name in NAMES]
    assert all(one != other for one, other in zip(*expected, strict=True))
    held = "await new Promise((resolve) => { window.release = resolve; })"
    answer(page, f"if (url.startsWith('jobs/{first}/organs')) {held}")
    page.click("[aria-label='Show first.nii.gz']")
    page.wait_for("window.release")
    assert page.text("#title") == "first.nii.gz"
    assert page.evaluate("document.querySelector('#viewer').childElementCount") == 0  # nothing of the second
    assert show(page, "second") == expected[1]
    page.evaluate("window.release()")
    time.sleep(1)
    assert shown(page) == expected[1]
    assert page.evaluate("document.querySelector('#result').dataset.shown") == second

    answer(page, "0")
    for pause_s in (0, 0.05, 0.1, 0.2, 0.4):  # at any moment of loading and drawing
        page.click("[aria-label='Show first.nii.gz']")
        time.sleep(pause_s)
        assert show(page, "second") == expected[1], pause_s
    assert page.evaluate("document.querySelector('#viewer').inert") is False


def test_of_a_scan_that_cannot_be_loaded_no_other_is_shown(page: chromium.Page, served: Served) -> None:
    answer(page, refusing(f"url.startsWith('jobs/{served.jobs[1]}/organs')"))
    page.click("[aria-label='Show second.nii.gz']")
    page.wait_for("document.querySelector('#problem').textContent === 'refused'")
    assert page.text("#title") == "second.nii.gz"
    assert page.evaluate("document.querySelector('#viewer').childElementCount") == 0
    answer(page, "0")
    assert show(page, "first")[0] == "first.nii.gz"


def test_of_two_comparisons_the_one_chosen_last_is_shown(page: chromium.Page, served: Served) -> None:
    held = "await new Promise((resolve) => { window.release = resolve; })"
    answer(page, f"if (url.startsWith('jobs/{served.jobs[1]}/organs')) {held}")
    page.choose("#compare", "second.nii.gz")
    page.wait_for("window.release")
    page.choose("#compare", "nothing")
    page.evaluate("window.release()")
    time.sleep(1)
    assert page.evaluate("document.querySelectorAll('figure').length") == 1
    assert page.text("#busy") == ""


def test_a_scan_that_is_ready_does_not_replace_the_one_that_is_looked_at(
    page: chromium.Page, served: Served, tmp_path: Path
) -> None:
    write_image(tmp_path / "third.nii.gz", tiny_case(2)[0])
    page.choose_file("#file", tmp_path / "third.nii.gz")
    state = (
        "document.querySelector(\"[aria-label='Show third.nii.gz']\")?.closest('li').querySelector('.state')"
    )
    page.wait_for(f"{state}?.textContent.startsWith('new: done')", seconds=120)
    assert page.text("#title") == "first.nii.gz"
    assert page.evaluate("document.querySelector('#result').dataset.shown") == served.jobs[0]
    assert show(page, "third")[0] == "third.nii.gz"
    page.wait_for(f"{state}.textContent.startsWith('done')")
    page.click("[aria-label='Delete third.nii.gz']")
    page.wait_for("!document.querySelector(\"[aria-label='Show third.nii.gz']\")")
    assert page.evaluate("document.querySelector('#viewer').childElementCount") == 0
    assert page.evaluate("document.querySelector('#title').hidden")


def test_on_a_phone_the_picture_is_in_view_after_show(page: chromium.Page) -> None:
    page.resize(390, 844)
    page.evaluate("window.scrollTo(0, 0)")
    page.evaluate("delete document.querySelector('#result').dataset.shown")
    page.click("[aria-label='Show second.nii.gz']")
    wait_until_shown(page)
    place = "document.querySelector('.picture').getBoundingClientRect()"
    top, bottom = page.evaluate(f"[{place}.top, {place}.bottom]")
    assert 0 <= top < bottom <= 844
    assert page.evaluate("document.documentElement.scrollWidth") == 390


def test_corrected_maps_are_trained_on(page: chromium.Page, served: Served, tmp_path: Path) -> None:
    for job, name in zip(served.jobs, NAMES, strict=True):
        page.evaluate("delete document.querySelector('#result').dataset.shown")
        page.click(f"[aria-label='Show {name}.nii.gz']")
        wait_until_shown(page)
        page.press("Axial")
        page.press("Correct")
        page.wait_for("document.querySelector('.correction')")
        page.choose(".correction select", "right kidney")
        page.press("3")
        page.drag(at(page, 0.45, 0.4), at(page, 0.55, 0.4))
        end = position(page)
        page.drag(at(page, 0.45, 0.6), at(page, 0.55, 0.6))
        page.press("Undo")
        page.evaluate("delete document.querySelector('#result').dataset.shown")  # it is opened anew
        page.press("Save correction")
        page.wait_for("!document.querySelector('.correction')")
        wait_until_shown(page)
        (before, affine), (after, _) = (served.result(job, f"{n}.nii.gz") for n in ("labels", "corrected"))
        changed = np.argwhere(before != after)
        assert set(after[before != after].tolist()) == {7}
        # The changes lie in one plane and are as wide as the brush: the second line was undone.
        assert sorted(np.unique(axis).size for axis in changed.T)[:2] == [1, 3]
        assert len(changed) >= 6
        world = changed @ affine[:3, :3].T + affine[:3, 3]
        assert np.linalg.norm(world - end, axis=1).min() < 2  # voxels have 2 x 2 x 3 mm

    page.choose("#compare", "its map before the correction")
    page.wait_for("document.querySelectorAll('figure').length === 2")
    page.wait_for("document.querySelector('#busy').textContent === ''")
    captions = page.evaluate("[...document.querySelectorAll('figcaption')].map(e => e.textContent)")
    assert captions == ["second.nii.gz, corrected", "before the correction"]

    data = served.folder / "jobs" / "corrected" / "tiny"
    assert open_dataset(data).ids == tuple(sorted(served.jobs))
    (tmp_path / "tiny.yaml").write_text(dump(tiny_recipe(together=True, iterations=2)))
    arguments = ["train", str(data), "-o", str(tmp_path / "new"), "-r", str(tmp_path / "tiny.yaml")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--device", "cpu"])
    assert stop.value.code in (0, None)
    assert bundle.load(tmp_path / "new").provenance["training_cases"] == sorted(served.jobs)
