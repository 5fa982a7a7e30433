"""Structures of a SEG or RTSTRUCT on a series: they may overlap, labels of a label map may not."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import LabelError, ScanError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import BACKGROUND, LabelSchema
from zoomseg.core.volume import LabelMap

Indices = npt.NDArray[np.int64]
"""Voxels of a grid as sorted indices into its flattened (C order) array, each once."""

MAX_VOXELS = 2**29
"""Maximum number of voxels of all structures of a file: twice those of a CT of 512x512x1000, in 4 GB of
indices."""


def require_room(path: Path, voxels: int) -> None:
    """Check, while structures are read, that they fit into memory: a small file can describe any number.

    Args:
        voxels: of the structures read so far.

    Raises:
        ScanError: more than ``MAX_VOXELS``.
    """
    if voxels > MAX_VOXELS:
        raise ScanError(
            f"{path}: its structures have more than {MAX_VOXELS:,} voxels on the series; give several files "
            "with a part of them each"
        )


@dataclass(frozen=True, eq=False)
class Structures:
    """The structures on ``grid``: name to voxels, in the order of the file. ``notes``: omitted structures."""

    grid: Grid
    voxels: Mapping[str, Indices]
    notes: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.voxels)

    def named(self, schema: LabelSchema) -> dict[str, Indices]:
        """Voxels by the schema's names, in any spelling; unknown structures are omitted, those of the same
        label are merged."""
        found: dict[str, Indices] = {}
        for name, voxels in self.voxels.items():
            label = schema.find(name)
            if label is not None:
                found[label] = np.union1d(found[label], voxels) if label in found else voxels
        return found

    def label_map(self, schema: LabelSchema) -> tuple[LabelMap, frozenset[str]]:
        """A label map, and its annotated labels. Where structures overlap the smaller one is used: a voxel of
        an organ is the organ's, not the body's.

        Raises:
            LabelError: no structure is known to the schema.
        """
        drawn = self.named(schema)
        if not drawn:
            raise LabelError(
                f"none of the labels {', '.join(schema.names)} was drawn; there are: {', '.join(self.names)}"
            )
        classes = np.zeros(self.grid.shape, dtype=np.uint8)
        for name in sorted(drawn, key=lambda name: len(drawn[name]), reverse=True):
            classes.reshape(-1)[drawn[name]] = schema.class_of(name)
        return LabelMap(classes, self.grid, schema), frozenset(drawn)


def unused_name(name: str, taken: Container[str]) -> str:
    """A valid label name different from those taken: structures in files may have equal names, or none."""
    plain = " ".join(name.split()) or "unnamed"
    if plain == BACKGROUND:
        plain = f"{plain} structure"
    number, found = 2, plain
    while found in taken:
        found, number = f"{plain} {number}", number + 1
    return found
