"""What a stage sees: the same code in training and in prediction.

``prepare`` finds how a scan is normalised and which way up it lies; ``view`` decides where a
stage looks and on which grid; ``read`` gives the network's input for a box of that grid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from zoomseg.core.arrays import Array, ascending, namespace
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.memory import require_ram_of
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.pipeline import grid as grids
from zoomseg.pipeline import inputs, roi
from zoomseg.pipeline.inputs import Normalisation
from zoomseg.recipe.spec import BodyMask, FixedShape, InputSpec, Recipe, Stage, WholeVolume

_CHANNEL_BYTES = 4
"""Of a voxel: the least that a stage reads is one channel of float32."""


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """A case made ready. ``raw`` is as it came, in the scan's own unit and orientation: nothing as large as
    a scan is turned or made float, only what a stage reads of it. ``grid`` and ``labels`` are canonical."""

    id: str
    raw: Volume
    normalisation: Normalisation
    grid: Grid
    labels: LabelMap | None
    orientation: Orientation
    """How the scan's own axes become canonical; its inverse brings labels back."""
    annotated: frozenset[str] | None = None
    """The labels that were drawn in it; None means all of them. ``labels`` holds no others."""

    @property
    def image(self) -> Volume:
        """The whole scan, normalised and canonical."""
        normal = Volume(self.normalisation.apply(self.raw.data), self.raw.grid)
        return normal.reoriented(self.orientation)

    def image_on(self, grid: Grid, specs: Sequence[InputSpec]) -> Array:
        """The image channels ``[C, *grid.shape]`` that a stage with these inputs sees, normalised."""
        return inputs.image_on(specs, self.raw, self.normalisation, grid)


@dataclass(frozen=True, eq=False)
class StageView:
    """Where a stage looks in one scan. ``grid`` spans the scan; nothing is sampled yet."""

    stage: Stage
    grid: Grid
    region: Region


def prepare(case: Case, recipe: Recipe, place: torch.device | None = None) -> PreparedScan:
    """The case made ready.

    Args:
        place: where the voxels are to be; None: where they are.

    Raises:
        ScanError: the model's window shows nothing of the scan.
    """
    orientation = Orientation.to_canonical(case.image.grid)
    labels = None if case.labels is None else _drawn(case.labels, case.annotated).reoriented(orientation)
    inputs.check_seen(recipe.intensity, case.image, case.id)
    normalisation = inputs.normalisation(recipe.intensity, case.image)
    raw = Volume(torch.asarray(ascending(case.image.data), device=place), case.image.grid)
    grid = orientation.grid(case.image.grid)
    return PreparedScan(case.id, raw, normalisation, grid, labels, orientation, case.annotated)


def _drawn(labels: LabelMap, annotated: frozenset[str] | None) -> LabelMap:
    """Without voxels of labels that, it is said, were not drawn: sketches or mistakes, they are no reference.
    They become background, which in such a case means background or any of these labels."""
    if annotated is None or annotated.issuperset(labels.schema.names):
        return labels
    left_out = [labels.schema.class_of(name) for name in labels.schema.names if name not in annotated]
    return LabelMap(
        np.where(np.isin(labels.data, left_out), np.uint8(0), labels.data), labels.grid, labels.schema
    )


def view(
    stage: Stage, recipe: Recipe, scan: PreparedScan, priors: Mapping[str, StagePrediction]
) -> StageView | None:
    """The stage's grid and region; None where there is nothing to look at (see ``on_missing``).

    Raises:
        MemoryLimitError: what it looks at has more voxels than the machine can hold.
    """
    if isinstance(stage.grid, FixedShape):  # of a few thousand voxels to a side at most
        found = roi.find_region(stage.roi, scan.grid, scan.raw, priors, recipe.on_missing)
        if found is None:
            return None
        grid = grids.stage_grid(stage.grid, scan.grid, found.box)
        return StageView(stage, grid, Region.whole(grid))
    grid = grids.stage_grid(stage.grid, scan.grid)
    what = f"stage '{stage.name}': a region"
    if isinstance(stage.roi, WholeVolume | BodyMask):
        require_ram_of(grid.shape, _CHANNEL_BYTES, what)
    region = roi.find_region(stage.roi, grid, scan.raw, priors, recipe.on_missing)
    if region is None:
        return None
    require_ram_of(region.box.shape, _CHANNEL_BYTES, what)
    return StageView(stage, grid, region)


def background_prediction(stage: Stage, scan: PreparedScan, labels: tuple[str, ...]) -> StagePrediction:
    """What a stage says that has nowhere to look: background, everywhere."""
    grid = scan.grid.with_shape((1, 1, 1))
    probabilities = np.zeros((1 + len(labels), 1, 1, 1), dtype=np.float32)
    probabilities[0] = 1.0
    return StagePrediction(probabilities, grid, labels, Region.whole(grid), stage.name)


def read(view: StageView, scan: PreparedScan, priors: Mapping[str, StagePrediction], box: Box) -> Array:
    """The network's input ``[C, *box.shape]``; beyond the scan its edge voxels go on."""
    return InputReader(view, scan, priors, box).read(box)


class InputReader:
    """Gives the network's input for boxes inside one: the image is sampled once, priors, of which there may
    be a hundred, box by box."""

    def __init__(
        self, view: StageView, scan: PreparedScan, priors: Mapping[str, StagePrediction], box: Box
    ) -> None:
        self._view = view
        self._start = box.start
        self._image = scan.image_on(view.grid.crop(box), view.stage.inputs)
        read = {spec.of for spec in inputs.prior_specs(view.stage.inputs)}
        self._priors = {name: priors[name].beside(self._image) for name in read}

    def read(self, box: Box) -> Array:
        """``[C, *box.shape]``."""
        image = self._image[(slice(None), *box.relative_to(self._start).slices)]
        priors = inputs.priors_on(self._view.stage.inputs, self._priors, self._view.grid.crop(box))
        return namespace(image).concat([image, *priors])
