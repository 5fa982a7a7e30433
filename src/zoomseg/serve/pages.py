"""The files of the pages: our own, and NiiVue, which is installed with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

from zoomseg.core.errors import ZoomSegError
from zoomseg.core.extras import how_to_reinstall

STATIC = Path(__file__).parent / "static"


def niivue_file() -> Path:
    """The front end of ipyniivue: one JavaScript module that contains NiiVue, which the build copied beside
    the package (``hatch_build.py``).

    Raises:
        ZoomSegError: it is missing.
    """
    found = importlib.util.find_spec("zoomseg_niivue")
    folders = found.submodule_search_locations if found is not None else None
    for folder in folders or ():
        file = Path(folder) / "niivue.js"
        if file.is_file():
            return file
    raise ZoomSegError(
        "the viewer NiiVue, which is installed together with ZoomSeg, is missing; install ZoomSeg again: "
        f"{how_to_reinstall()}"
    )


def add_pages(app: FastAPI, page: str) -> None:
    """Serve one of our pages at ``/``, with the files that it loads."""
    niivue = niivue_file()

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(STATIC / page, headers={"cache-control": "no-cache"})

    @app.get("/static/niivue.js", include_in_schema=False)
    def viewer() -> FileResponse:
        return FileResponse(niivue, media_type="text/javascript", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
