"""The files of the pages: our own, and NiiVue, which comes with the package ipyniivue."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.staticfiles import StaticFiles

from zoomseg.core.errors import ZoomSegError

STATIC = Path(__file__).parent / "static"


def niivue_file() -> Path:
    """The front end of ipyniivue: one JavaScript module with NiiVue in it. The package is not imported.

    Raises:
        ZoomSegError: ipyniivue is not installed, or has no such file.
    """
    found = importlib.util.find_spec("ipyniivue")
    if found is not None and found.origin is not None:
        file = Path(found.origin).parent / "static" / "widget.js"
        if file.is_file():
            return file
    raise ZoomSegError("the viewer NiiVue is missing; install it: pip install 'ipyniivue>=2.4.4,<2.5'")


def add_pages(app: FastAPI, page: str) -> None:
    """Serve one of our pages at ``/``, and what it loads."""
    niivue = niivue_file()

    @app.get("/", include_in_schema=False)
    def index() -> FileResponse:
        return FileResponse(STATIC / page, headers={"cache-control": "no-cache"})

    @app.get("/static/niivue.js", include_in_schema=False)
    def viewer() -> FileResponse:
        return FileResponse(niivue, media_type="text/javascript", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
