"""The figures of the documentation are those drawn by its script, and pages only show existing figures."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

DOCS = Path(__file__).parents[2] / "docs"
FIGURES = DOCS / "figures"
SCREENSHOTS = DOCS / "screenshots"
MAX_BYTES = 150_000
MAX_SCREENSHOT_BYTES = 300_000
SHOWN = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")


def difference(first: Path, second: Path) -> float:
    """Mean difference of two pictures' pixels, of 1; infinite if they differ in size."""
    a, b = (np.asarray(matplotlib.image.imread(path))[..., :3] for path in (first, second))
    return float(np.abs(a - b).mean()) if a.shape == b.shape else np.inf


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("docs_figures", DOCS / "figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out = tmp_path_factory.mktemp("docs") / "figures"
    module.draw(out)
    return out


def test_the_figures_are_what_the_script_draws(drawn: Path) -> None:
    names = sorted(path.name for path in drawn.iterdir())
    assert names == sorted(path.name for path in FIGURES.iterdir())
    # Not to the byte: another version of matplotlib may place a letter elsewhere.
    changed = [name for name in names if difference(drawn / name, FIGURES / name) > 0.01]
    assert changed == [], "run: python docs/figures.py"


def test_a_changed_figure_is_noticed(tmp_path: Path) -> None:
    picture = np.asarray(matplotlib.image.imread(FIGURES / "regions.png"))
    moved = tmp_path / "moved.png"
    matplotlib.image.imsave(moved, np.roll(picture, 5, axis=1))
    assert difference(moved, FIGURES / "regions.png") > 0.01


def test_figures_are_small_and_shown() -> None:
    files = {path.name: path.stat().st_size for path in FIGURES.iterdir()}
    assert {name: size for name, size in files.items() if size > MAX_BYTES} == {}
    shown = [
        link for page in DOCS.rglob("*.md") for _, link in SHOWN.findall(page.read_text(encoding="utf-8"))
    ]
    assert {Path(link).name for link in shown if "figures" in Path(link).parts} == set(files)


def test_screenshots_are_small_and_shown() -> None:
    files = {path.name: path.stat().st_size for path in SCREENSHOTS.iterdir()}
    assert {name: size for name, size in files.items() if size > MAX_SCREENSHOT_BYTES} == {}
    shown = SHOWN.findall((DOCS / "gallery.md").read_text(encoding="utf-8"))
    assert {Path(link).name for _, link in shown if "screenshots" in Path(link).parts} == set(files)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda p: str(p.relative_to(DOCS)))
def test_a_page_shows_figures_that_are_there_and_says_what_they_are(page: Path) -> None:
    found = SHOWN.findall(page.read_text(encoding="utf-8"))
    assert [link for text, link in found if not text or not (page.parent / link).is_file()] == []
