"""Split a series into volumes.

Geometry decides which slices belong together; headers only state in which attributes slices differ. A volume
may consist of several acquisitions, one after the other; two acquisitions with interleaved slices are two
volumes.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress, pairwise

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import FloatArray
from zoomseg.io.dicom.read.object_header import PHASES, Image, StoredSlice
from zoomseg.io.dicom.read.slice_geometry import MAX_GAP_MM, is_complete, places_mm, same_place_mm
from zoomseg.io.dicom.series import plain

Mask = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

SAME_DIRECTION = 1e-3
"""Maximum difference of direction cosines between slices of one volume: half a millimetre over half a
metre."""

SAME_SPACING = 1e-3
"""Maximum relative difference of their voxel sizes."""

MAX_TRACKING_PLACES = 2
"""Maximum number of positions of bolus tracking: one for the images, perhaps another for planning."""

MAX_DENSE_SPACING = 1.5
"""Slices farther apart, relative to their thickness, leave space for others between them."""

OTHER_SPACING = 1.25
"""Consecutive acquisitions whose spacings differ by a larger factor are not table positions of one volume;
with a smaller one, positions in the header may be rounded."""

_ACQUISITIONS = (
    *("AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "StackID", "EchoNumbers"),
    *("EchoTime", "EffectiveEchoTime", "ImageType", "FrameType", "DiffusionBValue", "ConvolutionKernel"),
    *("KVP", "SliceThickness", "ScanOptions", "AcquisitionTime", "AcquisitionDateTime"),
    "IrradiationEventUID",
)
"""Attributes of ``PHASES`` that all slices of a volume, or of a table position, share; the others may differ
from slice to slice."""


def by_geometry(slices: Sequence[StoredSlice]) -> list[list[StoredSlice]]:
    """Groups of slices with the same size, voxel size and orientation, in the order of their first ones."""
    features = np.array([_features(one) for one in slices])
    # Sorted by the number in which they differ most, so that only few are compared, for any number of slices.
    telling = features[:, np.ptp(features, axis=0).argmax()]
    order, placed = np.argsort(telling), np.zeros(len(slices), dtype=bool)
    groups: list[list[StoredSlice]] = []
    for first, feature in enumerate(features):
        if placed[first]:
            continue
        low, high = np.searchsorted(telling, telling[first] + np.array([-1, 1]), sorter=order)
        near = order[low : high + 1]
        near = near[~placed[near]]
        members = np.sort(near[(np.abs(features[near] - feature) <= 1).all(axis=1)])
        placed[members] = True
        groups.append([slices[i] for i in members])
    return groups


def _features(one: StoredSlice) -> tuple[float, ...]:
    """Numbers, none of which differs by more than 1 between slices of one volume."""
    columns, rows = (math.log(x) / math.log1p(SAME_SPACING) for x in one.spacing_mm)
    directions = (x / SAME_DIRECTION for x in (*one.along_row, *one.along_column))
    return (2.0 * one.pixels.rows, 2.0 * one.pixels.columns, columns, rows, *directions)


@dataclass(frozen=True)
class Parts:
    """The parts of slices of one size and orientation."""

    volumes: tuple[tuple[list[StoredSlice], tuple[str, ...]], ...]
    """Slices that belong together, with notes on the attributes that distinguish them from other volumes."""
    left_out: tuple[StoredSlice, ...]
    """Slices at a separate position or overlapping a volume, as in bolus tracking."""


def by_phase(slices: Sequence[StoredSlice], modality: str) -> Parts:
    """Slices of one orientation, split so that no two of a part have the same position, and that no two
    acquisitions interleave.

    Raises:
        ScanError: slices share positions, and nothing in their headers states which belong together.
    """
    left_out: list[StoredSlice] = []
    parts = list(_split(list(slices), (), modality, left_out))
    several = f"one of {len(parts)} volumes of its series: "
    volumes = [
        (part, (several + ", ".join(why), *notes) if len(parts) > 1 else notes) for part, why, notes in parts
    ]
    return Parts(tuple(volumes), tuple(left_out))


_Part = tuple[list[StoredSlice], tuple[str, ...], tuple[str, ...]]
"""Slices, their distinguishing attributes, and notes on possible errors."""


def _split(
    slices: list[StoredSlice], why: tuple[str, ...], modality: str, left_out: list[StoredSlice]
) -> Iterator[_Part]:
    along, same_mm = places_mm(slices), same_place_mm(slices)
    most = int(_one(along, same_mm).most[0])
    for keyword in PHASES if most > 1 else _ACQUISITIONS:
        groups, number = _by_value(slices, keyword)
        crowding = _crowding(along, number, same_mm)
        flat = (crowding.places == 1)[number]
        if flat.any():
            tracking = _tracking(slices, along, flat, most)
            if tracking.any():
                left_out += compress(slices, tracking)
                yield from _split(list(compress(slices, ~tracking)), why, modality, left_out)
                return
        elif len(groups) > 1 and _are_volumes(groups, crowding, most, _overlays(keyword, modality)):
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


def _are_volumes(
    groups: Mapping[str, list[StoredSlice]], crowding: _Crowding, most: int, overlays: bool
) -> bool:
    """Whether groups of slices, of which up to ``most`` have the same position, are separate volumes."""
    if most > 1:
        return len(groups) <= most and bool((crowding.most < most).all())
    return _interleave(list(groups.values()), overlays)


def _tracking(slices: Sequence[StoredSlice], along: FloatArray, flat: Mask, most: int) -> Mask:
    """Of the images that are ``flat``, each with all of its acquisition at one position, those that are not
    slices of the volume formed by the others: several at one position, between its slices, or far away."""
    none = np.zeros_like(flat)
    same_mm = same_place_mm(slices)
    if flat.all() or _one(along[flat], same_mm).places[0] > MAX_TRACKING_PLACES:
        return none
    rest = along[~flat]
    stray = flat & _is_stray(along, float(rest.min()), float(rest.max()))
    if most > 1:
        crowded = flat & (_at_their_places(along, same_mm) > 1) | stray
        return crowded if _one(rest, same_mm).most[0] < most else none
    if is_complete(slices) or not is_complete(list(compress(slices, ~flat))):
        return none
    return stray


# --- several at one place -------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Crowding:
    """Positions of groups of slices, ``[group]``."""

    places: Counts
    """Number of different positions of their slices."""
    most: Counts
    """Maximum number of slices at one position."""


def _crowding(along: FloatArray, group: Counts, same_mm: float) -> _Crowding:
    """For slices at ``along`` mm that belong to groups 0, 1, ...; those closer than ``same_mm`` are at one
    position."""
    order = np.lexsort((along, group))
    begins = (np.diff(along[order]) >= same_mm) | (np.diff(group[order]) > 0)
    starts = np.flatnonzero(np.concatenate([[True], begins]))
    of = group[order[starts]]
    most = np.zeros(of[-1] + 1, dtype=int)
    np.maximum.at(most, of, np.diff(starts, append=len(along)))
    return _Crowding(np.bincount(of), most)


def _one(along: FloatArray, same_mm: float) -> _Crowding:
    """For a single group."""
    return _crowding(along, np.zeros(len(along), dtype=int), same_mm)


def at_one_place(slices: Sequence[StoredSlice]) -> bool:
    return bool(_one(places_mm(slices), same_place_mm(slices)).places[0] == 1)


def _at_their_places(along: FloatArray, same_mm: float) -> Counts:
    """The number of slices at the position of each, including itself."""
    ordered = np.sort(along)
    after = np.searchsorted(ordered, along + same_mm, side="left")
    before = np.searchsorted(ordered, along - same_mm, side="right")
    return after - before


def _by_value(slices: Sequence[StoredSlice], keyword: str) -> tuple[dict[str, list[StoredSlice]], Counts]:
    """Slices by their value, in the order of their first ones; and for each slice, the number of its
    group."""
    groups: dict[str, list[StoredSlice]] = defaultdict(list)
    values = [dict(one.phase).get(keyword, "") for one in slices]
    for value, one in zip(values, slices, strict=True):
        groups[value].append(one)
    number = {value: i for i, value in enumerate(groups)}
    return groups, np.array([number[value] for value in values])


# --- interleaved ----------------------------------------------------------------------------------


def _overlays(keyword: str, modality: str) -> bool:
    """Whether slices that differ in this attribute never belong to one volume if they interleave. MR acquires
    the slices of one volume in several passes, so that neighbours do not disturb each other; CT does not."""
    in_turns = ("AcquisitionNumber", "AcquisitionTime", "AcquisitionDateTime")
    return modality == "CT" or keyword not in in_turns


def _interleave(groups: list[list[StoredSlice]], overlays: bool) -> bool:
    """Whether groups without common positions are separate volumes: they interleave, and none lacks slices
    that another has.

    Consecutive groups belong to one volume, as tables move between acquisitions, unless they have different
    spacings.
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


def _is_stray(along: FloatArray, low: float, high: float) -> Mask:
    """Whether slices lie between those of a volume from ``low`` to ``high``, or so far away that they cannot
    continue it."""
    within = (low < along) & (along < high)
    return within | (np.maximum(low - along, along - high) > MAX_GAP_MM)


def _is_dense(slices: Sequence[StoredSlice]) -> bool:
    """Whether neighbours leave no space for a further slice between them."""
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
    """Notes on acquisitions that interleave, but are not volumes by themselves."""
    groups = list(_by_value(slices, "AcquisitionNumber")[0].values())
    if _alternate(groups):
        yield f"slices of {len(groups)} acquisitions alternate; taken as one volume, as none is one by itself"


# --- identity -------------------------------------------------------------------------------------


def by_identity(images: Sequence[Image]) -> tuple[list[list[Image]], tuple[str, ...]]:
    """Objects with one SeriesInstanceUID (or none), split so that patient, study, series number, kind and
    frame of reference of a part agree; and the attributes in which the parts differ."""
    groups: dict[tuple[tuple[str, str], ...], list[Image]] = defaultdict(list)
    for image in images:
        groups[_identity(image)].append(image)
    by_keyword = zip(*groups, strict=True)
    return list(groups.values()), tuple(values[0][0] for values in by_keyword if len(set(values)) > 1)


def _identity(image: Image) -> tuple[tuple[str, str], ...]:
    """Keywords and comparable values (see ``series.plain``)."""
    patient = dict(image.patient)
    return (
        *image.identity.compared,
        *((keyword, plain(patient.get(keyword, ""))) for keyword in ("IssuerOfPatientID", "PatientSex")),
        ("SeriesNumber", "" if image.number is None else str(image.number)),
        ("SOPClassUID", image.sop_class_uid),
    )
