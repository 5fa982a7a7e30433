"""What a stage sees: the same code in training and in prediction.

``prepare`` brings a scan into the canonical orientation and normalises it; ``view`` decides where a
stage looks and on which grid; ``read`` gives the network's input for a box of that grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from zoomseg.core.case import Case, Prior
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.recipe.spec import FixedShape, Recipe, Stage
from zoomseg.stage import grid as grids
from zoomseg.stage import inputs, roi


@dataclass(frozen=True, eq=False)
class Scan:
    """A case made ready: canonical orientation, ``raw`` in the scan's unit, ``image`` normalised."""

    id: str
    raw: Volume
    image: Volume
    labels: LabelMap | None
    orientation: Orientation
    """How the scan's own axes became canonical; its inverse brings labels back."""

    @property
    def grid(self) -> Grid:
        return self.raw.grid


@dataclass(frozen=True, eq=False)
class View:
    """Where a stage looks in one scan. ``grid`` spans the scan; nothing is sampled yet."""

    stage: Stage
    grid: Grid
    region: Region


def prepare(case: Case, recipe: Recipe) -> Scan:
    orientation = Orientation.to_canonical(case.image.grid)
    raw = case.image.reoriented(orientation)
    normalise = inputs.normalisation(recipe.intensity, raw)
    labels = None if case.labels is None else case.labels.reoriented(orientation)
    return Scan(case.id, raw, Volume(normalise.apply(raw.data), raw.grid), labels, orientation)


def view(stage: Stage, recipe: Recipe, scan: Scan, priors: Mapping[str, Prior]) -> View | None:
    """The stage's grid and region; None where there is nothing to look at (see ``on_missing``)."""
    if isinstance(stage.grid, FixedShape):
        found = roi.find_region(stage.roi, scan.grid, scan.raw, priors, recipe.on_missing)
        if found is None:
            return None
        grid = grids.stage_grid(stage.grid, scan.grid, found.box)
        return View(stage, grid, Region.whole(grid))
    grid = grids.stage_grid(stage.grid, scan.grid)
    region = roi.find_region(stage.roi, grid, scan.raw, priors, recipe.on_missing)
    return None if region is None else View(stage, grid, region)


def nothing(stage: Stage, scan: Scan, labels: tuple[str, ...]) -> Prior:
    """What a stage says that has nowhere to look: background, everywhere."""
    grid = scan.grid.with_shape((1, 1, 1))
    probabilities = torch.zeros(1 + len(labels), 1, 1, 1)
    probabilities[0] = 1.0
    return Prior(probabilities, grid, labels, Region.whole(grid), stage.name)


def read(view: View, scan: Scan, priors: Mapping[str, Prior], box: Box) -> Tensor:
    """The network's input ``[C, *box.shape]``; beyond the scan its edge voxels go on."""
    return inputs.assemble(view.stage.inputs, scan.image, priors, view.grid.crop(box))
