"""The region of an accelerated model: the smallest one around the coarse stage's prediction, or around what
it considers possible, that contains the prediction of the model without a region.

Regions of several radii and thresholds are placed around the coarse predictions of scans on which the stage
was not trained. Of those that contain ``RECALL`` of the model's foreground in every scan, and
``ORGAN_RECALL`` of each organ over all scans, the one with the fewest tiles is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import TrainingError
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.tiling import cover
from zoomseg.core.volume import LabelMap
from zoomseg.pipeline import grid as grids
from zoomseg.pipeline.roi import dilated_foreground
from zoomseg.recipe import graph, network_shapes
from zoomseg.recipe.spec import DilatedForeground, OnMissing, Stage

RECALL = 0.999
"""Minimum share of the model's foreground that a region contains in every held-out scan."""

ORGAN_RECALL = 0.99
"""Minimum share of each organ that a region contains, over all held-out scans: a small organ is a negligible
part of the foreground."""

RADII_VOX = (2.0, 4.0, 8.0)
"""In voxels of the accelerated stage's own grid."""
THRESHOLDS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Of the probability that a voxel is one of the stage's organs."""

Candidate = tuple[float, float]
"""Radius and threshold."""
CANDIDATES: tuple[Candidate, ...] = tuple(itertools.product(RADII_VOX, THRESHOLDS))
"""Tried for every stage."""


@dataclass(frozen=True)
class RegionCost:
    """Of one region in one scan."""

    held: Mapping[str, int]
    """By organ, voxels of the model's prediction inside the region."""
    voxels: Mapping[str, int]
    """By organ, all voxels of the model's prediction."""
    tiles: int
    all_tiles: int
    """Without a region."""

    @property
    def recall(self) -> float:
        """Of the voxels of all organs together; 1 if the model found none."""
        total = sum(self.voxels.values())
        return sum(self.held.values()) / total if total else 1.0


@dataclass(frozen=True)
class ChosenRegion:
    """A stage's region, and its effect in the held-out scans."""

    roi: DilatedForeground
    lowest_recall: float
    """Of all organs together, in the scan where it is lowest."""
    organ_recall: Mapping[str, float]
    """Of each organ, over all scans."""
    tile_share: float
    """Relative to the tiles without a region."""


@dataclass(eq=False)
class RegionSearch:
    """Accumulates the effect of every candidate for one stage over scans, and chooses one."""

    stage: Stage
    schema: LabelSchema
    of: str
    labels: tuple[str, ...]
    """The stage's labels that the stage ``of`` also predicts."""
    on_missing: OnMissing = "whole_volume"
    """The recipe's: the region if stage ``of`` finds nothing."""
    found: dict[Candidate, list[RegionCost]] = field(default_factory=dict)

    def add(self, prediction: StagePrediction, found: LabelMap) -> None:
        """Add a scan: the prediction of stage ``of``, and the model's own label map, in the same
        orientation."""
        grid = grids.stage_grid(self.stage.grid, found.grid)
        everything = self._tiles(Region.whole(grid))
        whole = _counts(found, self.labels)
        for candidate in CANDIDATES:
            region = dilated_foreground(prediction, grid, *candidate, self.labels)
            if region is None and self.on_missing == "empty":
                cost = RegionCost(dict.fromkeys(self.labels, 0), whole, 0, everything)
            elif region is None:
                cost = RegionCost(whole, whole, everything, everything)
            else:
                cost = RegionCost(_counts(found, self.labels, region), whole, self._tiles(region), everything)
            self.found.setdefault(candidate, []).append(cost)

    def _tiles(self, region: Region) -> int:
        spec = self.stage.grid
        halo = network_shapes.halo(self.stage.network, spec.padding)
        return len(cover(region, spec.tile, halo, spec.overlap, spec.placement).tiles)

    def chosen(self) -> ChosenRegion:
        """The candidate with the fewest tiles; among equals, the safest.

        Raises:
            TrainingError: none contains enough in every scan, or enough of every organ.
        """
        lowest = {own: min(cost.recall for cost in costs) for own, costs in self.found.items()}
        enough = [own for own in self.found if lowest[own] >= RECALL]
        if not enough:
            raise TrainingError(
                f"stage '{self.stage.name}': no region around what the coarse stage finds contains "
                f"{RECALL:.1%} of what the model finds in the held-out scans (the largest: "
                f"{max(lowest.values()):.2%}); train longer (--resume --time-budget), or add scans"
            )
        organs = {own: _by_organ(self.found[own]) for own in enough}
        least = {own: min(organs[own].values(), default=1.0) for own in enough}
        safe = [own for own in enough if least[own] >= ORGAN_RECALL]
        if not safe:
            most = max(enough, key=least.__getitem__)
            name = min(organs[most], key=organs[most].__getitem__)
            raise TrainingError(
                f"stage '{self.stage.name}': no region around what the coarse stage finds contains "
                f"{ORGAN_RECALL:.0%} of every organ that the model finds in the held-out scans (at most "
                f"{least[most]:.2%} of '{name}'); train longer (--resume --time-budget), or add scans"
            )
        best = min(safe, key=lambda own: (self._total(own), -own[0], own[1]))
        costs = self.found[best]
        return ChosenRegion(
            DilatedForeground(of=self.of, labels=self.labels, radius_vox=best[0], threshold=best[1]),
            lowest[best],
            organs[best],
            self._total(best) / sum(cost.all_tiles for cost in costs),
        )

    def _total(self, candidate: Candidate) -> int:
        return sum(cost.tiles for cost in self.found[candidate])


def searches(
    stages: Iterable[Stage],
    schema: LabelSchema,
    of: str,
    known: Sequence[str],
    on_missing: OnMissing = "whole_volume",
) -> list[RegionSearch]:
    """One search for each stage that shares labels with stage ``of``."""
    found = []
    for stage in stages:
        labels = tuple(name for name in graph.resolve_labels(stage, schema) if name in known)
        if labels:
            found.append(RegionSearch(stage, schema, of, labels, on_missing))
    return found


def _counts(found: LabelMap, labels: tuple[str, ...], region: Region | None = None) -> dict[str, int]:
    """Voxels by label, of the whole map or of a region."""
    data: npt.NDArray[np.uint8] = found.data
    if region is not None:
        here = region.on(found.grid)
        data = data[here.box.slices][here.mask_in(here.box)]
    counts = np.bincount(data.ravel(), minlength=found.schema.classes)
    return {name: int(counts[found.schema.class_of(name)]) for name in labels}


def _by_organ(costs: Sequence[RegionCost]) -> dict[str, float]:
    out = {}
    for name in costs[0].voxels:
        total = sum(cost.voxels[name] for cost in costs)
        if total:
            out[name] = sum(cost.held[name] for cost in costs) / total
    return out
