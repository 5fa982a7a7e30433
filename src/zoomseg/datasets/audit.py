"""Audit a data set before training, and write a repaired copy where that is safe.

Cases are read one at a time; only small facts about each are kept. A repair never guesses: it replaces voxels
that are not numbers, snaps headers that differ by less than half a voxel, stores labels close to whole
numbers as integers, and omits cases that cannot be used. Problems that require a human decision (unknown
label values, large shifts, left and right) are reported and copied unchanged.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from zoomseg.core.arrays import AnyNumpy
from zoomseg.core.errors import DatasetError, MemoryLimitError, OutputError, ScanError, ZoomSegError
from zoomseg.core.geometry import GEOMETRY_TOLERANCE_VOX, Grid
from zoomseg.core.volume import Volume
from zoomseg.datasets.advice import advise, hounsfield
from zoomseg.datasets.layouts import CaseFiles, Dataset, dataset_description, read_description
from zoomseg.io.files import atomic_path, why_unreadable, writable_directory, write_json_atomic
from zoomseg.io.scans import (
    ScanInput,
    as_channels,
    header_notes,
    looks_like_labels,
    read_grid,
    read_label_values,
    read_rounded_labels,
    read_voxels,
    scan_suffix,
    write_array,
    write_image,
)

SNAP_VOXELS = 0.5
"""A header may be snapped to another grid if no voxel moves by this fraction of the smallest spacing."""

SIDE_MARGIN_MM = 5.0
"""Left and right organs whose centres are closer than this along the R axis give no information on sides."""

Severity = Literal["error", "warning"]
Kind = Literal[
    "missing_file",
    "missing_labels",
    "unreadable",
    "too_large",
    "header",
    "wrong_channels",
    "not_finite",
    "constant",
    "label_map_as_image",
    "geometry",
    "unknown_values",
    "empty_labels",
    "drawn_unannotated",
    "absent_label",
    "never_annotated",
    "duplicate",
    "left_right",
    "not_integers",
    "channel_names",
    "label_names",
    "side_names",
]

_REPAIRED_KINDS: frozenset[Kind] = frozenset({"not_finite", "geometry", "not_integers"})
"""Findings that a repair corrects if they are fixable; for other fixable ones the case is omitted."""


@dataclass(frozen=True)
class Finding:
    """One problem. ``case`` is empty if it concerns the whole data set. ``fixable``: a repair resolves it, by
    correcting or by omitting the case."""

    case: str
    severity: Severity
    kind: Kind
    message: str
    fixable: bool = False

    @property
    def leaves_out(self) -> bool:
        """Whether a repair resolves it by omitting the case."""
        return self.fixable and self.kind not in _REPAIRED_KINDS


@dataclass(frozen=True)
class Report:
    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.severity == "warning")

    def of(self, case: str) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.case == case)


@dataclass(frozen=True)
class Repair:
    """The result of a repair: ids of the unchanged, corrected, and omitted cases, and the remaining
    problems."""

    kept: tuple[str, ...]
    repaired: tuple[str, ...]
    left_out: tuple[str, ...]
    remaining: tuple[Finding, ...]


@dataclass
class _Facts:
    """The facts kept about a case after its voxels are released."""

    case: str
    findings: list[Finding] = field(default_factory=list)
    image_hash: str | None = None
    units: tuple[bool, ...] = ()
    """By channel, whether it looks like CT; empty if not all can be read."""
    label_hash: str | None = None
    present: frozenset[str] = frozenset()
    offsets_mm: dict[tuple[str, str], float] = field(default_factory=dict)
    """(left, right) -> distance of the right organ from the left one towards the patient's right."""

    def add(self, severity: Severity, kind: Kind, message: str, fixable: bool = False) -> None:
        self.findings.append(Finding(self.case, severity, kind, message, fixable))


# --- audit ----------------------------------------------------------------------------------------


def audit(dataset: Dataset, on_progress: Callable[[str], None] | None = None) -> Report:
    """Read every case of a data set and report its problems.

    Args:
        on_progress: called with the id of each case after it was read.
    """
    facts: list[_Facts] = []
    for case in dataset.cases:
        facts.append(_audit_case(dataset, case))
        if on_progress is not None:
            on_progress(case.id)
    findings = [f for fact in facts for f in fact.findings]
    findings += _absent_labels(dataset, facts)
    findings += _names(dataset, facts)
    findings += _duplicates(facts)
    findings += _sides(facts)
    order = {case: i for i, case in enumerate(dataset.ids)}
    return Report(tuple(sorted(findings, key=lambda f: order.get(f.case, -1))))


def annotated_cases(dataset: Dataset) -> dict[str, int]:
    """By label, the number of labelled cases in which it is annotated."""
    labelled = [case for case in dataset.cases if case.labels is not None]
    return {name: sum(_annotates(case, name) for case in labelled) for name in dataset.schema.names}


def _annotates(case: CaseFiles, label: str) -> bool:
    return case.annotated is None or label in case.annotated


def _audit_case(dataset: Dataset, case: CaseFiles) -> _Facts:
    facts = _Facts(case.id)
    image = _audit_image(dataset, case, facts)
    if case.labels is None:
        facts.add("error", "missing_labels", "no label file for this image", fixable=True)
    else:
        _audit_labels(dataset, case, case.labels, image, facts)
    return facts


def _audit_image(dataset: Dataset, case: CaseFiles, facts: _Facts) -> Grid | None:
    """Audit the channels one after the other; returns the grid of the first readable one."""
    first: Grid | None = None
    digest = hashlib.blake2b(digest_size=16)
    complete, label_like = True, True
    channels = len(dataset.channel_names) if dataset.channels_last(case) else 1
    units: list[bool] = []
    if len(case.images) not in (1, len(dataset.channel_names)):
        message = f"{len(case.images)} image files, but {len(dataset.channel_names)} channel(s) are named"
        facts.add(
            "error", "wrong_channels", f"{message}; {as_channels([ScanInput(case.id, case.images)])}", True
        )
    for path in case.images:
        name = _name(path, dataset)
        volume = _read(path, channels, dataset, facts)
        if volume is None:
            complete = False
            continue
        first = first or volume.grid
        _audit_grid(first, volume.grid, name, facts)
        digest.update(repr(volume.data.shape).encode())
        digest.update(np.ascontiguousarray(volume.data, dtype=np.float32).data)
        for channel in volume.data:
            _audit_channel(channel, name, facts)
            label_like = label_like and looks_like_labels(channel)
        units += hounsfield(volume)
    if complete:
        facts.units = tuple(units)
        facts.image_hash = digest.hexdigest()
    if complete and label_like and not any(f.kind == "constant" for f in facts.findings):
        message = f"{_name(case.images[0], dataset)}: looks like a label map, not like a scan"
        facts.add("error", "label_map_as_image", message, fixable=True)
    return first


def _name(path: Path, dataset: Dataset) -> str:
    return str(path.relative_to(dataset.root))


def _read(path: Path, channels: int, dataset: Dataset, facts: _Facts) -> Volume | None:
    """One image file with the expected number of channels; None, with a finding, if it cannot be used."""
    name = _name(path, dataset)
    reason = why_unreadable(path)
    if reason is not None:
        facts.add("error", "missing_file", f"{name}: {reason}", fixable=True)
        return None
    try:
        volume = read_voxels(path, channels_last=channels > 1)
    except ScanError as error:
        facts.add("error", "unreadable", _shorten(error, path, name), fixable=True)
        return None
    except MemoryLimitError as error:  # on a larger machine it could be read
        facts.add("error", "too_large", _shorten(error, path, name))
        return None
    for note in header_notes(path, channels_last=channels > 1):
        facts.add("warning", "header", f"{name}: {note}")
    if volume.channels != channels:
        message = f"{name}: {volume.channels} channels, expected {channels}"
        facts.add("error", "wrong_channels", message, fixable=True)
    return volume


def _shorten(error: ZoomSegError, path: Path, name: str) -> str:
    return str(error).replace(str(path), name)


def _audit_channel(channel: npt.NDArray[np.float32], name: str, facts: _Facts) -> None:
    finite = np.isfinite(channel)
    bad = int(channel.size - finite.sum())
    if bad == channel.size:
        facts.add("error", "constant", f"{name}: all voxels are NaN or infinite", fixable=True)
        return
    if bad:
        message = f"{name}: {bad} of {channel.size} voxels are NaN or infinite"
        facts.add("error", "not_finite", message, fixable=True)
    low, high = channel[finite].min(), channel[finite].max()
    if low == high:
        facts.add("error", "constant", f"{name}: constant image, every voxel is {float(low):g}", fixable=True)


def _audit_grid(image: Grid, other: Grid, name: str, facts: _Facts) -> None:
    if image.shape != other.shape:
        facts.add("error", "geometry", f"{name}: shape {other.shape}, the image has {image.shape}")
    elif not image.same_as(other):
        distance = image.distance_mm(other)
        message = f"{name}: voxels lie up to {distance:.3g} mm from the image's"
        tolerance = f"(tolerance {GEOMETRY_TOLERANCE_VOX} voxels)"
        facts.add("error", "geometry", f"{message} {tolerance}", fixable=_can_snap(image, other))


def _can_snap(image: Grid, other: Grid) -> bool:
    return image.distance_mm(other) < SNAP_VOXELS * min(image.spacing_mm)


def _audit_labels(dataset: Dataset, case: CaseFiles, path: Path, image: Grid | None, facts: _Facts) -> None:
    name = _name(path, dataset)
    reason = why_unreadable(path)
    if reason is not None:
        facts.add("error", "missing_labels", f"{name}: {reason}", fixable=True)
        return
    try:
        values, grid, off = read_rounded_labels(path)
    except ScanError as error:
        facts.add("error", "unreadable", _shorten(error, path, name), fixable=True)
        return
    except MemoryLimitError as error:
        facts.add("error", "too_large", _shorten(error, path, name))
        return
    for note in header_notes(path):
        facts.add("warning", "header", f"{name}: {note}")
    if off:
        message = f"{name}: label values differ from whole numbers by up to {off:.2g}; they are rounded"
        facts.add("warning", "not_integers", message, fixable=True)
    if image is not None:
        _audit_grid(image, grid, name, facts)
    schema = dataset.schema
    found = np.unique(values).tolist()
    unknown = sorted(set(found) - {0, *schema.values})
    if unknown:
        allowed = f"allowed: {[0, *sorted(schema.values)]}"
        facts.add(
            "error", "unknown_values", f"{name}: label values {unknown[:10]} not in the schema; {allowed}"
        )
    if found == [0]:
        facts.add("warning", "empty_labels", f"{name}: no voxel is labelled")
    # One type for all, so that equal values in files of different types are equal.
    facts.label_hash = hashlib.blake2b(
        np.ascontiguousarray(values, np.int32).data, digest_size=16
    ).hexdigest()
    facts.present = frozenset(name for name, value in schema.value_of.items() if value in found)
    sketched = [n for n in schema.names if n in facts.present and not _annotates(case, n)]
    if sketched:
        message = f"{name}: has voxels of {', '.join(sketched)}, not listed as annotated in this case"
        facts.add("warning", "drawn_unannotated", f"{message}; they are not used")
    for left, right in schema.left_right:
        if {left, right} <= facts.present:
            x = [_centre_x_mm(values == schema.value_of[name], grid) for name in (left, right)]
            facts.offsets_mm[left, right] = x[1] - x[0]


def _centre_x_mm(mask: npt.NDArray[np.bool_], grid: Grid) -> float:
    """World R coordinate of a mask's centre of mass: larger means farther to the patient's right."""
    centre = []
    for axis in range(3):
        counts = mask.sum(axis=tuple(a for a in range(3) if a != axis))
        centre.append(float((counts * np.arange(mask.shape[axis])).sum() / counts.sum()))
    return float(grid.world(centre)[0])


# --- findings that need all cases -----------------------------------------------------------------


def _absent_labels(dataset: Dataset, facts: Iterable[_Facts]) -> list[Finding]:
    present = frozenset().union(*(f.present for f in facts))
    findings = []
    for name, cases in annotated_cases(dataset).items():
        if cases == 0:
            message = f"label '{name}' is annotated in no case: it cannot be learned"
            findings.append(Finding("", "error", "never_annotated", message))
        elif name not in present:
            findings.append(Finding("", "warning", "absent_label", f"label '{name}' occurs in no case"))
    return findings


def _names(dataset: Dataset, facts: Iterable[_Facts]) -> list[Finding]:
    """Missing information on channels and labels."""
    advice = advise(dataset, [fact.units for fact in facts if fact.units])
    return [Finding("", "warning", one.kind, str(one)) for one in advice]


def _duplicates(facts: Iterable[_Facts]) -> list[Finding]:
    first: dict[str, _Facts] = {}
    found = []
    for fact in facts:
        if fact.image_hash is None:
            continue
        earlier = first.setdefault(fact.image_hash, fact)
        if earlier is fact:
            continue
        same = earlier.label_hash == fact.label_hash
        message = f"same image as {earlier.case}, " + ("same labels" if same else "but other labels")
        found.append(Finding(fact.case, "error", "duplicate", message, fixable=same))
    return found


def _sides(facts: Iterable[_Facts]) -> list[Finding]:
    """Cases whose left and right organs are opposite to anatomy and to most cases."""
    clear = [
        (fact.case, pair, offset)
        for fact in facts
        for pair, offset in fact.offsets_mm.items()
        if abs(offset) > SIDE_MARGIN_MM
    ]
    reversed_ = sum(offset < 0 for _, _, offset in clear)
    mirrored = reversed_ * 2 > len(clear) and len({case for case, _, _ in clear}) > 1
    findings = []
    if mirrored:
        message = (
            f"in {reversed_} of {len(clear)} organ pairs the left one lies on the patient's right: "
            "the names or the orientation of the whole data set appear to be mirrored"
        )
        findings.append(Finding("", "warning", "left_right", message))
    for case, (left, right), offset in clear:
        if (offset < 0) != mirrored:
            side = "right" if offset < 0 else "left"
            message = (
                f"suspected left/right swap: '{left}' lies {abs(offset):.0f} mm to the {side} of '{right}'"
            )
            findings.append(Finding(case, "warning", "left_right", message))
    return findings


# --- repair ---------------------------------------------------------------------------------------


def repair(
    dataset: Dataset, report: Report, out: Path, on_progress: Callable[[str], None] | None = None
) -> Repair:
    """Write a repaired copy in nnU-Net raw layout; the source is never changed.

    Voxels that are not numbers become the smallest finite value of their channel; headers that differ from
    the image's by less than half a voxel are snapped to it; labels close to whole numbers become these;
    unusable cases and exact duplicates are omitted. Everything else is copied unchanged.

    Raises:
        OutputError: ``out`` is not empty or cannot be written.
        DatasetError: no case can be kept.
        ScanError: a file changed since the audit.
    """
    out = writable_directory(out)
    if any(out.iterdir()):
        raise OutputError(f"{out}: not empty; give a new folder for the repaired copy")
    left_out = tuple(c for c in dataset.ids if any(f.leaves_out for f in report.of(c)))
    kept = [case for case in dataset.cases if case.id not in left_out]
    if not kept:
        raise DatasetError(f"{dataset.root}: no case can be repaired; nothing was written")
    for folder in ("imagesTr", "labelsTr"):
        writable_directory(out / folder)
    mended = []
    for case in kept:
        kinds = {f.kind for f in report.of(case.id) if f.fixable}
        _write_case(dataset, case, out, kinds)
        if kinds:
            mended.append(case.id)
        if on_progress is not None:
            on_progress(case.id)
    write_json_atomic(out / "dataset.json", _description(dataset, kept))
    unchanged = tuple(case.id for case in kept if case.id not in mended)
    remaining = tuple(f for f in report.findings if not f.fixable and f.case not in left_out)
    return Repair(unchanged, tuple(mended), left_out, remaining)


def _write_case(dataset: Dataset, case: CaseFiles, out: Path, kinds: set[Kind]) -> None:
    targets = [out / "imagesTr" / f"{case.id}_{c:04d}.nii.gz" for c in range(len(dataset.channel_names))]
    labels = out / "labelsTr" / f"{case.id}.nii.gz"
    assert case.labels is not None  # cases without labels are omitted
    grid = _write_image(dataset, case, targets, "not_finite" in kinds)
    own = read_grid(case.labels)
    snaps = _can_snap(grid, own)
    moves = snaps and not grid.same_as(own)
    if not moves and "not_integers" not in kinds and scan_suffix(case.labels) == ".nii.gz":
        _copy(case.labels, labels)
        return
    values, _ = read_label_values(case.labels)
    # Labels get the header's geometry, too: otherwise other programs may misalign them with the image.
    write_array(labels, values, grid if snaps else own, like=targets[0] if snaps else case.labels)


def _write_image(dataset: Dataset, case: CaseFiles, targets: list[Path], not_finite: bool) -> Grid:
    """Write a file for each channel; returns the first one's grid.

    Args:
        not_finite: some channel has voxels that are not numbers.
    """
    if dataset.channels_last(case):
        volume = read_voxels(case.images[0], channels_last=True)
        for channel, target in zip(volume.data, targets, strict=True):
            _write_finite(target, channel, volume.grid)
        return volume.grid
    first = read_grid(case.images[0])
    for path, target in zip(case.images, targets, strict=True):
        _write_channel(path, target, first, not_finite)
    return first


def _write_channel(path: Path, target: Path, first: Grid, not_finite: bool) -> None:
    """Write finite voxels, on the first channel's grid where they can be snapped to it. A file that needs no
    change is copied: float32 does not hold all integers."""
    own = read_grid(path)
    grid = first if _can_snap(first, own) else own
    remains = scan_suffix(path) == ".nii.gz" and grid.same_as(own)
    if remains and not not_finite:
        _copy(path, target)
        return
    channel = read_voxels(path).data[0]
    if remains and np.isfinite(channel).all():
        _copy(path, target)
    else:
        _write_finite(target, channel, grid)


def _write_finite(target: Path, channel: AnyNumpy, grid: Grid) -> None:
    finite = np.isfinite(channel)
    mended = np.where(finite, channel, channel[finite].min())
    write_image(target, Volume(mended[None], grid))


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)


def _description(dataset: Dataset, kept: Iterable[CaseFiles]) -> dict[str, object]:
    """A ``dataset.json`` for the copy; texts such as licence and reference are kept."""
    source = read_description(dataset.root) or {}
    texts = {key: value for key, value in source.items() if isinstance(value, str)}
    kept = list(kept)
    annotated = {case.id: case.annotated for case in kept if case.annotated is not None}
    return texts | dataset_description(
        dataset.name, dataset.channel_names, dataset.schema, len(kept), annotated
    )
