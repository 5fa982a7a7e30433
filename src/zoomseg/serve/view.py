"""The server of `zoomseg view`: one scan, one label map, and the page that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel

from zoomseg.core.errors import ScanError
from zoomseg.io.scans import (
    header_notes,
    read_grid,
    read_label_values,
    read_voxels,
    scan_name,
    scan_suffix,
    write_array,
)
from zoomseg.serve.access import Access, Guard
from zoomseg.serve.organs import Organ, organs_of_file
from zoomseg.serve.pages import add_pages

NIFTI = (".nii", ".nii.gz")


class View(BaseModel):
    """The first response to the page. ``scan`` and ``labels`` are addresses; their suffixes state the
    format."""

    title: str
    scan: str
    labels: str
    organs: list[Organ]
    notes: list[str]
    """What the user must know about the positions of the two."""


@dataclass(frozen=True)
class ViewedFiles:
    """The files that are served, both NIfTI, and the data for the page."""

    scan: Path
    labels: Path
    view: View


def prepare(scan: Path, labels: Path, room: Path) -> ViewedFiles:
    """Check both files, and write to the folder ``room`` those that are not NIfTI, or whose header is
    ambiguous, so that the page places them as ZoomSeg does.

    Raises:
        ScanError: one cannot be read, the label map contains no label, or none of it lies on the scan.
        DatasetError: a file beside the label map that should name its labels is damaged.
    """
    organs = organs_of_file(labels, scan_name(labels))
    notes = [f"{path.name}: {note}" for path in (scan, labels) for note in header_notes(path)]
    notes += _apart(scan, labels)
    shown_scan = scan
    if not _is_plain(scan):
        volume = read_voxels(scan)
        shown_scan = room / "scan.nii.gz"
        write_array(shown_scan, volume.data[0], volume.grid)
    shown_labels = labels
    if not _is_plain(labels):
        shown_labels = room / "labels.nii.gz"
        write_array(shown_labels, *read_label_values(labels))
    view = View(
        title=f"{scan.name}, {labels.name}",
        scan=f"scan{scan_suffix(shown_scan)}",
        labels=f"labels{scan_suffix(shown_labels)}",
        organs=organs,
        notes=notes,
    )
    return ViewedFiles(shown_scan, shown_labels, view)


def _is_plain(path: Path) -> bool:
    """Whether every program places the file as ZoomSeg does."""
    return scan_suffix(path) in NIFTI and not header_notes(path)


def _apart(scan: Path, labels: Path) -> list[str]:
    """A note if the two are on different grids; the page then places the labels by their world positions.

    Raises:
        ScanError: they do not overlap.
    """
    image, other = read_grid(scan), read_grid(labels)
    if image.same_as(other):
        return []
    if image.box_of(other, other.box).intersect(image.box).empty:
        raise ScanError(f"{labels}: lies wholly outside {scan.name}; are they of one patient and one scan?")
    how = f"shape {other.shape} and not {image.shape}"
    if image.shape == other.shape:
        how = f"voxels are up to {image.distance_mm(other):.3g} mm off"
    return [
        f"{labels.name} is not on the grid of {scan.name} ({how}): it is shown by its position in the world"
    ]


def create_app(files: ViewedFiles, access: Access) -> Guard:
    """An application that serves only these two files."""
    app = FastAPI(title="ZoomSeg view", openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/view.json")
    def view() -> View:
        return files.view

    @app.get(f"/{files.view.scan}")
    def scan() -> FileResponse:
        return FileResponse(files.scan, media_type="application/octet-stream")

    @app.get(f"/{files.view.labels}")
    def labels() -> FileResponse:
        return FileResponse(files.labels, media_type="application/octet-stream")

    add_pages(app, "view.html")
    return Guard(app, access)
