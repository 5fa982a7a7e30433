"""The documentation site: it builds without a warning, its reference is complete, and reading it needs
nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import zoomseg
from zoomseg.core import errors

ROOT = Path(__file__).parents[2]

LOADED = re.compile(
    r"<(?:script|link|img|iframe|source|video)\b[^>]*\s(?:src|srcset|href)=[\"']?((?:https?:)?//[^\"'\s>]+)"
    r"|url\([\"']?((?:https?:)?//[^\"')]+)"
)


def build(settings: Path, out: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", settings, "-d", out],
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def loaded_from_elsewhere(page: str) -> Iterator[str]:
    """Addresses of other machines that a browser requests as soon as it shows this HTML or CSS."""
    yield from (page_url or css_url for page_url, css_url in LOADED.findall(page))
    if 'class="mermaid"' in page:  # drawn by a script that the theme gets from elsewhere
        yield "mermaid"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("docs") / "site"
    result = build(ROOT / "mkdocs.yml", out)
    assert result.returncode == 0, result.stderr
    return out


def test_every_page_is_built_and_found(site: Path) -> None:
    written = {p.relative_to(ROOT / "docs").with_suffix(".html") for p in (ROOT / "docs").rglob("*.md")}
    assert written <= {page.relative_to(site) for page in site.rglob("*.html")}
    index = (site / "search" / "search_index.json").read_text(encoding="utf-8")
    assert [page.as_posix() for page in written if f'"{page.as_posix()}"' not in index] == []
    assert list(site.rglob("*.py")) == []


def test_reading_needs_nothing_from_elsewhere(site: Path) -> None:
    files = [*site.rglob("*.html"), *site.rglob("*.css")]
    found = {f.name: list(loaded_from_elsewhere(f.read_text(encoding="utf-8"))) for f in files}
    assert {name: urls for name, urls in found.items() if urls} == {}


@pytest.mark.parametrize(
    ("page", "urls"),
    [
        ('<script async src="https://cdn.example/a.js">', ["https://cdn.example/a.js"]),
        ('<link rel="stylesheet" href="//fonts.example/css">', ["//fonts.example/css"]),
        ("@font-face{src:url(https://fonts.example/a.woff2)}", ["https://fonts.example/a.woff2"]),
        ('<pre class="mermaid">', ["mermaid"]),
        ('<a href="https://example.org"><img src="figures/a.png">url(a.svg)', []),
    ],
)
def test_what_is_loaded_from_elsewhere_is_noticed(page: str, urls: list[str]) -> None:
    assert list(loaded_from_elsewhere(page)) == urls


def test_the_python_reference_has_all_that_is_public(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    names = [name for name in zoomseg.__all__ if name != "__version__"]
    told = [f"{zoomseg._PLACES.get(name, 'zoomseg')}.{name}" for name in names]
    told += [f"zoomseg.core.errors.{name}" for name in vars(errors) if name.endswith("Error")]
    assert len(told) > 10
    assert [name for name in told if f'id="{name}"' not in page] == []


def test_the_python_reference_has_what_its_functions_return(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for line in (
        "zoomseg.api.Model.predict",
        "zoomseg.api.Result",
        "zoomseg.evaluation.result.Evaluation.mean",
    ):
        assert f'id="{line}"' in page


def test_a_broken_link_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](#nowhere)\n")
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").split("nav:\n")[0]
    (tmp_path / "mkdocs.yml").write_text(settings)
    result = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert result.returncode != 0
    assert "nowhere" in result.stderr
