"""What `zoomseg view` serves: one scan, one label map, and the page that shows them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from pydantic import BaseModel

from zoomseg.io.scans import read_grid, read_label_values, read_voxels, scan_name, scan_suffix, write_array
from zoomseg.serve.guard import Access, Guard
from zoomseg.serve.organs import Organ, organs_of_file
from zoomseg.serve.pages import add_pages

NIFTI = (".nii", ".nii.gz")


class View(BaseModel):
    """What the page asks for first. ``scan`` and ``labels`` are addresses; their endings say the format."""

    title: str
    scan: str
    labels: str
    organs: list[Organ]


@dataclass(frozen=True)
class Files:
    """The files that are served, both NIfTI, and what the page is told of them."""

    scan: Path
    labels: Path
    view: View


def prepare(scan: Path, labels: Path, room: Path) -> Files:
    """Check both files, and write those that are not NIfTI as such to the folder ``room``.

    Raises:
        ScanError: one cannot be read, or the label map holds no label.
        DatasetError: a file beside the label map that should name its labels is damaged.
    """
    organs = organs_of_file(labels, scan_name(labels))
    if scan_suffix(scan) in NIFTI:
        read_grid(scan)  # refused here rather than by the page
        shown_scan = scan
    else:
        volume = read_voxels(scan)
        shown_scan = room / "scan.nii.gz"
        write_array(shown_scan, volume.data[0].numpy(), volume.grid)
    shown_labels = labels
    if scan_suffix(labels) not in NIFTI:
        shown_labels = room / "labels.nii.gz"
        write_array(shown_labels, *read_label_values(labels))
    view = View(
        title=f"{scan.name}, {labels.name}",
        scan=f"scan{scan_suffix(shown_scan)}",
        labels=f"labels{scan_suffix(shown_labels)}",
        organs=organs,
    )
    return Files(shown_scan, shown_labels, view)


def create_app(files: Files, access: Access) -> Guard:
    """An application that serves these two files and nothing else."""
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
