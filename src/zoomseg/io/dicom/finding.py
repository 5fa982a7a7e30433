"""Which volumes there are in a folder, a zip or a file of DICOM objects; only headers are read.

A series is split where its slices differ in size, spacing or orientation, and where several phases, echoes
or the like share their places. What cannot become a volume is refused with its reason, one by one; what is no
scan is left out with a note.
"""

from __future__ import annotations

import warnings
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.archive import Source, is_zip, opening, sources_in
from zoomseg.io.dicom.geometry import Placement, place
from zoomseg.io.dicom.header import PATIENT, Damaged, Image, Other, StoredSlice, read_object
from zoomseg.io.dicom.objects import notes_on_identity
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.splitting import by_geometry, by_phase

MAX_VOXELS = 4 * 1024**3
"""A series that promises more is refused."""


@dataclass(frozen=True, eq=False)
class Stack:
    """A series with what is needed to read its voxels (see ``io.dicom.voxels``)."""

    series: DicomSeries
    stored: tuple[StoredSlice, ...]
    """Sorted along their normal."""
    placement: Placement

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that it is read from."""
        return self.series.paths

    def usable(self) -> Stack:
        return self


@dataclass(frozen=True)
class Refused:
    """A series that cannot become a volume, and why: one line that names it."""

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
    """What was left out; one line each."""
    objects: tuple[Other, ...] = ()
    """What else was asked for."""


def holds_dicom(path: Path) -> bool:
    """Whether a file is a zip by its name, or a DICOM object by its start."""
    source = Source(path)
    with opening() as opener:
        return is_zip(path) or read_object(source, opener) is not None


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


def find_series(path: Path, objects: Container[str] = ()) -> Found:
    """All volumes in ``path``, ordered by study and series number; nothing if it holds no DICOM at all.

    Args:
        objects: SOP classes whose objects are wanted, too; a folder may hold nothing but these.

    Raises:
        ScanError: no such file, DICOM objects but no volume among them, or a zip that is damaged or hostile
            (see ``io.dicom.archive``).
    """
    path = Path(path)
    if not path.exists():
        raise ScanError(f"{path}: no such file or folder")
    images: dict[str, list[Image]] = defaultdict(list)
    damaged: dict[str, list[Damaged]] = defaultdict(list)
    others: Counter[str] = Counter()
    wanted: list[Other] = []
    with opening() as opener, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's: of values that are checked here
        for source in sources_in(path, opener):
            match read_object(source, opener):
                case Image() as image:
                    images[image.series_uid].append(image)
                case Damaged() as broken:
                    damaged[broken.series_uid].append(broken)
                case Other(sop_class_uid=uid) as other if uid in objects:
                    wanted.append(other)
                case Other(kind):
                    others[kind] += 1
    found = [_volumes(path, images[uid], damaged.pop(uid, [])) for uid in images]
    refused = [r for _, some, _ in found for r in some]
    refused += [_all_damaged(broken) for uid, broken in damaged.items() if uid and len(broken) > 1]
    lone = [d for uid, broken in damaged.items() if not uid or len(broken) == 1 for d in broken]
    notes = [f"{path}: {_count(number, kind)} left out" for kind, number in sorted(others.items())]
    notes += [note for _, _, some in found for note in some]
    stacks = [stack for some, _, _ in found for stack in some]
    if not (stacks or refused or wanted) and (lone or notes):
        raise ScanError(lone[0].reason if lone else _no_volume(path, notes))
    notes += [f"{d.reason}; left out" for d in lone]
    stacks.sort(key=lambda s: (s.series.study_uid, _last_if_none(s.series.number), s.series.series_uid))
    return Found(tuple(stacks), tuple(refused), tuple(notes), tuple(wanted))


def _last_if_none(number: int | None) -> float:
    return np.inf if number is None else number


def _count(number: int, kind: str) -> str:
    return kind if number == 1 else f"{number} objects of the kind '{kind}'"


def _no_volume(path: Path, notes: Sequence[str]) -> str:
    left_out = "; ".join(note.removeprefix(f"{path}: ") for note in notes)
    return f"{path}: DICOM files, but no volume among them ({left_out[:300]})"


def _volumes(
    path: Path, images: list[Image], broken: list[Damaged]
) -> tuple[list[Stack], list[Refused], list[str]]:
    """The volumes of the objects of one series, what is refused of it, and notes on what was left out."""
    first, name = images[0], f"{path}: {_named(images[0])}"
    sources = tuple(dict.fromkeys(s.source for image in images for s in image.slices))

    def refused(reason: str) -> Refused:
        return Refused(first.study_uid, first.number, sources, reason)

    if broken:
        return [], [refused(broken[0].reason)], []
    try:
        stored, notes = _without_copies(images)
    except ScanError as error:
        return [], [refused(str(error))], []
    if len(stored) == 1:
        return [], [], [f"{name}: a single image, no volume; left out"]
    stacks, failures, alone = [], [], 0
    groups = by_geometry(stored)
    for group in groups:
        if len(group) == 1:
            alone += 1
            continue
        more = [*notes, _of_several(len(groups))] if len(groups) > 1 else notes
        try:
            stacks += [_stack(first, part, (*more, *why)) for part, why in by_phase(group)]
        except ScanError as error:
            failures.append(refused(f"{name}: {error}"))
    left = [f"{name}: {alone} images of a size or orientation of their own; left out"] if alone else []
    return stacks, failures, left


def _all_damaged(broken: list[Damaged]) -> Refused:
    first = broken[0]
    return Refused(first.study_uid, first.number, tuple(d.source for d in broken), first.reason)


def _of_several(count: int) -> str:
    return f"the series holds {count} sizes or orientations of slices; each is a volume of its own"


def _named(image: Image) -> str:
    number = "" if image.number is None else f" {image.number}"
    return f"series{number}" + (f" '{image.description}'" if image.description else "")


def _without_copies(images: Iterable[Image]) -> tuple[list[StoredSlice], list[str]]:
    """All slices, of copies of one object only the first."""
    kept: dict[object, StoredSlice] = {}
    copies = 0
    for stored in (s for image in images for s in image.slices):
        key = (stored.sop_uid, stored.frame) if stored.sop_uid else (stored.source, stored.frame)
        if key in kept and _differs(kept[key], stored):
            raise ScanError(f"{stored.source}: has the UID of {kept[key].source}, but lies elsewhere")
        copies += key in kept
        kept.setdefault(key, stored)
    notes = [f"{copies} slices are there twice; the copies were left out"] if copies else []
    return list(kept.values()), notes


def _differs(one: StoredSlice, other: StoredSlice) -> bool:
    return any(
        getattr(one, where) != getattr(other, where)
        for where in ("position_lps_mm", "along_row", "along_column", "spacing_mm")
    )


def _stack(first: Image, stored: Sequence[StoredSlice], notes: tuple[str, ...]) -> Stack:
    placement = place(stored)
    ordered = tuple(stored[i] for i in placement.order)
    voxels = placement.grid.box.voxels
    if voxels > MAX_VOXELS:
        raise ScanError(f"headers promise {voxels} voxels; at most {MAX_VOXELS} are read")
    patient = dict(first.patient)
    series = DicomSeries(
        placement.grid,
        tuple(ordered[p.first] if p.weight == 0 else None for p in placement.planes),
        first.sop_class_uid,
        first.study_uid,
        first.series_uid,
        first.frame_of_reference_uid,
        first.modality,
        first.number,
        first.description,
        tuple((keyword, patient[keyword]) for keyword in PATIENT if keyword in patient),
        (*notes, *placement.notes),
    )
    series = replace(series, notes=(*series.notes, *notes_on_identity(series)))
    return Stack(series, ordered, placement)


# --- names ----------------------------------------------------------------------------------------


def base_name(path: Path) -> str:
    """``a/knee`` -> ``knee``, ``knee.zip`` -> ``knee``."""
    name = path.resolve().name
    return Path(name).stem if is_zip(path) or path.suffix.lower() in (".dcm", ".ima") else name


def case_names(path: Path, found: Found) -> tuple[str, ...]:
    """A name for each of ``found``'s stacks, then for each refused series; all different.

    A single series is called like the folder or zip. Of several, each has its series number behind that.
    Where several studies lie in one folder, each is called like the folder or zip in it that holds it.
    """
    series = [(s.series.study_uid, s.series.number, tuple(p.source for p in s.stored)) for s in found.stacks]
    series += [(r.study_uid, r.number, r.sources) for r in found.refused]
    several = len({study for study, _, _ in series}) > 1
    plain = [_entry(path, sources) if several else base_name(path) for _, _, sources in series]
    wanted = [
        name if plain.count(name) == 1 else f"{name}_{number if number is not None else 'x'}"
        for name, (_, number, _) in zip(plain, series, strict=True)
    ]
    names: list[str] = []
    for name in wanted:
        again = (f"{name}_{letter}" for letter in range(1, len(wanted) + 1))
        names.append(
            name if wanted.count(name) == 1 else next(n for n in again if n not in (*names, *wanted))
        )
    return tuple(names)


def _entry(path: Path, sources: Iterable[Source]) -> str:
    """The folder or zip directly in ``path`` that holds all ``sources``; else ``path`` itself."""
    entries = {s.path.relative_to(path).parts[0] for s in sources} if path.is_dir() else set()
    entry = path / entries.pop() if len(entries) == 1 else path
    return base_name(entry) if entry.is_dir() or is_zip(entry) else base_name(path)
