"""A data set from DICOM: series, and the SEG and RTSTRUCT objects that annotate them.

``survey`` determines the series and the annotated structures of each object, ``convert`` writes them in
nnU-Net raw layout. Neither guesses: contradictions between objects, and objects of ambiguous series, are
omitted, with the reason.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoomseg.anatomy.codes import short_text
from zoomseg.core.errors import DatasetError, LabelError, OutputError, ScanError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.sides import name_meaning, name_tokens
from zoomseg.datasets.layouts import dataset_description
from zoomseg.io.dicom.read import rtstruct, seg
from zoomseg.io.dicom.read.object_header import Other
from zoomseg.io.dicom.read.references import series_of
from zoomseg.io.dicom.read.series_discovery import Found, Stack, find_series
from zoomseg.io.dicom.read.series_names import case_names
from zoomseg.io.dicom.read.structures import Indices, Structures
from zoomseg.io.dicom.read.voxels import read_volume
from zoomseg.io.files import folded, reading, writable_directory, write_json_atomic
from zoomseg.io.scans import write_array, write_labels

KINDS = {**seg.KINDS, **rtstruct.KINDS}
"""SOP classes of objects with labels."""

MAX_ID_LENGTH = 80

_RESERVED = "ignore"
"""A label name with another meaning in data sets."""

Meaning = tuple[str, ...]
"""Words of a structure's name, as ``name_meaning``: common to its spellings."""


@dataclass(frozen=True, eq=False)
class DicomCase:
    """A series and its objects. ``names``: annotated structures, as spelled there. ``id`` is derived from the
    names of folders, or a number if these contain the patient's name."""

    id: str
    stack: Stack
    objects: tuple[Other, ...]
    names: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Survey:
    """The training data in a folder. ``problems``: annotations that cannot be used, with reasons; ``notes``:
    further remarks. One line each."""

    root: Path
    cases: tuple[DicomCase, ...]
    unlabelled: int
    """Number of series without annotations."""
    problems: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def schema(self) -> LabelSchema:
        """All names, the most frequent first. Of several spellings that ``LabelSchema.find`` treats as equal,
        the most frequent.

        Raises:
            DatasetError: more names than possible labels.
        """
        spelled: dict[Meaning, Counter[str]] = defaultdict(Counter)
        for name in (name for case in self.cases for name in case.names):
            spelled[_meaning(name)][name] += 1
        often = sorted(spelled.values(), key=lambda spellings: -spellings.total())
        try:
            return LabelSchema.consecutive(spellings.most_common(1)[0][0] for spellings in often)
        except LabelError as error:
            message = f"{self.root}: {error}; delete structures that should not be learned"
            raise DatasetError(message) from error

    @property
    def channel(self) -> str:
        """The modality of the series: CT or MR.

        Raises:
            DatasetError: both occur, and one network cannot learn both.
        """
        found = Counter(case.stack.series.modality for case in self.cases)
        if len(found) > 1:
            what = " and ".join(f"{count} {modality}" for modality, count in found.most_common())
            raise DatasetError(f"{self.root}: labels on {what} series; give a folder with one kind only")
        return next(iter(found))


@dataclass(frozen=True)
class Conversion:
    """The written cases, one line for each that could not be written, and structures hidden by others."""

    written: tuple[str, ...]
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def _meaning(name: str) -> Meaning:
    """Equal for spellings that ``LabelSchema.find`` treats as one name."""
    return name_meaning(name) or (name,)


# --- survey ---------------------------------------------------------------------------------------


def survey(root: Path) -> Survey:
    """Read all objects with labels in a folder, and find their series.

    Raises:
        ScanError: as ``find_series``.
        DatasetError: no object that can be used.
    """
    found = find_series(root, KINDS)
    ids = _ids(root, found)
    problems: list[str] = []
    drawn_on: dict[int, list[Other]] = defaultdict(list)
    for one in found.objects:
        try:
            drawn_on[series_of(one.source, found.stacks)].append(one)
        except ScanError as error:
            problems.append(str(error))
    notes = [*found.notes, *(refused.reason for refused in found.refused)]
    cases = []
    for index, objects in sorted(drawn_on.items()):
        stack = found.stacks[index]
        if None in stack.series.slices:
            what = "its slices are missing or uneven, and nothing is annotated between them"
            problems.append(f"{ids[index]}: {what}; export the whole series")
            continue
        structures, wrong = _annotated_structures(objects, stack)
        problems += wrong
        notes += [*structures.notes, *(f"{ids[index]}: {note}" for note in stack.series.notes)]
        if structures.names:
            cases.append(DicomCase(ids[index], stack, tuple(objects), structures.names))
    if not cases:
        why = problems[0] if problems else "SEG and RTSTRUCT objects contain no structure"
        raise DatasetError(f"{root}: DICOM without labels that can be used ({why})")
    return Survey(root, tuple(cases), len(found.stacks) - len(drawn_on), tuple(problems), tuple(notes))


def _ids(root: Path, found: Found) -> list[str]:
    """Ids by stack. Folders may be named after patients; such names are not passed on."""
    ids: list[str] = []
    taken: set[str] = set()
    # The names of refused series come last, and are not needed.
    for number, (name, stack) in enumerate(zip(case_names(root, found), found.stacks, strict=False), start=1):
        plain = re.sub(r"[^\w.-]+", "_", name)[:MAX_ID_LENGTH].strip("._-")
        if not plain or _names_patient(name, dict(stack.series.patient)):
            plain = f"case_{number:03d}"
        wanted = (plain, *(f"{plain}-{again}" for again in range(2, len(found.stacks) + 2)))
        ids.append(next(one for one in wanted if folded(one) not in taken))
        taken.add(folded(ids[-1]))
    return ids


def _names_patient(name: str, patient: Mapping[str, str]) -> bool:
    """Whether it contains a word of the patient's name. A name equal to the patient's ID is a pseudonym."""
    called = patient.get("PatientName", "")
    words = name_tokens(called) if called != patient.get("PatientID") else ()
    return any(word in name.lower() for word in words if len(word) > 1)


# --- annotations -----------------------------------------------------------------------------------


def _annotated_structures(objects: Iterable[Other], stack: Stack) -> tuple[Structures, list[str]]:
    """The structures annotated on a series in all objects, and those that cannot be used. If two objects
    annotate one structure differently, neither is used."""
    agreed: dict[Meaning, _Drawing] = {}
    disputed: dict[Meaning, str] = {}
    problems: list[str] = []
    notes: list[str] = []
    for one in objects:
        path = one.source.path
        read = seg.read_seg if one.sop_class_uid in seg.KINDS else rtstruct.read_rtstruct
        try:
            structures = read(path, stack.series)
        except ScanError as error:
            problems.append(str(error))
            continue
        notes += [f"{path}: {note}" for note in structures.notes]
        drawings, merged = _drawings(path, structures)
        notes += merged
        for meaning, drawing in drawings.items():
            first = agreed.setdefault(meaning, drawing)
            if not np.array_equal(first.voxels, drawing.voxels):
                what = f"'{drawing.name}' is annotated differently in {first.path}"
                disputed[meaning] = f"{path}: {what}; used from neither, keep one of them"
    voxels = {drawing.name: drawing.voxels for m, drawing in agreed.items() if m not in disputed}
    return Structures(stack.series.grid, voxels, tuple(notes)), [*problems, *disputed.values()]


@dataclass(frozen=True, eq=False)
class _Drawing:
    name: str
    path: Path
    voxels: Indices


def _drawings(path: Path, structures: Structures) -> tuple[dict[Meaning, _Drawing], list[str]]:
    """Structures by the meaning of their names; several spellings in one object are merged, with a note."""
    found: dict[Meaning, _Drawing] = {}
    notes: list[str] = []
    for long, voxels in structures.voxels.items():
        name = short_text(long)
        if name == _RESERVED:
            name = f"{name} structure"
        drawing = found.get(_meaning(name))
        if drawing is not None:
            notes.append(
                f"{path}: '{drawing.name}' and '{name}' are one name: their voxels are one structure"
            )
            name, voxels = drawing.name, np.union1d(drawing.voxels, voxels)
        found[_meaning(name)] = _Drawing(name, path, voxels)
    return found, notes


# --- conversion -----------------------------------------------------------------------------------


def convert(found: Survey, out: Path, on_progress: Callable[[str], None] | None = None) -> Conversion:
    """Write the cases in nnU-Net raw layout: intensities unchanged, labels on the series' own voxels. A label
    that was not annotated in a case, or is completely hidden by others, is not listed as annotated there.

    Raises:
        OutputError: ``out`` is not empty or cannot be written.
        DatasetError: too many labels, CT and MR mixed, or no case that can be written.
    """
    schema, channel = found.schema, found.channel
    out = writable_directory(out)
    if any(out.iterdir()):
        raise OutputError(f"{out}: not empty; give a new folder for the data set")
    for folder in ("imagesTr", "labelsTr"):
        writable_directory(out / folder)
    annotated: dict[str, frozenset[str]] = {}
    problems, notes = [], []
    for case in found.cases:
        try:
            annotated[case.id], hidden = _write_case(case, schema, out)
        except (ScanError, LabelError) as error:
            problems.append(f"{case.id}: {error}")
        else:
            notes += [
                f"{case.id}: '{name}' is completely covered by other structures; left out" for name in hidden
            ]
        if on_progress is not None:
            on_progress(case.id)
    if not annotated:
        raise DatasetError(f"{found.root}: no case can be converted ({problems[0]})")
    write_json_atomic(out / "dataset.json", _description(out.name, channel, schema, annotated))
    return Conversion(tuple(annotated), tuple(problems), tuple(notes))


def _write_case(case: DicomCase, schema: LabelSchema, out: Path) -> tuple[frozenset[str], tuple[str, ...]]:
    """Write one case; returns its labels, and the annotated structures hidden by others."""
    structures, _ = _annotated_structures(case.objects, case.stack)
    labels, drawn = structures.label_map(schema)
    present = frozenset(labels.present)
    with reading(case.stack.paths[0].parent, "DICOM"):  # memory may be insufficient
        image = read_volume(case.stack)
    write_array(out / "imagesTr" / f"{case.id}_0000.nii.gz", image.data[0], image.grid)
    write_labels(out / "labelsTr" / f"{case.id}.nii.gz", labels)
    return drawn & present, tuple(sorted(drawn - present))


def _description(
    name: str, channel: str, schema: LabelSchema, annotated: Mapping[str, frozenset[str]]
) -> dict[str, object]:
    used = frozenset[str]().union(*annotated.values())
    labels = [(n, v) for n, v in zip(schema.names, schema.values, strict=True) if n in used]
    known = LabelSchema(tuple(n for n, _ in labels), tuple(v for _, v in labels))
    partial = {case: has for case, has in annotated.items() if has != used}
    return dataset_description(name, (channel,), known, len(annotated), partial)
