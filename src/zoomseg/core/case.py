"""A case (one patient's scan, perhaps labelled) and what a finished stage says about it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zoomseg.core.arrays import Array, beside
from zoomseg.core.errors import GeometryError, LabelError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import BACKGROUND
from zoomseg.core.region import Mask, Region
from zoomseg.core.volume import LabelMap, Volume


@dataclass(frozen=True, eq=False)
class Case:
    """One scan. ``annotated`` names the labels that were drawn in it; None means all of them. ``modality`` is
    DICOM's word for how it was made, where its files say it, and ``notes`` what the user should know of how
    they became a volume."""

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
    """A finished stage's answer: probabilities ``[1 + len(labels), I, J, K]`` (channel 0 = background)
    on ``grid`` (the box of the stage grid that the stage computed), the region it answered for, and
    the stage that said so. Outside ``grid`` the prior is background."""

    probabilities: Array
    grid: Grid
    labels: tuple[str, ...]
    region: Region
    source: str
    decided: LabelMap | None = None
    """What it alone makes of the scan's grid, if a later stage reads that."""

    def __post_init__(self) -> None:
        expected = (1 + len(self.labels), *self.grid.shape)
        if tuple(self.probabilities.shape) != expected:
            raise GeometryError(f"prior of shape {tuple(self.probabilities.shape)}, expected {expected}")

    @property
    def answered(self) -> Mask:
        """Bool mask ``[I, J, K]``: the voxels of ``grid`` that belong to the region. Tiles reach beyond
        it, but what they say there was never asked, and need not be any good."""
        return self.region.on(self.grid).mask_in(self.grid.box)

    def beside(self, array: Array) -> StagePrediction:
        """With its probabilities of the same library and on the same device as an array."""
        return replace(self, probabilities=beside(self.probabilities, array))

    def channel(self, label: str) -> int:
        """Index of a label's probabilities; 0 for background."""
        if label == BACKGROUND:
            return 0
        if label not in self.labels:
            raise LabelError(
                f"stage '{self.source}' does not predict '{label}'; it has: {', '.join(self.labels)}"
            )
        return self.labels.index(label) + 1
