"""A case (a scan, possibly labelled) and the prediction of a finished stage."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zoomseg.core.arrays import Array, array_like
from zoomseg.core.errors import GeometryError, LabelError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import BACKGROUND
from zoomseg.core.region import Mask, Region
from zoomseg.core.volume import LabelMap, Volume


@dataclass(frozen=True, eq=False)
class Case:
    """A scan. ``annotated`` names the labels annotated in it; None means all of them. ``modality`` is
    the DICOM modality if the files are DICOM and state it, and ``notes`` describe how the files were read."""

    id: str
    image: Volume
    labels: LabelMap | None = None
    annotated: frozenset[str] | None = None
    modality: str | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels is not None and not self.image.grid.same_as(self.labels.grid):
            raise GeometryError(f"case {self.id}: image and labels lie on different grids")


@dataclass(frozen=True, eq=False)
class StagePrediction:
    """The prediction of a finished stage: probabilities ``[1 + len(labels), I, J, K]`` (channel 0 is
    background) on ``grid`` (the computed box of the stage's grid), the region for which they are valid, and
    the name of the stage. Where it is read as a prior, ``grid`` ends with a voxel of background if it ends
    inside the scan, so that the prior is background beyond it; a region with a mask is not applied, and tiles
    predict beyond it."""

    probabilities: Array
    grid: Grid
    labels: tuple[str, ...]
    region: Region
    source: str
    decided: LabelMap | None = None
    """The stage's own label map on the scan's grid, if a later stage reads it."""

    def __post_init__(self) -> None:
        expected = (1 + len(self.labels), *self.grid.shape)
        if tuple(self.probabilities.shape) != expected:
            raise GeometryError(f"prior of shape {tuple(self.probabilities.shape)}, expected {expected}")

    @property
    def in_region(self) -> Mask:
        """Bool mask ``[I, J, K]``: the voxels of ``grid`` that belong to the region. Tiles extend beyond it,
        but their predictions there are not valid."""
        return self.region.on(self.grid).mask_in(self.grid.box)

    def on_device_of(self, array: Array) -> StagePrediction:
        """A copy whose probabilities belong to the same library and device as an array."""
        return replace(self, probabilities=array_like(self.probabilities, array))

    def channel(self, label: str) -> int:
        """Index of a label's probabilities; 0 for background."""
        if label == BACKGROUND:
            return 0
        if label not in self.labels:
            raise LabelError(
                f"stage '{self.source}' does not predict '{label}'; it has: {', '.join(self.labels)}"
            )
        return self.labels.index(label) + 1
