"""Find the volumes in a folder, a zip or a file of DICOM objects; only headers are read.

The identity of images is cross-checked: images of several patients, studies or frames of reference under one
series UID are separated. A series is split if its slices differ in size, spacing or orientation, and if
several phases, echoes or the like share positions or interleave. Series that cannot become a volume are
refused with a reason, one by one; objects that are not scans are ignored with a note.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.read.archive import Source, is_zip, opening, sources_in
from zoomseg.io.dicom.read.duplicates import without_copies
from zoomseg.io.dicom.read.object_header import (
    PATIENT,
    REQUIRED,
    Damaged,
    Image,
    Other,
    StoredSlice,
    read_image_object,
)
from zoomseg.io.dicom.read.series_splitting import at_one_place, by_geometry, by_identity, by_phase
from zoomseg.io.dicom.read.slice_geometry import Placement, is_complete, place
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.uids import notes_on_identity
from zoomseg.io.header_limits import MAX_VOXELS, implausible

MAX_FILES_EXAMINED = 1000
"""Maximum number of files examined for whether there is DICOM."""


@dataclass(frozen=True, eq=False)
class Stack:
    """A series with everything needed to read its voxels (see ``io.dicom.read.voxels``)."""

    series: DicomSeries
    stored: tuple[StoredSlice, ...]
    """Sorted along their normal."""
    placement: Placement

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files from which it is read."""
        return self.series.paths

    def usable(self) -> Stack:
        return self


@dataclass(frozen=True)
class Refused:
    """A series that cannot become a volume, and the reason: one line that names it."""

    study_uid: str
    number: int | None
    sources: tuple[Source, ...]
    reason: str

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(source.path for source in self.sources)

    def usable(self) -> Stack:
        raise ScanError(self.reason)


@dataclass(frozen=True, eq=False)
class Found:
    stacks: tuple[Stack, ...]
    refused: tuple[Refused, ...]
    notes: tuple[str, ...]
    """Notes on ignored objects; one line each."""
    objects: tuple[Other, ...] = ()
    """Other requested objects."""


def holds_dicom(path: Path) -> bool:
    """Whether a file is a zip by its name, or a DICOM object by its start."""
    source = Source(path)
    with opening() as opener, _quiet():
        return is_zip(path) or read_image_object(source, opener) is not None


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress pydicom's warnings about values that are checked here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def any_dicom(files: Iterable[Path]) -> bool:
    """Whether there is DICOM (see ``holds_dicom``) among the first files of a folder."""
    return any(holds_dicom(file) for file in islice(files, MAX_FILES_EXAMINED))


def the_series(path: Path) -> Stack:
    """The only volume in ``path``.

    Raises:
        ScanError: as ``find_series``; no volume, or several.
    """
    found = find_series(path)
    if found.refused:
        raise ScanError(found.refused[0].reason)
    if len(found.stacks) != 1:
        raise ScanError(f"{path}: {len(found.stacks)} DICOM volumes; give a folder or zip of one of them")
    return found.stacks[0]


def find_series(path: Path, objects: Container[str] = (), described: bool = True) -> Found:
    """All volumes in ``path``, ordered by study and series number; empty if it contains no DICOM at all.

    Args:
        objects: SOP classes whose objects are requested, too; a folder may contain only these.
        described: whether notes and reasons name a series by its description, besides its number.

    Raises:
        ScanError: no such file, DICOM objects without a volume, or a zip that is damaged or hostile (see
            ``io.dicom.read.archive``).
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder")
    met = _read_objects(path, objects)
    stacks, refused, left_out = _all_volumes(_Place(path, described), met)
    lost, lone = _without_images(met)
    refused += lost
    notes = [f"{path}: {_count(number, kind)} left out" for kind, number in sorted(met.others.items())]
    notes += left_out
    if met.images or lost or lone:
        notes += _stray_notes(path, met.strays)
    if not (stacks or refused or met.wanted) and (lone or notes):
        raise ScanError(lone[0].reason if lone else _no_volume(path, notes))
    notes += [f"{broken.reason}; left out" for broken in lone]
    stacks.sort(key=lambda s: (s.series.study_uid, _last_if_none(s.series.number), s.series.series_uid))
    return Found(tuple(stacks), tuple(refused), tuple(notes), tuple(met.wanted))


@dataclass
class _Objects:
    """The DICOM objects of a folder, by kind; images and damaged ones by series UID."""

    images: dict[str, list[Image]] = field(default_factory=lambda: defaultdict(list))
    damaged: dict[str, list[Damaged]] = field(default_factory=lambda: defaultdict(list))
    others: Counter[str] = field(default_factory=Counter)
    wanted: list[Other] = field(default_factory=list)
    strays: list[Source] = field(default_factory=list)
    """Files named like DICOM that are not."""


def _read_objects(path: Path, objects: Container[str]) -> _Objects:
    met, unplaced = _Objects(), []
    with opening() as opener, _quiet():
        for source in sources_in(path, opener):
            match read_image_object(source, opener):
                case Image() as image:
                    met.images[image.identity.series_uid].append(image)
                case Damaged() as broken:
                    met.damaged[broken.series_uid].append(broken)
                case Other(sop_class_uid=uid) as other if uid in objects:
                    met.wanted.append(other)
                case Other(kind, scan=scan):
                    met.others[kind] += 1
                    unplaced += [] if scan is None else [scan]
                case None:
                    met.strays += [source] if _is_called_dicom(source) else []
    for lost in unplaced:
        if lost.series_uid in met.images:
            met.damaged[lost.series_uid].append(lost)
    return met


def _without_images(met: _Objects) -> tuple[list[Refused], list[Damaged]]:
    """Series without a readable image: refused ones, and single objects that are ignored."""
    series = {uid: broken for uid, broken in met.damaged.items() if uid not in met.images}
    whole = {uid for uid, broken in series.items() if uid and (len(broken) > 1 or broken[0].whole)}
    refused = [_all_damaged(broken) for uid, broken in series.items() if uid in whole]
    return refused, [one for uid, broken in series.items() if uid not in whole for one in broken]


def _last_if_none(number: int | None) -> float:
    return np.inf if number is None else number


def _count(number: int, kind: str) -> str:
    return kind if number == 1 else f"{number} objects of the kind '{kind}'"


def _is_called_dicom(source: Source) -> bool:
    return (source.member or source.path.name).lower().endswith((".dcm", ".dicom", ".ima"))


def _stray_notes(path: Path, strays: Sequence[Source]) -> list[str]:
    """Notes on files named like DICOM that are not: slices may be missing because of them."""
    if not strays:
        return []
    what = (
        f"{strays[0]} is" if len(strays) == 1 else f"{len(strays)} files, {strays[0]} the first of them, are"
    )
    return [f"{path}: {what} not DICOM despite the name; left out"]


def _no_volume(path: Path, notes: Sequence[str]) -> str:
    left_out = "; ".join(note.removeprefix(f"{path}: ") for note in notes)
    return f"{path}: DICOM files, but no volume among them ({left_out[:300]})"


_Volumes = tuple[list[Stack], list[Refused], list[str]]
"""Volumes, refused series, and notes on ignored objects."""


@dataclass(frozen=True)
class _Place:
    """The folder or file that is searched; names series in messages."""

    path: Path
    described: bool

    def series(self, image: Image) -> str:
        number = "" if image.number is None else f" {image.number}"
        description = f" '{image.description}'" if self.described and image.description else ""
        return f"{self.path}: series{number}{description}"


def _all_volumes(place: _Place, met: _Objects) -> _Volumes:
    """The volumes from all images."""
    stacks, refused, notes = [], [], []
    for uid, images in met.images.items():
        for made, failed, left_out in _of_series(place, images, met.damaged.get(uid, [])):
            stacks += made
            refused += failed
            notes += left_out
    return stacks, refused, notes


def _of_series(place: _Place, images: list[Image], broken: list[Damaged]) -> list[_Volumes]:
    """The volumes from the objects under one series UID, which may belong to several series."""
    if broken:
        return [([], [_refused(images, broken[0].reason)], [])]
    parts, differ_in = by_identity(images)
    single = all(len(part) == len(part[0].slices) == 1 for part in parts)
    if single and len(parts) > 1 and images[0].identity.series_uid:
        what = f"its {len(images)} images differ in {', '.join(differ_in)}, so that no two belong together"
        return [([], [_refused(images, f"{place.series(images[0])}: {what}")], [])]
    return [_volumes(place, part, differ_in) for part in parts]


def _refused(images: Sequence[Image], reason: str) -> Refused:
    sources = tuple(dict.fromkeys(s.source for image in images for s in image.slices))
    return Refused(images[0].identity.study_uid, images[0].number, sources, reason)


def _volumes(place: _Place, images: list[Image], differ_in: Sequence[str]) -> _Volumes:
    """The volumes from the objects of one series.

    Args:
        differ_in: attributes that distinguish them from others under their series UID.
    """
    first, name = images[0], place.series(images[0])
    try:
        stored, notes = without_copies(images)
    except ScanError as error:
        return [], [_refused(images, str(error))], []
    notes = [*_identity_notes(images, differ_in), *notes]
    if len(stored) == 1:
        return [], [], [f"{name}: a single image, not a volume; left out"]
    stacks, failures = [], []
    groups = by_geometry(stored)
    alone = sum(len(group) == 1 for group in groups)
    tracking = sum(len(group) for group in groups if len(group) > 1 and at_one_place(group))
    groups = [group for group in groups if not at_one_place(group)]
    notes += [_of_several(len(groups))] if len(groups) > 1 else []
    for group in groups:
        try:
            parts = by_phase(group, first.modality)
            tracking += len(parts.left_out)
            made = [_stack(first, part, (*notes, *why)) for part, why in parts.volumes]
            _require_complete(made, differ_in)
            stacks += made
        except ScanError as error:
            own = tuple(dict.fromkeys(one.source for one in group))
            failures.append(Refused(first.identity.study_uid, first.number, own, f"{name}: {error}"))
    left = [f"{name}: {alone} images of a size or orientation of their own; left out"] if alone else []
    left += [f"{name}: {tracking} images at one place, as of bolus tracking; left out"] if tracking else []
    return stacks, failures, left


def _identity_notes(images: Sequence[Image], differ_in: Sequence[str]) -> list[str]:
    """Notes on missing or inconsistent identity of the images."""
    lacking = [keyword for keyword in REQUIRED if any(keyword in image.lacking for image in images)]
    meaning = "; ".join(REQUIRED[keyword] for keyword in lacking)
    notes = [f"its headers lack {', '.join(lacking)}; {meaning}"] if lacking else []
    if differ_in:
        uid = images[0].identity.series_uid
        where = "under one SeriesInstanceUID" if uid else "without a SeriesInstanceUID"
        notes.append(f"images {where} differ in {', '.join(differ_in)}; each kind is read as a separate scan")
    return notes


def _require_complete(stacks: Iterable[Stack], differ_in: Sequence[str]) -> None:
    """Refuse interpolation if images of several identities are under one UID: missing slices may be in
    another part."""
    if differ_in and not all(is_complete(stack.stored) for stack in stacks):
        raise ScanError(
            f"its images differ in {', '.join(differ_in)}, and those that agree lack slices; "
            "correct the headers, or give each part in a folder of its own"
        )


def _all_damaged(broken: list[Damaged]) -> Refused:
    first = broken[0]
    return Refused(first.study_uid, first.number, tuple(d.source for d in broken), first.reason)


def _of_several(count: int) -> str:
    return f"the series holds {count} sizes or orientations of slices; each is read as a separate volume"


def _stack(first: Image, stored: Sequence[StoredSlice], notes: tuple[str, ...]) -> Stack:
    placement = place(stored)
    wrong = implausible(placement.grid)
    if wrong:
        raise ScanError(wrong)
    ordered = tuple(stored[i] for i in placement.order)
    voxels = placement.grid.box.voxels
    if voxels > MAX_VOXELS:
        raise ScanError(f"headers promise {voxels} voxels; at most {MAX_VOXELS} are read")
    patient = dict(first.patient)
    in_plane = [p.first if p.weight == 0 else None for p in placement.planes]
    between = sorted(set(range(len(ordered))).difference(in_plane))
    series = DicomSeries(
        placement.grid,
        tuple(None if k is None else ordered[k] for k in in_plane),
        first.sop_class_uid,
        first.identity.study_uid,
        first.identity.series_uid,
        first.identity.frame_of_reference_uid,
        first.modality,
        first.number,
        first.description,
        tuple((keyword, patient[keyword]) for keyword in PATIENT if keyword in patient),
        (*notes, *_value_notes(stored, first.modality), *placement.notes),
        tuple(ordered[k] for k in between),
    )
    series = replace(series, notes=(*series.notes, *notes_on_identity(series)))
    return Stack(series, ordered, placement)


def _value_notes(stored: Sequence[StoredSlice], modality: str) -> list[str]:
    """Notes on the meaning of its values, where it is not certain.

    Raises:
        ScanError: the meaning differs between slices.
    """
    types = {one.rescale_type for one in stored}
    if None in types and len(types) > 1:
        raise ScanError("some of its slices have a RescaleSlope and some have none; export the series again")
    notes = []
    if modality == "CT":
        units = sorted(unit for unit in types if unit not in ("", "HU", None))
        notes += [f"RescaleType is {', '.join(units)}, not HU; taken as Hounsfield units"] if units else []
    if any(one.padding_may_be_scanned for one in stored):
        notes.append(
            "pixel padding has a value that tissue may have; taken as padding only up from a slice's edge"
        )
    return notes
