"""``sampler``: which case, and which voxel the next patch is centred on.

Voxels of every class are listed once per case (a bounded random choice of them), so that a draw
costs nothing and small organs are not drowned by large ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Index3
from zoomseg.core.labels import IGNORE
from zoomseg.recipe.spec import ClassBalanced, SamplerSpec, UniformInRegion

LISTED_VOXELS = 4000
"""Voxels listed per case and class."""

Indices = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Candidates:
    """Possible patch centres of one case, in indices of the stage's grid: ``region [n, 3]`` anywhere
    in the region, ``classes[c] [n, 3]`` for the classes that the case has."""

    region: Indices
    classes: Mapping[int, Indices]


@dataclass(frozen=True)
class Draw:
    case: int
    centre: Index3


def list_candidates(
    labels: npt.NDArray[np.uint8],
    mask: npt.NDArray[np.bool_] | None,
    origin: Index3,
    rng: np.random.Generator,
) -> Candidates:
    """List voxels of ``labels [I, J, K]`` (inside ``mask``), whose first voxel has index ``origin``."""
    shape = labels.shape

    def pick(flat: npt.NDArray[np.int64]) -> Indices:
        if len(flat) > LISTED_VOXELS:
            flat = rng.choice(flat, LISTED_VOXELS, replace=False)
        index = np.stack(np.unravel_index(np.sort(flat), shape), axis=-1) + np.array(origin)
        listed: Indices = index.astype(np.int32)
        return listed

    values = labels.ravel() if mask is None else np.where(mask, labels, IGNORE).ravel()
    allowed = np.flatnonzero(values != IGNORE)
    order = np.argsort(values, kind="stable")
    bounds = np.searchsorted(values[order], np.arange(IGNORE + 1))
    classes = {
        c: pick(order[bounds[c] : bounds[c + 1]]) for c in range(1, IGNORE) if bounds[c + 1] > bounds[c]
    }
    return Candidates(pick(allowed), classes)


class Sampler:
    """Draws patch centres over a whole data set, with the randomness handed in."""

    def __init__(self, spec: SamplerSpec, candidates: Sequence[Candidates], classes: Sequence[int]) -> None:
        self._spec = spec
        self._candidates = candidates
        self._with = {c: [n for n, case in enumerate(candidates) if c in case.classes] for c in classes}
        self._with = {c: cases for c, cases in self._with.items() if cases}
        self._usable = [n for n, case in enumerate(candidates) if len(case.region)]

    def draw(self, rng: np.random.Generator) -> Draw:
        match self._spec:
            case ClassBalanced() as spec if self._with and rng.random() >= spec.background_share:
                label = int(rng.choice(list(self._with)))
                case = int(rng.choice(self._with[label]))
                return self._at(case, self._candidates[case].classes[label], rng)
            case ClassBalanced() | UniformInRegion():
                case = int(rng.choice(self._usable))
                return self._at(case, self._candidates[case].region, rng)

    @staticmethod
    def _at(case: int, voxels: Indices, rng: np.random.Generator) -> Draw:
        i, j, k = voxels[int(rng.integers(len(voxels)))].tolist()
        return Draw(case, (i, j, k))
