"""``sampler``: the case and the centre voxel of the next patch.

Voxels of every class are listed once per case (a random choice of limited size), so that draws are cheap and
large organs do not dominate small ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.geometry import Index3
from zoomseg.core.labels import IGNORE
from zoomseg.recipe.spec import ClassBalanced, ClassWeighted, Foreground, SamplerSpec, UniformInRegion

LISTED_VOXELS = 4000
"""Voxels listed per case and class."""

Indices = npt.NDArray[np.int16] | npt.NDArray[np.int32]
"""In 16 bits unless the grid is too long for them: all cases of a training are kept in memory."""


@dataclass(frozen=True)
class Candidates:
    """Possible patch centres of one case, in indices of the stage's grid: ``region [n, 3]`` anywhere
    in the region, ``classes[c] [n, 3]`` for the classes that the case has, 0 (background) among them."""

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
    last = max(first + size for first, size in zip(origin, shape, strict=True)) - 1
    kind = np.int16 if last <= np.iinfo(np.int16).max else np.int32

    def pick(flat: npt.NDArray[np.int64]) -> Indices:
        if len(flat) > LISTED_VOXELS:
            flat = rng.choice(flat, LISTED_VOXELS, replace=False)
        index = np.stack(np.unravel_index(np.sort(flat), shape), axis=-1) + np.array(origin)
        listed: Indices = index.astype(kind)
        return listed

    values = labels.ravel() if mask is None else np.where(mask, labels, IGNORE).ravel()
    allowed = np.flatnonzero(values != IGNORE)
    order = np.argsort(values, kind="stable")
    bounds = np.searchsorted(values[order], np.arange(IGNORE + 1))
    classes = {
        c: pick(order[bounds[c] : bounds[c + 1]]) for c in range(1, IGNORE) if bounds[c + 1] > bounds[c]
    }
    region = pick(allowed)
    if bounds[1] > bounds[0]:
        classes[0] = pick(order[bounds[0] : bounds[1]])
    return Candidates(region, classes)


Source = int | None
"""Source of a centre: the voxels of a class, or (None) the whole region."""


class Sampler:
    """Draws patch centres over a whole data set, with a given random generator."""

    def __init__(
        self, spec: SamplerSpec, candidates: Sequence[Candidates], counts: Sequence[npt.NDArray[np.int64]]
    ) -> None:
        """
        Args:
            candidates: of every case.
            counts: of every case, the voxels of each class in its region, background first (``[classes]``).
        """
        self._spec = spec
        self._candidates = candidates
        listed = [[c in case.classes for c in range(len(counts[0]))] for case in candidates]
        self._counts = np.where(listed, np.stack(counts), 0)
        cases_of = [np.flatnonzero(column).tolist() for column in self._counts.T]
        self._with: dict[Source, list[int]] = dict(enumerate(cases_of))
        self._with[None] = [n for n, case in enumerate(candidates) if len(case.region)]
        labelled = np.flatnonzero(self._counts[:, 1:].any(axis=1)).tolist()
        only_labelled = isinstance(spec, Foreground) and labelled
        self._usable = frozenset(labelled if only_labelled else self._with[None])

    def draw(self, rng: np.random.Generator) -> Draw:
        return self._draw_from(self._source(self._usable, rng), self._usable, rng)

    def draw_distinct(self, size: int, rng: np.random.Generator) -> tuple[Draw, ...]:
        """``size`` draws from different cases; with fewer cases than that, each is drawn once before any is
        drawn again.

        Classes keep the probabilities of ``draw`` as far as possible: all are drawn first, and the rarest (in
        the fewest cases) gets its case first. Only a class whose cases are all taken is drawn again, as
        ``draw`` would from the remaining cases.
        """
        sources = [self._source(self._usable, rng) for _ in range(size)]
        left: frozenset[int] = frozenset()
        draws: list[Draw] = []
        for source in sorted(sources, key=lambda source: len(self._with[source])):
            left = left or self._usable
            taken = left.isdisjoint(self._with[source])
            draws.append(self._draw_from(self._source(left, rng) if taken else source, left, rng))
            left -= {draws[-1].case}
        return tuple(draws)

    def _source(self, cases: frozenset[int], rng: np.random.Generator) -> Source:
        """A class that some of ``cases`` have, or None for any voxel of their regions."""
        counts = self._counts[sorted(cases)].sum(axis=0)
        match self._spec:
            case UniformInRegion():
                return None
            case ClassBalanced(background_share=share):
                organs = (np.flatnonzero(counts[1:]) + 1).tolist()
                return int(rng.choice(organs)) if organs and rng.random() >= share else None
            case Foreground():
                weights = np.where(np.arange(len(counts)) > 0, counts, 0).astype(np.float64)
            case ClassWeighted(exponent=exponent):
                total = np.maximum(self._counts.sum(axis=0), 1).astype(np.float64)
                weights = np.where(counts > 0, total**exponent, 0.0)
        return int(rng.choice(len(weights), p=weights / weights.sum())) if weights.any() else None

    def _draw_from(self, source: Source, cases: frozenset[int], rng: np.random.Generator) -> Draw:
        options = [n for n in self._with[source] if n in cases]
        shares = None
        if isinstance(self._spec, Foreground) and source is not None:
            shares = self._counts[options, source] / self._counts[options, source].sum()
        case = int(rng.choice(options, p=shares))
        listed = self._candidates[case]
        voxels = listed.region if source is None else listed.classes[source]
        i, j, k = voxels[int(rng.integers(len(voxels)))].tolist()
        return Draw(case, (i, j, k))
