"""Probability maps of organs beside a scan's label map, on its own grid.

```
OUT/probabilities/<case>-<organ>.nii.gz
```

Bytes; the file's header states that 255 is a probability of one, so that programs show 0 to 1.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from pathlib import Path

from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.volume import Volume
from zoomseg.io.files import writable_directory
from zoomseg.io.scans import ScanInput, write_array
from zoomseg.pipeline.cascade import Prediction
from zoomseg.pipeline.fusion import BLOCK_VOXELS
from zoomseg.pipeline.probability_map import LEVELS, probability_map
from zoomseg.recipe.spec import Recipe

FOLDER = "probabilities"

COPIES = 3
"""A map as computed, in the scan's orientation, and its compressed form."""

BLOCK_BYTES = 6 * 4 * BLOCK_VOXELS
"""Of a block, in float32: the previous values, the results of interpolation along one axis after the other,
and their comparison."""


def paths(out: Path, case: str, organs: Iterable[str]) -> dict[str, Path]:
    """The paths of organs' maps. Characters in a name that are neither letters nor digits become ``_``; of
    organs whose names are then the same, regardless of case, all but the first get a number."""
    found: dict[str, Path] = {}
    taken: set[str] = set()
    for organ in organs:
        plain = re.sub(r"[\W_]+", "_", organ).strip("_") or "organ"
        numbered = (f"{plain}_{n}" for n in itertools.count(2))
        name = next(own for own in itertools.chain([plain], numbered) if own.casefold() not in taken)
        taken.add(name.casefold())
        found[organ] = out / FOLDER / f"{case}-{name}.nii.gz"
    return found


def writing_bytes(grid: Grid) -> int:
    """Memory needed for writing: one organ after the other, independent of their number."""
    return COPIES * grid.box.voxels + min(BLOCK_BYTES, 6 * 4 * grid.box.voxels)


def write(
    out: Path, scan: ScanInput, grid: Grid, recipe: Recipe, result: Prediction, organs: tuple[str, ...]
) -> None:
    """Write the maps of organs, from the predictions of the stages of an expanded recipe in ``result``;
    ``grid`` is the scan's.

    Raises:
        RecipeError: the stages vote.
        OutputError: no permission, full disk.
    """
    writable_directory(out / FOLDER)
    orientation = Orientation.to_canonical(grid)
    canonical, back = orientation.grid(grid), orientation.inverse
    for organ, path in paths(out, scan.id, organs).items():
        shares = probability_map(organ, canonical, recipe, result.stages, result.atlas)
        volume = Volume(shares[None], canonical).reoriented(back)
        write_array(path, volume.data[0], volume.grid, scan.paths[0], scale=1 / LEVELS)
