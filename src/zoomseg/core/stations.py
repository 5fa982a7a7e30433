"""A scan acquired in overlapping stations, such as whole-body MR, joined to one volume.

Stations are placed by their affines, on the lattice of the first one. Two that overlap show the same tissue
there. The later one gets the gain and offset that give both the same mean and standard deviation, so that
every station ends in the intensities of the first. A least-squares fit would be worse: noise in the regressor
lowers its slope, from station to station. In the overlap the mean is taken, each station weighted by the
distance in voxels to its own border, so that no edge remains.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import numpy.typing as npt

from zoomseg.core.case import Case
from zoomseg.core.errors import ScanError, quoted
from zoomseg.core.geometry import Box, Grid, Index3, Orientation
from zoomseg.core.memory import require_ram
from zoomseg.core.resample import Float32Array, as_float, resample_data
from zoomseg.core.volume import Volume

MIN_OVERLAP = 100
"""Minimum number of voxels that two stations must share: mean and standard deviation of fewer are
unreliable."""

MIN_CORRELATION = 0.5
"""Minimum Pearson correlation of two stations' intensities in their overlap. Body against air alone
correlates more than this; a lower value means another channel, another patient, or a wrong position."""

DIRECTION_TOLERANCE = 1e-3
"""Largest difference of the direction cosines of two stations' axes."""

FLOAT_BYTES = 4


@dataclass(frozen=True)
class IntensityMatch:
    """How a station's intensities were matched to those of the first: ``gain * intensity + offset``, by
    channel, estimated from the ``voxels`` that it shares with the station ``of``."""

    station: str
    of: str
    voxels: int
    gain: tuple[float, ...]
    offset: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class _Placed:
    """A station on the joined lattice: ``[C, *box.shape]``, float32."""

    name: str
    data: Float32Array
    box: Box


def stitch(stations: Sequence[Case]) -> tuple[Volume, tuple[IntensityMatch, ...]]:
    """The joined scan ``[C, I, J, K]``, float32, in the first station's orientation and intensities, and how
    the others were matched. Voxels that no station covers have the lowest intensity of the joined scan.

    Raises:
        ScanError: fewer than two stations; stations that differ in their number of channels, in modality or
            in the direction of their axes; that do not overlap; whose intensities do not agree where they do.
        MemoryLimitError: the joined scan does not fit into memory.
    """
    if len(stations) < 2:
        raise ScanError(f"nothing to join: {len(stations)} station was found, and at least two are needed")
    for other in stations[1:]:
        _check_alike(stations[0], other)
    first = stations[0].image.grid
    orientation = Orientation.to_canonical(first)
    lattice, boxes = _lattice([_canonical(station).grid for station in stations], stations)
    _require_overlaps(boxes, stations)
    _require_room(lattice, boxes, stations[0].image.channels)
    placed = [_placed(station, lattice, box) for station, box in zip(stations, boxes, strict=True)]
    matches = _match(placed)
    joined = Volume(_mean(placed, lattice.shape), lattice)
    return joined.reoriented(orientation.inverse), matches


def _canonical(station: Case) -> Volume:
    return station.image.reoriented(Orientation.to_canonical(station.image.grid))


def _check_alike(first: Case, other: Case) -> None:
    """Raise an error if a station cannot be part of the same scan as the first."""
    names = f"stations {quoted(first.id)} and {quoted(other.id)}"
    if first.image.channels != other.image.channels:
        counts = f"{first.image.channels} and {other.image.channels}"
        raise ScanError(f"{names} have {counts} channels; all stations must have the same")
    if first.modality != other.modality and None not in (first.modality, other.modality):
        raise ScanError(
            f"{names} are {first.modality} and {other.modality}; all stations must be of one scan"
        )
    turned = np.linalg.inv(_directions(_canonical(first).grid)) @ _directions(_canonical(other).grid)
    if np.abs(turned - np.eye(3)).max() > DIRECTION_TOLERANCE:
        raise ScanError(f"{names} differ in orientation: their axes are not parallel")


def _directions(grid: Grid) -> npt.NDArray[np.float64]:
    """Unit vectors of a grid's axes, as columns."""
    axes: npt.NDArray[np.float64] = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
    return axes


def _lattice(grids: Sequence[Grid], stations: Sequence[Case]) -> tuple[Grid, list[Box]]:
    """The first grid's lattice, extended over all of them, and each one's box in it."""
    boxes = [_centres_within(grids[0], grid) for grid in grids]
    for box, station in zip(boxes, stations, strict=True):
        if box.empty:
            raise ScanError(
                f"station {quoted(station.id)} is thinner than a voxel of station {quoted(stations[0].id)}"
            )
    whole = reduce(Box.union, boxes)
    return grids[0].crop(whole), [box.relative_to(whole.start) for box in boxes]


def _centres_within(lattice: Grid, grid: Grid) -> Box:
    """The voxels of a lattice whose centres lie in a parallel grid's field of view."""
    faces = lattice.index(grid.world(np.array([(0, 0, 0), grid.shape]) - 0.5))
    start, stop = np.ceil(faces[0]), np.floor(faces[1]) + 1
    i, j, k = (int(n) for n in start)
    a, b, c = (int(n) for n in stop)
    return Box((i, j, k), (a, b, c))


def _overlaps(boxes: Sequence[Box]) -> Iterator[tuple[int, int, int]]:
    """Pairs of stations that share enough voxels, as (voxels, station to match, station it is matched to): a
    tree that starts at station 0 and adds the largest overlap with a further station each time."""
    joined, left = [0], set(range(1, len(boxes)))
    while left:
        pairs = [(boxes[n].intersect(boxes[m]).voxels, n, m) for n in sorted(left) for m in joined]
        voxels, n, m = max(pairs, key=lambda pair: pair[0])
        if voxels < MIN_OVERLAP:
            return
        yield voxels, n, m
        joined.append(n)
        left.remove(n)


def _require_overlaps(boxes: Sequence[Box], stations: Sequence[Case]) -> None:
    """Raise an error if some stations are not connected with the first, before anything is computed."""
    reached = {0, *(n for _, n, _ in _overlaps(boxes))}
    apart = [station for n, station in enumerate(stations) if n not in reached]
    if apart:
        others = "the first" if len(reached) == 1 else "the others"
        raise ScanError(
            f"station {quoted(apart[0].id)} does not overlap {others}; stations must share slices"
        )


def _require_room(lattice: Grid, boxes: Sequence[Box], channels: int) -> None:
    """Raise an error if memory is insufficient for all stations on the lattice, their weighted sum, the
    weights, and the part that is being added."""
    voxels = math.prod(lattice.shape)
    floats = (
        channels * (sum(box.voxels for box in boxes) + max(box.voxels for box in boxes) + voxels) + voxels
    )
    require_ram(FLOAT_BYTES * floats, f"joining stations to {' x '.join(map(str, lattice.shape))} voxels")


def _placed(station: Case, lattice: Grid, box: Box) -> _Placed:
    image = _canonical(station)
    data = resample_data(as_float(image.data), image.grid, lattice.crop(box))
    return _Placed(station.id, np.array(data, dtype=np.float32), box)  # a copy, as it is changed in place


def _match(placed: Sequence[_Placed]) -> tuple[IntensityMatch, ...]:
    """Match all stations to the intensities of the first, in place."""
    found = []
    for voxels, n, m in _overlaps([station.box for station in placed]):
        station, reference = placed[n], placed[m]
        shared = station.box.intersect(reference.box)
        fits = [
            _fit(
                own[shared.relative_to(station.box.start).slices],
                theirs[shared.relative_to(reference.box.start).slices],
                station.name,
                reference.name,
            )
            for own, theirs in zip(station.data, reference.data, strict=True)
        ]
        for channel, (gain, offset) in zip(station.data, fits, strict=True):
            with np.errstate(over="ignore"):
                channel *= gain
                channel += offset
            if not np.isfinite(channel).all():
                raise ScanError(f"station {quoted(station.name)}: its intensities times {gain:.3g} overflow")
        gains, offsets = zip(*fits, strict=True)
        found.append(IntensityMatch(station.name, reference.name, voxels, gains, offsets))
    return tuple(found)


def _fit(own: Float32Array, theirs: Float32Array, name: str, other: str) -> tuple[float, float]:
    """Gain and offset that give ``own`` the mean and the standard deviation of ``theirs``."""
    x, y = own.astype(np.float64), theirs.astype(np.float64)
    names = f"stations {quoted(name)} and {quoted(other)}"
    spread_x, spread_y = float(x.std()), float(y.std())
    if min(spread_x, spread_y) == 0:
        raise ScanError(f"{names}: their overlap has a constant intensity, so intensities cannot be matched")
    correlation = float(((x - x.mean()) * (y - y.mean())).mean()) / (spread_x * spread_y)
    if correlation < MIN_CORRELATION:
        raise ScanError(
            f"{names} differ where they overlap (correlation {correlation:.2f}); are they of the "
            "same channel and patient?"
        )
    gain = spread_y / spread_x
    return gain, float(y.mean() - gain * x.mean())


def _mean(placed: Sequence[_Placed], shape: Index3) -> Float32Array:
    """The mean, weighted by the distance to each station's border."""
    total = np.zeros((len(placed[0].data), *shape), dtype=np.float32)
    weights = np.zeros(shape, dtype=np.float32)
    for station in placed:
        weight = _border_distance(station.box.shape, shape)
        total[(slice(None), *station.box.slices)] += weight * station.data
        weights[station.box.slices] += weight
    covered = weights > 0
    np.divide(total, weights, out=total, where=covered)
    for channel in total:
        channel[~covered] = channel[covered].min()
    return total


def _border_distance(shape: Index3, whole: Index3) -> Float32Array:
    """For each voxel of a box, the product over the axes of its distance to the nearer face, relative to the
    joined scan's size: never zero, and equal for two boxes along the axes in which they do not differ."""
    i, j, k = (
        (np.minimum(np.arange(n) + 1, n - np.arange(n)) / size).astype(np.float32)
        for n, size in zip(shape, whole, strict=True)
    )
    out: Float32Array = i[:, None, None] * j[None, :, None] * k[None, None, :]
    return out
