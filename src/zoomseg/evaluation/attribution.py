"""Attribution of lost Dice, by organ: to the coarse stage, the region, the boundary, or elsewhere.

With A the prediction and R the reference of an organ, Dice is 2 |A and R| / (|A| + |R|), so that its
difference to 1 is (missed + spurious voxels) / (|A| + |R|): every wrong voxel costs the same. Each is counted
in exactly one part, see ``Attribution``; docs/concepts/error-attribution.md has the definitions and reasons.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from zoomseg.core.errors import GeometryError, ScanError
from zoomseg.core.geometry import Grid, Orientation, Vector3
from zoomseg.core.labels import IGNORE
from zoomseg.core.region import class_boxes
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.evaluation.metrics import Mask, distance_to, union_of
from zoomseg.inference import stage_outputs
from zoomseg.inference.stage_outputs import CaseStageOutputs
from zoomseg.io.scans import check_same_grid, read_label_values

BOUNDARY_MM = 2.0
"""Errors no farther than this, or than a voxel, from the reference's surface count as boundary errors."""

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Attribution:
    """One organ of one case. The four losses sum to 1 - Dice."""

    region_recall: float
    """Share of the reference's voxels in the region of the stage that predicts the organ; NaN if the
    reference lacks the organ, or the stage has no region."""
    lost_coarse: float
    """Dice lost by missed voxels outside the region, if the stage that determined it did not find the
    organ."""
    lost_region: float
    """Dice lost by missed voxels outside the region, if that stage found the organ: the region cut it."""
    lost_boundary: float
    """Dice lost by other wrong voxels close to the reference's surface."""
    lost_elsewhere: float
    """Dice lost by all other wrong voxels: missed or spurious parts."""


NOTHING = Attribution(math.nan, math.nan, math.nan, math.nan, math.nan)
"""Unknown attribution."""

LOSSES = ("lost_coarse", "lost_region", "lost_boundary", "lost_elsewhere")
OF_REGIONS = ("lost_coarse", "lost_region")
"""Losses that require a stage with a region."""


@dataclass(frozen=True, eq=False)
class OrganRegion:
    """The region of the stage that predicts an organ."""

    region: Mask | None
    """``[I, J, K]``, as the maps; None: the whole scan."""
    found: bool
    """Whether the stage that determined the region found the organ; true if there is no such stage."""
    spacing_mm: Vector3
    """Of the stage's grid along the maps' axes; zero if its region was empty."""


def attribute(prediction: Mask, reference: Mask, spacing_mm: Vector3, place: OrganRegion) -> Attribution:
    """Attribute the errors of one organ, given as two masks ``[I, J, K]`` that contain all of it.

    Raises:
        GeometryError: shapes differ.
    """
    region = np.ones_like(reference) if place.region is None else place.region
    if not prediction.shape == reference.shape == region.shape:
        shapes = f"{prediction.shape}, {reference.shape} and {region.shape}"
        raise GeometryError(f"prediction, reference and region differ in shape: {shapes}")
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(reference))
    if total == 0:
        return NOTHING
    wrong = prediction ^ reference
    rest = wrong & ~(reference & ~region)
    outside, others = int(np.count_nonzero(wrong & ~rest)), int(np.count_nonzero(rest))
    near = 0
    if (prediction & reference).any():  # an organ that was not found at all has no boundary errors
        near = _count_near_surface(rest, reference, spacing_mm, _reach_mm(spacing_mm, place.spacing_mm))
    return Attribution(
        region_recall=_recall(reference, place.region),
        lost_coarse=0.0 if place.found else outside / total,
        lost_region=outside / total if place.found else 0.0,
        lost_boundary=near / total,
        lost_elsewhere=(others - near) / total,
    )


def _recall(reference: Mask, region: Mask | None) -> float:
    total = int(np.count_nonzero(reference))
    if region is None or total == 0:
        return math.nan
    return int(np.count_nonzero(reference & region)) / total


def _reach_mm(spacing_mm: Vector3, stage_mm: Vector3) -> Vector3:
    """Extent of the boundary along each axis: at least a voxel of the maps, or of the stage."""
    x, y, z = (max(BOUNDARY_MM, own, stage) for own, stage in zip(spacing_mm, stage_mm, strict=True))
    return (x, y, z)


def _count_near_surface(wrong: Mask, reference: Mask, spacing_mm: Vector3, reach_mm: Vector3) -> int:
    """Number of wrong voxels no farther than ``reach_mm`` from the reference's surface: for those of the
    reference, from a voxel outside, for all others from a voxel of the reference, between centres. Distances
    along each axis are relative to the reach."""
    inside, errors = np.pad(reference, 1), np.pad(wrong, 1)  # there is no organ beyond the scan
    x, y, z = (s / r for s, r in zip(spacing_mm, reach_mm, strict=True))
    near = 0
    for own, other in ((inside, ~inside), (~inside, inside)):
        at = np.flatnonzero(errors & own)
        if at.size:
            # The nearest voxel on the other side always has a neighbour on this one.
            distance = distance_to(other & _beside(own), at, (x, y, z))
            near += int(np.count_nonzero(distance <= 1 + _ROUNDING))
    return near


def _beside(mask: Mask) -> Mask:
    """Voxels with a neighbour in ``mask`` across a face."""
    out = np.zeros_like(mask)
    for axis in range(3):
        source, target = (np.moveaxis(array, axis, 0) for array in (mask, out))
        target[1:] |= source[:-1]
        target[:-1] |= source[1:]
    return out


# --- of a case whose stages were kept -------------------------------------------------------------


def attribute_case(
    folder: Path, case: str, prediction: LabelMap, reference: LabelMap, organs: Mapping[str, str]
) -> dict[str, Attribution]:
    """Attribute the errors of two canonical maps on one grid, using the case's files in a ``stages`` folder.
    ``organs`` are the reference's names with those of the stages. Organs that no stage predicts are omitted.
    Voxels whose reference is ``IGNORE`` count as background.

    Raises:
        ScanError: a file is missing, damaged, or on another grid.
    """
    stages = _Stages(folder, case, stage_outputs.read(folder, case), reference.grid)
    predicted = np.where(reference.data == IGNORE, np.uint8(0), prediction.data)
    wanted = range(1, 1 + len(reference.schema.names))
    boxes = [class_boxes(classes, wanted) for classes in (predicted, reference.data)]
    out: dict[str, Attribution] = {}
    named = {own: organ for organ, own in organs.items()}
    for deciding, together in stages.groups(named):
        region, spacing_mm = stages.region(deciding), stages.spacing_mm(deciding)
        for own in together:
            organ = named[own]
            c = reference.schema.class_of(organ)
            box = union_of(found.get(c) for found in boxes).slices
            place = OrganRegion(
                None if region is None else region[box], stages.found(deciding, own), spacing_mm
            )
            out[organ] = attribute(
                predicted[box] == c, reference.data[box] == c, reference.grid.spacing_mm, place
            )
    return out


def read_region(folder: Path, case: str, organ: str, grid: Grid) -> Mask | None:
    """``[I, J, K]`` on a case's canonical grid: the region of the stage that predicts an organ (by its name
    there), from a ``stages`` folder; None if it is the whole scan, or if no stage predicts the organ.

    Raises:
        ScanError: a file is missing, damaged, or on another grid.
    """
    stages = _Stages(folder, case, stage_outputs.read(folder, case), grid)
    return next((stages.region(deciding) for deciding, _ in stages.groups([organ])), None)


class _Stages:
    """The files of a case in a ``stages`` folder."""

    def __init__(self, folder: Path, case: str, about: CaseStageOutputs, grid: Grid) -> None:
        self._folder, self._case, self._about, self._grid = folder, case, about, grid
        self._shown: dict[str, frozenset[int]] = {}
        """Values present in a stage's own label map."""

    def groups(self, organs: Iterable[str]) -> list[tuple[tuple[str, ...], list[str]]]:
        """Organs by the stages that predict them, so that each region is read once."""
        out: dict[tuple[str, ...], list[str]] = {}
        for organ in organs:
            if organ in self._about.deciding:
                out.setdefault(self._about.deciding[organ], []).append(organ)
        return list(out.items())

    def region(self, names: tuple[str, ...]) -> Mask | None:
        """``[I, J, K]``: the union of these stages' regions; None if one is the whole scan."""
        if any(self._about.stage(name).everywhere for name in names):
            return None
        masks = (
            self._read_region(stage_outputs.region_path(self._folder, self._case, name)) for name in names
        )
        return functools.reduce(np.logical_or, masks)

    def spacing_mm(self, names: tuple[str, ...]) -> Vector3:
        """The finest of these stages' grids along each axis; zero if all regions were empty."""
        grids = [mm for name in names if (mm := self._about.stage(name).spacing_mm) is not None]
        x, y, z = (min(axis) for axis in zip(*grids, strict=True)) if grids else (0.0, 0.0, 0.0)
        return (x, y, z)

    def found(self, names: tuple[str, ...], organ: str) -> bool:
        """Whether a stage that determined one of these stages' regions predicts the organ anywhere, or any
        organ if it does not predict this one; true if there is no such stage."""
        placers = {place for name in names if (place := self._about.stage(name).placed_by) is not None}
        return not placers or any(self._shows(place, organ) for place in placers)

    def _shows(self, stage: str, organ: str) -> bool:
        if stage not in self._shown:
            path = stage_outputs.labels_path(self._folder, self._case, stage)
            values, grid = read_label_values(path)
            self._check(grid, path)
            self._shown[stage] = frozenset(int(v) for v in np.unique(values)) - {0}
        value = self._about.stage(stage).labels.get(organ)
        return bool(self._shown[stage]) if value is None else value in self._shown[stage]

    def _read_region(self, path: Path) -> Mask:
        values, grid = read_label_values(path)
        self._check(grid, path)
        if values.min() < 0 or values.max() > 1:
            raise ScanError(f"{path}: a region holds 0 and 1; predict again with --keep-stages")
        region = Volume((values != 0)[None], grid)
        mask: Mask = region.reoriented(Orientation.to_canonical(grid)).data[0]
        return mask

    def _check(self, grid: Grid, path: Path) -> None:
        canonical = Orientation.to_canonical(grid).grid(grid)
        check_same_grid(self._grid, canonical, Path("the reference"), path)
