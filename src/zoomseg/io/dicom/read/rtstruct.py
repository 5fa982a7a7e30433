"""Read RTSTRUCT: closed planar contours as voxels (see ``io.dicom.contours``)."""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import RTStructureSetStorage

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray, Grid
from zoomseg.io.dicom import coordinates
from zoomseg.io.dicom.contours import MAX_IN_SLICE, fill_contours, xor_mask
from zoomseg.io.dicom.read import derived_objects
from zoomseg.io.dicom.read.references import require_same_images
from zoomseg.io.dicom.read.slice_interpolation import InSlice, between
from zoomseg.io.dicom.read.structures import Indices, Structures, require_room, unused_name
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.files import reading

KINDS = {str(RTStructureSetStorage): "RTSTRUCT"}
"""SOP classes that are read."""

PLANE_TOLERANCE = 0.2
"""Maximum distance of a contour's points from a slice, in slice distances."""

MAX_STRUCTURES = 2_000
MAX_CONTOURS = 500_000
MAX_POINTS = 2_000_000
"""Maximum number of points in one contour."""

_XOR = "CLOSEDPLANAR_XOR"
_CLOSED = ("CLOSED_PLANAR", _XOR)
_CONTOUR_DATA = Tag("ContourData")


def read_rtstruct(path: Path, series: DicomSeries) -> Structures:
    """The closed contours of an RTSTRUCT of ``series``, as voxels whose centres lie within, and the
    interpolation between contours on every second, third ... slice (see
    ``io.dicom.read.slice_interpolation``).

    A structure that cannot be read is omitted with a note that names it, and so is one without closed
    contours (points, open lines); parts beyond the series are cut.

    Raises:
        ScanError: unreadable, no RTSTRUCT, of another patient or series, or no structure can be read.
    """
    path = Path(path)
    dataset = derived_objects.read_label_object(path, KINDS)
    with reading(path, "DICOM"):
        notes = list(require_same_images(path, dataset, series))
        rois, unnumbered = _rois(path, dataset)
        drawn, ownerless = _by_number(dataset.get("ROIContourSequence") or [], "ReferencedROINumber")
        if ownerless:  # the number comes last in an item
            raise ScanError(f"{path}: damaged, truncated or not DICOM (contours without a number)")
        lost = len(drawn.keys() - rois.keys())
        notes += [f"structures without a number left out: {unnumbered}"] if unnumbered else []
        notes += [f"contours of unnamed structures left out: {lost}"] if lost else []
        voxels: dict[str, Indices] = {}
        wrong: list[str] = []
        for number, items in rois.items():
            name = unused_name(str(items[0].get("ROIName", "")), voxels)
            try:
                with reading(path, "DICOM"):
                    found, structure_notes = _structure(path, name, items, drawn.get(number, []), series)
            except ScanError as error:
                wrong.append(str(error).removeprefix(f"{path}: "))
                notes.append(f"structure '{name}' left out: {wrong[-1]}")
                continue
            notes += structure_notes
            require_room(path, found.size + sum(map(len, voxels.values())))
            if found.size:
                voxels[name] = found
            else:
                notes.append(f"structure '{name}' has no closed contour within the series")
        if wrong and not voxels:
            raise ScanError(f"{path}: {wrong[0]}")
        return Structures(series.grid, voxels, tuple(notes))


def _rois(path: Path, dataset: Dataset) -> tuple[dict[int, list[Dataset]], int]:
    """As ``_by_number``, for the descriptions of structures."""
    rois = dataset.get("StructureSetROISequence", [])
    if not 1 <= len(rois) <= MAX_STRUCTURES:
        raise ScanError(f"{path}: names {len(rois)} structures; 1 to {MAX_STRUCTURES} are read")
    return _by_number(rois, "ROINumber")


def _by_number(items: Iterable[Dataset], keyword: str) -> tuple[dict[int, list[Dataset]], int]:
    """Items by the number of their structure, and the number of items without one. Duplicate numbers are an
    error of that structure alone."""
    found: dict[int, list[Dataset]] = {}
    without = 0
    for item in items:
        try:
            found.setdefault(int(item[keyword].value), []).append(item)
        except Exception:  # on hostile bytes, parsers may raise any exception
            without += 1
    return found, without


def _structure(
    path: Path, name: str, rois: Sequence[Dataset], drawn: Sequence[Dataset], series: DicomSeries
) -> tuple[Indices, list[str]]:
    """A structure's voxels, and notes on it."""
    if len(rois) > 1 or len(drawn) > 1:
        raise ScanError(f"'{name}' has the number of another structure, or contours in two places")
    derived_objects.require_frame(path, str(rois[0].get("ReferencedFrameOfReferenceUID", "")), series)
    if not drawn:
        return np.empty(0, dtype=np.int64), []
    return _voxels(name, drawn[0], series.grid)


def _voxels(name: str, roi: Dataset, grid: Grid) -> tuple[Indices, list[str]]:
    slices: dict[int, list[FloatArray]] = {}
    closed, skipped = _closed_contours(name, roi)
    exclusive = any(kind == _XOR for kind, _ in closed)
    for _, points in closed:
        index = grid.index(coordinates.lps(points))
        k = _plane(name, index[:, 2])
        if 0 <= k < grid.shape[2]:
            slices.setdefault(k, []).append(index[:, :2])
    if max(map(len, slices.values()), default=0) > MAX_IN_SLICE:
        raise ScanError(f"'{name}' has more than {MAX_IN_SLICE} contours in a slice")
    drawn, notes = _filled(name, slices, grid.shape[:2], exclusive)
    if closed and skipped:
        notes.append(f"structure '{name}' has contours that are not closed; left out: {skipped}")
    found = between(name, drawn, grid.shape[:2], np.array(grid.spacing_mm))
    parts = [at * grid.shape[2] + k for k, at in (*drawn.items(), *found.voxels.items())]
    return np.sort(np.concatenate([np.empty(0, dtype=np.int64), *parts])), [*notes, *found.notes]


def _filled(
    name: str, slices: Mapping[int, Sequence[FloatArray]], shape: tuple[int, int], exclusive: bool
) -> tuple[dict[int, InSlice], list[str]]:
    """Voxels that the contours of each slice surround. If one is to be combined by exclusive or, all are: the
    standard allows no mixture (PS3.3 C.8.8.6.1)."""
    if exclusive:
        return {k: np.flatnonzero(xor_mask(polygons, shape)) for k, polygons in slices.items()}, []
    found, copies, overlapping = {}, 0, 0
    for k, polygons in slices.items():
        drawn = fill_contours(polygons, shape)
        found[k] = np.flatnonzero(drawn.mask)
        copies, overlapping = copies + drawn.copies, overlapping + drawn.overlapping
    notes = [f"structure '{name}' repeats contours; copies left out: {copies}"] if copies else []
    if overlapping:
        notes.append(f"contours of structure '{name}' overlap; merged in slices: {overlapping}")
    return found, notes


def _plane(name: str, k: FloatArray) -> int:
    """The slice of a contour; contours far beyond the series are all assigned alike."""
    nearest = float(np.rint(np.clip(np.median(k), -2, 2**20)))
    off = float(np.abs(k - np.median(k)).max()), abs(float(np.clip(np.median(k), -2, 2**20)) - nearest)
    if max(off) > PLANE_TOLERANCE:
        raise ScanError(
            f"a contour of '{name}' lies across or between the slices of the series; give the series that it "
            "was drawn on"
        )
    return int(nearest)


def _closed_contours(name: str, roi: Dataset) -> tuple[list[tuple[str, FloatArray]], int]:
    """Kind, and points ``[N, 3]`` in LPS+ millimetres; and the number of contours without an area: points,
    open lines, fewer than three points."""
    found: list[tuple[str, FloatArray]] = []
    contours = roi.get("ContourSequence") or []
    if len(contours) > MAX_CONTOURS:
        raise ScanError(f"'{name}' has {len(contours)} contours; at most {MAX_CONTOURS} are read")
    for contour in contours:
        kind = str(contour.get("ContourGeometricType"))
        if kind not in _CLOSED:
            continue
        numbers = _numbers(contour)
        if numbers.size % 3 or numbers.size > 3 * MAX_POINTS or not np.isfinite(numbers).all():
            raise ScanError(f"a contour of '{name}' has {numbers.size} coordinates that make no points")
        if numbers.size >= 9:
            found.append((kind, numbers.reshape(-1, 3)))
    return found, len(contours) - len(found)


def _numbers(contour: Dataset) -> FloatArray:
    """The contour's coordinates; if pydicom has not parsed them yet, without its checks of each number."""
    raw = contour.get_item(_CONTOUR_DATA)
    value = None if raw is None else raw.value
    if isinstance(value, bytes):
        return np.array(value.decode("ascii").strip(" \0").split("\\"), dtype=np.float64)
    return np.array(contour.get("ContourData") or [], dtype=np.float64)
