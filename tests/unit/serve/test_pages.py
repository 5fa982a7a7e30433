"""The pages: all files that they load exist, and nothing is loaded from elsewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from zoomseg.core.errors import ZoomSegError
from zoomseg.serve import pages

OURS = sorted(path for path in pages.STATIC.iterdir() if path.suffix in (".html", ".js", ".css"))


@pytest.mark.parametrize("page", ["index.html", "view.html"])
def test_what_a_page_loads_is_served(page: str) -> None:
    app = FastAPI()
    pages.add_pages(app, page)
    client = TestClient(app)
    wanted = set(re.findall(r'(?:src|href)="([^"]+)"', client.get("/").text))
    assert len(wanted) == 3
    while wanted:
        address = wanted.pop()
        answer = client.get(f"/{address}")
        assert answer.status_code == 200, address
        if address.endswith(".js"):
            assert "javascript" in answer.headers["content-type"]
        if address.endswith(".js") and "niivue.js" not in address:
            wanted |= {f"static/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)}


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_our_files_load_nothing_from_elsewhere(path: Path) -> None:
    code = "\n".join(line for line in path.read_text().splitlines() if not line.lstrip().startswith("//"))
    assert not re.findall(r"(?:https?:)?//\w", code)


def test_niivue_is_there_for_our_pages_as_they_use_it() -> None:
    code = pages.niivue_file().read_text()
    assert re.search(r"export\{\w+ as default,\w+ as Niivue\};\s*$", code)
    for part in (
        "drawCrosshairs3D(",
        "drawImage3D(",
        "windowingHandler(",
        "frac2canvasPosWithTile(",
        "drawPenLine(",
    ):
        assert part in code


def test_a_viewer_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ZoomSegError, match=r"pip install --force-reinstall \. in a clone"):
        pages.niivue_file()
