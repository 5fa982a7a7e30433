"""Where an accelerated model looks: the smallest region around what its coarse stage finds, or thinks
possible, that holds what the model finds without one.

Regions of several radii and thresholds are laid around the coarse answers of scans that the stage has not
learned from. Of those that hold ``RECALL`` of the model's foreground in every scan, that with the fewest
tiles is taken.
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
from zoomseg.recipe.spec import DilatedForeground, Stage

RECALL = 0.999
"""Of the model's foreground that a region holds in every scan kept back, at least."""

RADII_VOX = (2.0, 4.0, 8.0)
"""Of the accelerated stage's own grid."""
THRESHOLDS = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""Of the probability that a voxel is one of the stage's organs."""

Candidate = tuple[float, float]
"""Radius and threshold."""
CANDIDATES: tuple[Candidate, ...] = tuple(itertools.product(RADII_VOX, THRESHOLDS))
"""Every stage tries all."""


@dataclass(frozen=True)
class RegionCost:
    """Of one region in one scan."""

    held: Mapping[str, int]
    """By organ, voxels of the model's answer that the region holds."""
    voxels: Mapping[str, int]
    """By organ, all voxels of the model's answer."""
    tiles: int
    all_tiles: int
    """Without a region."""

    @property
    def recall(self) -> float:
        """Of all organs' voxels together; 1 where the model found none."""
        total = sum(self.voxels.values())
        return sum(self.held.values()) / total if total else 1.0


@dataclass(frozen=True)
class ChosenRegion:
    """A stage's region, and what it did in the scans kept back."""

    roi: DilatedForeground
    lowest_recall: float
    """Of all organs together, in the scan where it is lowest."""
    organ_recall: Mapping[str, float]
    """Of each organ, over all scans."""
    tile_share: float
    """Of the tiles without a region."""


@dataclass(eq=False)
class RegionSearch:
    """Gathers, scan by scan, what every candidate would do for one stage, and chooses."""

    stage: Stage
    schema: LabelSchema
    of: str
    labels: tuple[str, ...]
    """Those of the stage's labels that the stage ``of`` knows."""
    found: dict[Candidate, list[RegionCost]] = field(default_factory=dict)

    def add(self, prediction: StagePrediction, answer: LabelMap) -> None:
        """A scan: what stage ``of`` predicts, and the model's own label map, turned alike."""
        grid = grids.stage_grid(self.stage.grid, answer.grid)
        everything = self._tiles(Region.whole(grid))
        whole = _counts(answer, self.labels)
        for candidate in CANDIDATES:
            region = dilated_foreground(prediction, grid, *candidate, self.labels)
            if region is None:  # the stage then looks at all of the scan
                cost = RegionCost(whole, whole, everything, everything)
            else:
                cost = RegionCost(
                    _counts(answer, self.labels, region), whole, self._tiles(region), everything
                )
            self.found.setdefault(candidate, []).append(cost)

    def _tiles(self, region: Region) -> int:
        spec = self.stage.grid
        halo = network_shapes.halo(self.stage.network, spec.padding)
        return len(cover(region, spec.tile, halo, spec.overlap, spec.placement).tiles)

    def chosen(self) -> ChosenRegion:
        """The candidate with the fewest tiles; of several, the safest.

        Raises:
            TrainingError: none holds enough in every scan.
        """
        lowest = {own: min(cost.recall for cost in costs) for own, costs in self.found.items()}
        enough = [own for own in self.found if lowest[own] >= RECALL]
        if not enough:
            raise TrainingError(
                f"stage '{self.stage.name}': no region around what the coarse stage finds holds "
                f"{RECALL:.1%} of what the model finds in the scans kept back (the largest: "
                f"{max(lowest.values()):.2%}); go on for longer with --resume --time-budget, or give more "
                "scans"
            )
        best = min(enough, key=lambda own: (self._total(own), -own[0], own[1]))
        costs = self.found[best]
        return ChosenRegion(
            DilatedForeground(of=self.of, labels=self.labels, radius_vox=best[0], threshold=best[1]),
            lowest[best],
            _by_organ(costs),
            self._total(best) / sum(cost.all_tiles for cost in costs),
        )

    def _total(self, candidate: Candidate) -> int:
        return sum(cost.tiles for cost in self.found[candidate])


def searches(
    stages: Iterable[Stage], schema: LabelSchema, of: str, known: Sequence[str]
) -> list[RegionSearch]:
    """One for each stage that predicts something of what stage ``of`` knows."""
    found = []
    for stage in stages:
        labels = tuple(name for name in graph.resolve_labels(stage, schema) if name in known)
        if labels:
            found.append(RegionSearch(stage, schema, of, labels))
    return found


def _counts(answer: LabelMap, labels: tuple[str, ...], region: Region | None = None) -> dict[str, int]:
    """Voxels by label, of all or of those in a region."""
    data: npt.NDArray[np.uint8] = answer.data
    if region is not None:
        here = region.on(answer.grid)
        data = data[here.box.slices][here.mask_in(here.box)]
    counts = np.bincount(data.ravel(), minlength=answer.schema.classes)
    return {name: int(counts[answer.schema.class_of(name)]) for name in labels}


def _by_organ(costs: Sequence[RegionCost]) -> dict[str, float]:
    out = {}
    for name in costs[0].voxels:
        total = sum(cost.voxels[name] for cost in costs)
        if total:
            out[name] = sum(cost.held[name] for cost in costs) / total
    return out
