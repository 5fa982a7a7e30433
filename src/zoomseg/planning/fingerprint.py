"""The fingerprint of a data set: sizes, spacings, intensities, and its organs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, zip_longest
from typing import cast

import numpy as np
import numpy.typing as npt

from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, listed
from zoomseg.core.geometry import Index3, Orientation, Vector3
from zoomseg.core.morphology import largest_component
from zoomseg.core.region import class_boxes
from zoomseg.datasets.advice import Advice, advise, hounsfield
from zoomseg.datasets.layouts import Dataset

FINGERPRINT_CASES = 40
"""Maximum number of cases read, evenly spread."""
FOREGROUND_VOXELS = 20_000
"""Foreground intensities kept per case."""
NAMED = 5
"""Maximum number of organs that an error lists."""
SIDE_BY_SIDE_CASES = 20
"""Minimum number of cases for deciding which of two organs lies further right."""


@dataclass(frozen=True)
class OrganStatistics:
    """One label in the cases read: medians over those that have it. Axes in canonical (RAS) order."""

    name: str
    cases: int
    """Number of cases that have it."""
    annotated: int
    """Number of cases in which it should be annotated."""
    volume_ml: float
    extent_mm: Vector3
    """Of its bounding box."""
    centre: Vector3
    """Of its bounding box, relative to the scan: 0 at the left, posterior and inferior face, 1 opposite."""
    percentiles: tuple[float, float]
    """0.5th and 99.5th of the intensities inside it, of the first channel."""
    largest_part: float
    """Share of its voxels in its largest connected component, in the case where this is lowest."""
    relative_brightness_sd: float | None = None
    """Standard deviation, over the cases, of its median intensity relative to the mean of all organs,
    measured from the scan's darkest voxel; None: fewer than two cases have it together with others."""


@dataclass(frozen=True)
class SideBySide:
    """Two organs of which one lies further right in most cases that have both."""

    right: str
    left: str
    cases: int
    """Number of cases in which this is true."""
    together: int
    """Number of cases with both."""

    @property
    def share(self) -> float:
        return self.cases / self.together


@dataclass(frozen=True)
class Fingerprint:
    """Axes in canonical (RAS) order."""

    spacing_mm: Vector3
    """Median."""
    shape: Index3
    """Median, in voxels of the median spacing."""
    largest_shape: Index3
    """Largest of the cases read, in voxels of the median spacing."""
    is_ct: bool
    foreground_percentiles: tuple[float, float]
    """0.5th and 99.5th of the intensities inside labels."""
    cases: int
    """Number of training cases."""
    read: int
    """Number of these that were read."""
    channels: int = 1
    organs: tuple[OrganStatistics, ...] = ()
    """The organs that were found, in the schema's order."""
    side_by_side: SideBySide | None = None
    """The two organs with the highest such share; None: no two are in ``SIDE_BY_SIDE_CASES`` cases
    together."""
    advice: tuple[Advice, ...] = ()
    """Entries that are missing in ``dataset.json``."""

    @property
    def extent_mm(self) -> Vector3:
        """Of the median scan."""
        return as_vector(np.array(self.spacing_mm) * np.array(self.shape))

    @property
    def voxels(self) -> int:
        """Of the median scan."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class _OrganInCase:
    """One organ in one case."""

    volume_ml: float
    extent_mm: Vector3
    centre: Vector3
    percentiles: tuple[float, float]
    largest_part: float
    right_mm: float
    """Mean distance of its voxels from the scan's left face."""
    brightness: float
    """Median intensity, measured from the scan's darkest voxel."""


def compute_fingerprint(
    dataset: Dataset,
    ids: Sequence[str],
    on_progress: Callable[[int, int], None] | None = None,
    on_case: Callable[[Case], None] | None = None,
) -> Fingerprint:
    """Read evenly spread training cases.

    Args:
        on_case: called with each of them, so that no other function has to read it again.

    Raises:
        DatasetError: no voxel is labelled in any of them.
        ScanError: one of them cannot be used.
    """
    chosen = spread(ids, FINGERPRINT_CASES)
    rng = np.random.default_rng(0)
    spacings: list[Vector3] = []
    extents: list[Vector3] = []
    foreground: list[npt.NDArray[np.float32]] = []
    annotated: list[frozenset[str]] = []
    seen: list[dict[str, _OrganInCase]] = []
    units: list[tuple[bool, ...]] = []
    for done, case in enumerate(cases_of(dataset, chosen)):
        if on_progress is not None:
            on_progress(done, len(chosen))
        if on_case is not None:
            on_case(case)
        grid = Orientation.to_canonical(case.image.grid).grid(case.image.grid)
        spacings.append(grid.spacing_mm)
        extents.append(grid.extent_mm)
        units.append(hounsfield(case.image))
        if case.labels is not None:
            values = case.image.data[0][case.labels.data > 0]
            foreground.append(rng.choice(values, min(len(values), FOREGROUND_VOXELS), replace=False))
            annotated.append(_annotated_names(case, dataset))
            seen.append(_organs_in(case))
    inside = np.concatenate(foreground) if foreground else np.empty(0, np.float32)
    if inside.size == 0:
        raise DatasetError(
            f"data set '{dataset.name}' has no labelled voxel in {len(chosen)} cases read; "
            "zoomseg check lists the empty label maps"
        )
    spacing = np.median(np.array(spacings), axis=0)
    sizes = np.array(extents) / spacing
    low, high = _tails(inside)
    return Fingerprint(
        spacing_mm=as_vector(spacing),
        shape=as_index(np.round(np.median(sizes, axis=0))),
        largest_shape=as_index(np.ceil(sizes.max(axis=0) - 0.01)),
        is_ct=dataset.is_ct,
        foreground_percentiles=(low, high),
        cases=len(ids),
        read=len(chosen),
        channels=len(dataset.channel_names),
        organs=tuple(_organs(dataset.schema.names, annotated, seen)),
        side_by_side=_side_by_side(dataset.schema.names, seen),
        advice=advise(dataset, units),
    )


def require(dataset: Dataset, ids: Sequence[str], organs: Iterable[str]) -> None:
    """Read training cases until each of ``organs`` was found in one.

    Raises:
        DatasetError: some are in none of them, and could not be learned.
        ScanError: a case cannot be used.
    """
    missing = list(organs)
    for case in cases_of(dataset, ids if missing else ()):
        present = _present(case)
        missing = [name for name in missing if name not in present]
        if not missing:
            return
    if missing:
        raise _absent(dataset, missing, len(ids))


def require_in_every(
    dataset: Dataset,
    folds: Sequence[Sequence[str]],
    organs: Iterable[str],
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Read cases until each of ``organs`` was found in the training cases of every fold.

    Args:
        folds: the training cases of each fold.

    Raises:
        DatasetError: some are in none of them, or a fold has none, and its model could not learn them.
        ScanError: a case cannot be used.
    """
    trained = [frozenset(cases) for cases in folds]
    found: dict[str, list[str]] = {name: [] for name in organs}

    def lacking(name: str) -> int | None:
        """The first fold without the organ."""
        return next((n for n, cases in enumerate(trained) if cases.isdisjoint(found[name])), None)

    # The first case of every fold, then the second ones: two cases usually suffice.
    in_turn = list(dict.fromkeys(case for row in zip_longest(*folds) for case in row if case is not None))
    for done, case_id in enumerate(in_turn):
        if all(lacking(name) is None for name in found):
            return
        if on_progress is not None:
            on_progress(done, len(in_turn))
        (case,) = cases_of(dataset, [case_id])
        for name in _present(case).intersection(found):
            found[name].append(case_id)
    absent = [name for name, there in found.items() if not there]
    if absent:
        raise _absent(dataset, absent, len(in_turn))
    for name, there in found.items():
        fold = lacking(name)
        if fold is not None:
            raise DatasetError(
                f"data set '{dataset.name}': {name} is only in {listed(there)}, on which the model of fold "
                f"{fold} is not trained, so that it could not learn it; remove it from 'labels' in "
                "dataset.json, add cases that contain it, or train without --fold all"
            )


def _absent(dataset: Dataset, organs: Sequence[str], cases: int) -> DatasetError:
    more = f" and {len(organs) - NAMED} more" if len(organs) > NAMED else ""
    return DatasetError(
        f"data set '{dataset.name}': no voxel of {', '.join(organs[:NAMED])}{more} in any of the {cases} "
        "training cases, so it cannot be learned; remove it from 'labels' in dataset.json, or train on cases "
        "that contain it"
    )


def spread(ids: Sequence[str], most: int) -> Sequence[str]:
    """At most ``most`` of the cases, evenly spread."""
    return list(ids)[:: max(1, math.ceil(len(ids) / most))]


def cases_of(dataset: Dataset, ids: Iterable[str]) -> Iterator[Case]:
    """These cases, each read when it is requested.

    Raises:
        ScanError: one of them cannot be used.
    """
    by_id = {case.id: case for case in dataset.cases}
    return (dataset.load(by_id[case_id]) for case_id in ids)


def _annotated_names(case: Case, dataset: Dataset) -> frozenset[str]:
    return frozenset(dataset.schema.names) if case.annotated is None else case.annotated


def _present(case: Case) -> frozenset[str]:
    """The annotated organs present in a case."""
    if case.labels is None:
        return frozenset()
    seen = frozenset(case.labels.present)
    return seen if case.annotated is None else seen & case.annotated


def _organs_in(case: Case) -> dict[str, _OrganInCase]:
    """The annotated organs present in a case, measured."""
    if case.labels is None:
        return {}
    canonical = Orientation.to_canonical(case.labels.grid)
    labels, image = case.labels.reoriented(canonical), case.image.reoriented(canonical).data[0]
    classes, spacing = labels.data, np.array(labels.grid.spacing_mm)
    darkest = float(image.min())
    found: dict[str, _OrganInCase] = {}
    names = labels.schema.names
    numbers = [n for n, name in enumerate(names, start=1) if case.annotated is None or name in case.annotated]
    for number, box in class_boxes(classes, numbers).items():
        low, high = np.array(box.start), np.array(box.stop)
        inside = classes[box.slices] == number
        voxels = int(np.count_nonzero(inside))
        intensities = image[box.slices][inside]
        across = np.average(np.arange(low[0], high[0]) + 0.5, weights=inside.sum(axis=(1, 2)))
        found[names[number - 1]] = _OrganInCase(
            voxels * labels.grid.voxel_volume_ml,
            as_vector((high - low) * spacing),
            as_vector((low + high) / 2 / np.array(classes.shape)),
            _tails(intensities),
            int(np.count_nonzero(largest_component(inside))) / voxels,
            float(across * spacing[0]),
            float(np.median(intensities)) - darkest,
        )
    return found


def _tails(intensities: npt.NDArray[np.number]) -> tuple[float, float]:
    low, high = np.percentile(intensities, (0.5, 99.5))
    return float(low), float(high)


def _organs(
    names: Sequence[str], annotated: Sequence[frozenset[str]], seen: Sequence[dict[str, _OrganInCase]]
) -> Iterator[OrganStatistics]:
    tones = [_tones(case) for case in seen]
    for name in names:
        those = [case[name] for case in seen if name in case]
        multiples = [case[name] for case in tones if name in case]
        if those:
            yield OrganStatistics(
                name,
                len(those),
                sum(name in case for case in annotated),
                float(np.median([one.volume_ml for one in those])),
                as_vector(np.median([one.extent_mm for one in those], axis=0)),
                as_vector(np.median([one.centre for one in those], axis=0)),
                cast("tuple[float, float]", tuple(np.median([one.percentiles for one in those], axis=0))),
                min(one.largest_part for one in those),
                float(np.std(multiples)) if len(multiples) > 1 else None,
            )


def _tones(case: dict[str, _OrganInCase]) -> dict[str, float]:
    """Every organ's brightness relative to the mean of all; empty if there is only one."""
    mean = float(np.mean([one.brightness for one in case.values()])) if len(case) > 1 else 0.0
    return {name: one.brightness / mean for name, one in case.items()} if mean > 0 else {}


def _side_by_side(names: Sequence[str], seen: Sequence[dict[str, _OrganInCase]]) -> SideBySide | None:
    found = []
    for one, other in combinations(names, 2):
        apart = [case[one].right_mm - case[other].right_mm for case in seen if one in case and other in case]
        if len(apart) >= SIDE_BY_SIDE_CASES:
            found.append(SideBySide(one, other, sum(mm > 0 for mm in apart), len(apart)))
            found.append(SideBySide(other, one, sum(mm < 0 for mm in apart), len(apart)))
    return max(found, key=lambda two: two.share, default=None)


def as_vector(values: npt.NDArray[np.float64]) -> Vector3:
    """Three numbers of an array."""
    return cast("Vector3", tuple(float(v) for v in values))


def as_index(values: npt.NDArray[np.number]) -> Index3:
    """Three whole numbers of an array, truncated."""
    return cast("Index3", tuple(int(v) for v in values))
