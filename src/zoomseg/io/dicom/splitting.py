"""Slices of one series that do not belong to one volume, apart.

What belongs together is told by geometry: headers only say in what slices differ. A volume may consist of
several acquisitions, one after the other; two acquisitions that lie between each other's slices are two.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom.geometry import MAX_GAP_MM, SAME_PLACE_MM, is_complete, places_mm
from zoomseg.io.dicom.header import PHASES, Image, StoredSlice

SAME_DIRECTION = 1e-3
"""Direction cosines of slices of one volume differ by at most this: half a millimetre over half a metre."""

SAME_SPACING = 1e-3
"""Their voxel sizes differ by at most this share."""

MAX_TRACKING_PLACES = 2
"""Bolus tracking takes its images at one place, the one that is planned on perhaps at another."""

MAX_DENSE_SPACING = 1.5
"""Slices further apart, in their thickness, leave room for others between them."""

OTHER_SPACING = 1.25
"""Acquisitions one after the other whose spacings differ by more are no table positions of one volume; by
less, positions in the header may be rounded."""

_ACQUISITIONS = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID", "EchoNumbers"),
    *("EchoTime", "EffectiveEchoTime", "ImageType", "FrameType", "DiffusionBValue", "ConvolutionKernel"),
    *("KVP", "SliceThickness", "ScanOptions", "AcquisitionTime", "AcquisitionDateTime"),
    "IrradiationEventUID",
)
"""Of ``PHASES``, what all slices of a volume share, or all of a table position; the rest may differ from
slice to slice."""


def by_geometry(slices: Sequence[StoredSlice]) -> list[list[StoredSlice]]:
    """Slices of one size, voxel size and orientation each, in the order of their first ones."""
    groups: list[list[StoredSlice]] = []
    for one in slices:
        home = next((g for g in groups if _alike(g[0], one)), None)
        if home is None:
            groups.append([one])
        else:
            home.append(one)
    return groups


def _alike(one: StoredSlice, other: StoredSlice) -> bool:
    a, b = one.pixels, other.pixels
    return (
        (a.rows, a.columns) == (b.rows, b.columns)
        and np.allclose(one.spacing_mm, other.spacing_mm, rtol=SAME_SPACING, atol=0)
        and np.allclose(one.along_row, other.along_row, rtol=0, atol=SAME_DIRECTION)
        and np.allclose(one.along_column, other.along_column, rtol=0, atol=SAME_DIRECTION)
    )


@dataclass(frozen=True)
class Parts:
    """What becomes of slices of one size and orientation."""

    volumes: tuple[tuple[list[StoredSlice], tuple[str, ...]], ...]
    """Slices that belong together, with notes of what tells them from those of the other volumes."""
    left_out: tuple[StoredSlice, ...]
    """Slices at a place of their own or on top of a volume, as bolus tracking takes them."""


def by_phase(slices: Sequence[StoredSlice], modality: str) -> Parts:
    """Slices of one orientation, so split that no two of a part lie at one place, and that no two
    acquisitions interleave.

    Raises:
        ScanError: slices share places, and nothing in their headers says which belong together.
    """
    left_out: list[StoredSlice] = []
    parts = list(_split(list(slices), (), modality, left_out))
    several = f"one of {len(parts)} volumes of its series: "
    volumes = [
        (part, (several + ", ".join(why), *notes) if len(parts) > 1 else notes) for part, why, notes in parts
    ]
    return Parts(tuple(volumes), tuple(left_out))


_Part = tuple[list[StoredSlice], tuple[str, ...], tuple[str, ...]]
"""Slices, what tells them apart, and notes on what may be wrong with them."""


def _split(
    slices: list[StoredSlice], why: tuple[str, ...], modality: str, left_out: list[StoredSlice]
) -> Iterator[_Part]:
    most = _most_at_one_place(slices)
    for keyword in PHASES if most > 1 else _ACQUISITIONS:
        groups = _by_value(slices, keyword)
        flat = [one for group in groups.values() if at_one_place(group) for one in group]
        if flat:
            rest = [one for group in groups.values() if not at_one_place(group) for one in group]
            tracking = _tracking(flat, rest, most)
            if tracking:
                left_out += tracking
                kept = [one for one in slices if one not in tracking]
                yield from _split(kept, why, modality, left_out)
                return
        elif len(groups) > 1 and _are_volumes(list(groups.values()), most, _overlays(keyword, modality)):
            for value, group in groups.items():
                more = f"{keyword} {value or 'missing'}"
                yield from _split(group, (*why, more), modality, left_out)
            return
    if most > 1:
        raise ScanError(
            f"up to {most} of its {len(slices)} slices lie at one place, and their headers do not say which "
            "belong together; export each phase as a series of its own"
        )
    yield slices, why, tuple(_doubts(slices))


def _are_volumes(groups: list[list[StoredSlice]], most: int, overlays: bool) -> bool:
    """Whether groups of slices, of which up to ``most`` lie at one place, are volumes of their own."""
    if most > 1:
        return len(groups) <= most and all(_most_at_one_place(group) < most for group in groups)
    return _interleave(groups, overlays)


def _tracking(flat: list[StoredSlice], rest: list[StoredSlice], most: int) -> list[StoredSlice]:
    """Of images, each at one place with all of its acquisition, those that are no slices of the volume that
    the rest is: several at one place, between its slices, or far away."""
    if not rest or _places(flat) > MAX_TRACKING_PLACES:
        return []
    if most > 1:
        crowded = [one for one in flat if _at_its_place(one, [*flat, *rest]) > 1 or _is_stray(one, rest)]
        return crowded if _most_at_one_place(rest) < most else []
    if is_complete([*rest, *flat]) or not is_complete(rest):
        return []
    return [one for one in flat if _is_stray(one, rest)]


# --- several at one place -------------------------------------------------------------------------


def _most_at_one_place(slices: Sequence[StoredSlice]) -> int:
    return int(np.diff(_place_starts(slices)).max())


def at_one_place(slices: Sequence[StoredSlice]) -> bool:
    return _places(slices) == 1


def _at_its_place(one: StoredSlice, slices: Sequence[StoredSlice]) -> int:
    along = places_mm([one, *slices])
    return int((np.abs(along[1:] - along[0]) < SAME_PLACE_MM).sum())


def _places(slices: Sequence[StoredSlice]) -> int:
    """At how many different places slices lie."""
    return len(_place_starts(slices)) - 1 if slices else 0


def _place_starts(slices: Sequence[StoredSlice]) -> np.ndarray:
    """Where in the sorted places a new one begins, and their number."""
    along = np.sort(places_mm(slices))
    starts = np.flatnonzero(np.concatenate([[True], np.diff(along) >= SAME_PLACE_MM]))
    return np.concatenate([starts, [len(along)]])


def _by_value(slices: Sequence[StoredSlice], keyword: str) -> dict[str, list[StoredSlice]]:
    groups: dict[str, list[StoredSlice]] = defaultdict(list)
    for one in slices:
        groups[dict(one.phase).get(keyword, "")].append(one)
    return groups


# --- interleaved ----------------------------------------------------------------------------------


def _overlays(keyword: str, modality: str) -> bool:
    """Whether slices that differ in this are never those of one volume in turns. MR takes the slices of one
    volume in several turns, so that neighbours do not disturb each other; CT does not."""
    in_turns = ("AcquisitionNumber", "AcquisitionTime", "AcquisitionDateTime")
    return modality == "CT" or keyword not in in_turns


def _interleave(groups: list[list[StoredSlice]], overlays: bool) -> bool:
    """Whether groups, none at a place of another, are volumes of their own: they lie between each other's
    slices, and none lacks what another has.

    Groups one after the other are those of one volume, as tables move between acquisitions, unless they have
    spacings of their own.
    """
    if not all(is_complete(group) for group in groups):
        return False
    if _alternate(groups):
        return overlays or all(_is_dense(group) for group in groups)
    spacings = [_spacing_mm(group) for group in groups]
    return max(spacings) > OTHER_SPACING * min(spacings)


def _alternate(groups: list[list[StoredSlice]]) -> bool:
    ranges = sorted(_range_mm(group, groups[0][0]) for group in groups)
    return any(after[0] < before[1] for before, after in pairwise(ranges))


def _range_mm(slices: Sequence[StoredSlice], like: StoredSlice) -> tuple[float, float]:
    along = places_mm([like, *slices])[1:]
    return float(along.min()), float(along.max())


def _is_stray(one: StoredSlice, volume: Sequence[StoredSlice]) -> bool:
    """Whether a slice lies between those of a volume, or so far away that it cannot be its next one."""
    low, high = _range_mm(volume, volume[0])
    place, _ = _range_mm([one], volume[0])
    return low < place < high or max(low - place, place - high) > MAX_GAP_MM


def _is_dense(slices: Sequence[StoredSlice]) -> bool:
    """Whether neighbours leave no room for a further slice between them."""
    thickness = max(_number(dict(one.phase).get("SliceThickness", "")) for one in slices)
    return _spacing_mm(slices) <= MAX_DENSE_SPACING * thickness


def _spacing_mm(slices: Sequence[StoredSlice]) -> float:
    """Of slices at even distances."""
    low, high = _range_mm(slices, slices[0])
    return (high - low) / (len(slices) - 1)


def _number(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        return 0.0


def _doubts(slices: list[StoredSlice]) -> Iterator[str]:
    """Acquisitions that lie between each other's slices, but are no volumes by themselves."""
    groups = list(_by_value(slices, "AcquisitionNumber").values())
    if _alternate(groups):
        yield f"slices of {len(groups)} acquisitions alternate; taken as one volume, as none is one by itself"


# --- identity -------------------------------------------------------------------------------------


def by_identity(images: Sequence[Image]) -> tuple[list[list[Image]], tuple[str, ...]]:
    """Objects with one SeriesInstanceUID (or none), so split that patient, study, series number, kind and
    frame of reference of a part agree; and what the parts differ in."""
    groups: dict[tuple[tuple[str, str], ...], list[Image]] = defaultdict(list)
    for image in images:
        groups[_identity(image)].append(image)
    by_keyword = zip(*groups, strict=True)
    return list(groups.values()), tuple(values[0][0] for values in by_keyword if len(set(values)) > 1)


def _identity(image: Image) -> tuple[tuple[str, str], ...]:
    """Keywords and values, names without regard to case and empty components."""
    patient = dict(image.patient)
    return (
        *((keyword, patient.get(keyword, "").casefold().rstrip("^ ")) for keyword in _WHO),
        ("StudyInstanceUID", image.study_uid),
        ("FrameOfReferenceUID", image.frame_of_reference_uid),
        ("SeriesNumber", "" if image.number is None else str(image.number)),
        ("SOPClassUID", image.sop_class_uid),
    )


_WHO = ("PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex")
