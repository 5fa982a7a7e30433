"""Grids: the positions of voxels in the patient, without the voxels.

Index axes are ``i, j, k``; world axes are RAS+ in millimetres; a voxel's centre is ``affine @ (i, j, k, 1)``.
Resampled grids keep the field of view's first corner (not the first voxel centre), so half-voxel shifts do
not accumulate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import GeometryError

Index3 = tuple[int, int, int]
Vector3 = tuple[float, float, float]
Sides = tuple[tuple[bool, bool], tuple[bool, bool], tuple[bool, bool]]
"""Sides of a box: left and right, back and front, feet and head (canonical axes, low then high)."""

FloatArray = npt.NDArray[np.float64]

LPS_TO_RAS: FloatArray = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From positions in DICOM and ITK (to the patient's left, back and head) to those of affines, and back."""

ENDS = ("RL", "AP", "SI")
"""Letters of the directions along each canonical axis: towards its end, and towards its start."""

GEOMETRY_TOLERANCE_VOX = 1e-2
"""Two grids are the same if no voxel centre differs by more than this fraction of a voxel along any axis. A
fixed distance would not do: a hundredth of a millimetre is negligible in a CT, but two voxels of a
synchrotron scan."""


@dataclass(frozen=True)
class Box:
    """Half-open box of voxel indices; may reach outside the grid it refers to."""

    start: Index3
    stop: Index3

    @property
    def shape(self) -> Index3:
        a, b = self.start, self.stop
        return (b[0] - a[0], b[1] - a[1], b[2] - a[2])

    @property
    def empty(self) -> bool:
        return min(self.shape) <= 0

    @property
    def voxels(self) -> int:
        return 0 if self.empty else math.prod(self.shape)

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        """Slices into an array that starts at index 0; refuse negative starts first."""
        if min(self.start) < 0:
            raise GeometryError(f"box {self.start}..{self.stop} starts outside its array; clip it first")
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))  # type: ignore[return-value]

    def expand(self, margin_vox: Index3) -> Box:
        s, e, m = self.start, self.stop, margin_vox
        return Box(
            (s[0] - m[0], s[1] - m[1], s[2] - m[2]),
            (e[0] + m[0], e[1] + m[1], e[2] + m[2]),
        )

    def intersect(self, other: Box) -> Box:
        start = tuple(max(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(min(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, stop)  # type: ignore[arg-type]

    def union(self, other: Box) -> Box:
        start = tuple(min(a, b) for a, b in zip(self.start, other.start, strict=True))
        stop = tuple(max(a, b) for a, b in zip(self.stop, other.stop, strict=True))
        return Box(start, stop)  # type: ignore[arg-type]

    def shift(self, offset: Index3) -> Box:
        s, e, o = self.start, self.stop, offset
        return Box(
            (s[0] + o[0], s[1] + o[1], s[2] + o[2]),
            (e[0] + o[0], e[1] + o[1], e[2] + o[2]),
        )

    def relative_to(self, origin: Index3) -> Box:
        return self.shift((-origin[0], -origin[1], -origin[2]))


@dataclass(frozen=True, eq=False)
class Grid:
    """A lattice of voxels: shape and affine (voxel index to RAS+ millimetres).

    Raises:
        GeometryError: shape not positive, affine not finite or singular.
    """

    shape: Index3
    affine: FloatArray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all():
            bad = int((~np.isfinite(affine)).sum())
            got = f"{bad} numbers that are not" if affine.shape == (4, 4) else f"the shape {affine.shape}"
            raise GeometryError(f"affine must be 4x4 and finite, got {got}")
        if affine[3].tolist() != [0, 0, 0, 1]:
            raise GeometryError(f"affine must end in the row 0 0 0 1, got {affine[3].tolist()}")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise GeometryError(f"grid shape must be three positive sizes, got {self.shape}")
        lengths = np.linalg.norm(affine[:3, :3], axis=0)
        if lengths.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6:
            raise GeometryError(f"affine is singular (voxel sizes {lengths.round(6).tolist()} mm)")
        affine.setflags(write=False)
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @classmethod
    def from_spacing(cls, shape: Index3, spacing_mm: Vector3, origin_mm: Vector3 = (0.0, 0.0, 0.0)) -> Grid:
        affine = np.diag([*spacing_mm, 1.0])
        affine[:3, 3] = origin_mm
        return cls(shape, affine)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grid):
            return NotImplemented
        return self.shape == other.shape and bool(np.array_equal(self.affine, other.affine))

    def __hash__(self) -> int:
        return hash((self.shape, (self.affine + 0.0).tobytes()))  # -0.0 equals 0.0

    @property
    def spacing_mm(self) -> Vector3:
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return (float(x), float(y), float(z))

    @property
    def extent_mm(self) -> Vector3:
        """Size of the field of view, including the outer voxel faces."""
        n, s = self.shape, self.spacing_mm
        return (n[0] * s[0], n[1] * s[1], n[2] * s[2])

    @property
    def voxel_volume_ml(self) -> float:
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def box(self) -> Box:
        return Box((0, 0, 0), self.shape)

    def world(self, index: npt.ArrayLike) -> FloatArray:
        """World coordinates (mm) of (fractional) indices ``[..., 3]``."""
        i = np.asarray(index, dtype=np.float64)
        return i @ self.affine[:3, :3].T + self.affine[:3, 3]

    def index(self, world_mm: npt.ArrayLike) -> FloatArray:
        """Fractional indices of world points ``[..., 3]``."""
        w = np.asarray(world_mm, dtype=np.float64)
        out: FloatArray = (w - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T
        return out

    def to_index_of(self, source: Grid) -> FloatArray:
        """4x4 matrix from this grid's indices to ``source``'s indices."""
        out: FloatArray = np.linalg.inv(source.affine) @ self.affine
        return out

    def crop(self, box: Box) -> Grid:
        """The grid of a box of this grid; a box that extends outside continues the lattice."""
        affine = self.affine.copy()
        affine[:3, 3] = self.world(box.start)
        return Grid(box.shape, affine)

    def with_shape(self, shape: Index3) -> Grid:
        """A grid with the same field of view and another number of voxels."""
        return self._rescaled(shape, np.array(self.shape) / np.array(shape, dtype=np.float64))

    def with_spacing(self, spacing_mm: Vector3) -> Grid:
        """A grid with exactly this spacing and the same first corner, which covers the field of view."""
        factors = np.array(spacing_mm, dtype=np.float64) / np.array(self.spacing_mm)
        if not np.isfinite(factors).all() or factors.min() <= 0:
            raise GeometryError(f"spacing must be positive, got {spacing_mm}")
        # A tolerance of a hundredth of a voxel, so that float noise never adds a slice.
        shape = np.maximum(1, np.ceil(np.array(self.shape) / factors - 0.01)).astype(int)
        return self._rescaled((int(shape[0]), int(shape[1]), int(shape[2])), factors)

    def downsampled(self, factor: Vector3) -> Grid:
        """A grid with voxels larger by ``factor`` along each axis, which covers the field of view."""
        s = self.spacing_mm
        return self.with_spacing((s[0] * factor[0], s[1] * factor[1], s[2] * factor[2]))

    def _rescaled(self, shape: Index3, factors: FloatArray) -> Grid:
        """A grid with voxels ``factors`` times as large and the same corner (-0.5, -0.5, -0.5)."""
        affine = self.affine.copy()
        affine[:3, :3] = self.affine[:3, :3] * factors
        affine[:3, 3] = self.world((factors - 1) / 2)
        return Grid(shape, affine)

    def box_of(self, other: Grid, box: Box) -> Box:
        """Smallest box of this grid that covers ``box`` of ``other`` (voxel faces, any orientation)."""
        low, high = np.array(box.start) - 0.5, np.array(box.stop) - 0.5
        corners = np.array([[(low, high)[b][a] for a, b in enumerate(bits)] for bits in np.ndindex(2, 2, 2)])
        mine = self.index(other.world(corners))
        start = np.floor(mine.min(axis=0) + 0.5 + 1e-6).astype(int)
        stop = np.ceil(mine.max(axis=0) + 0.5 - 1e-6).astype(int)
        return Box(tuple(start.tolist()), tuple(np.maximum(stop, start + 1).tolist()))

    def box_mm(self, start: npt.ArrayLike, stop: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Lowest and highest world coordinates ``[..., 3]`` of boxes ``[..., 3]`` of voxel indices, including
        the outer faces of their voxels; on an oblique grid, those of the boxes' corners."""
        ends = np.stack([np.asarray(start) - 0.5, np.asarray(stop) - 0.5])
        corners = np.stack(
            [[ends[bit][..., a] for a, bit in enumerate(bits)] for bits in np.ndindex(2, 2, 2)]
        )
        world = self.world(np.moveaxis(corners, 1, -1))
        return world.min(axis=0), world.max(axis=0)

    def sides_at_end(self, start: npt.ArrayLike, stop: npt.ArrayLike) -> Sides:
        """The sides of the grid at which a box of voxel indices ends, by canonical axes."""
        turned = Orientation.to_canonical(self)
        at_start = np.asarray(start) <= 0
        at_stop = np.asarray(stop) >= self.shape
        sides = [
            (bool(at_stop[a]), bool(at_start[a])) if flipped else (bool(at_start[a]), bool(at_stop[a]))
            for a, flipped in zip(turned.order, turned.flip, strict=True)
        ]
        return sides[0], sides[1], sides[2]

    @property
    def axes(self) -> str:
        """The directions of i, j and k, to the nearest of the patient's: RAS, LPS and so on."""
        turned = Orientation.to_canonical(self)
        letters = [ENDS[world][flipped] for world, flipped in enumerate(turned.flip)]
        return "".join(letters[world] for world in np.argsort(turned.order))

    def distance_mm(self, other: Grid) -> float:
        """Largest distance between voxels of equal index in two grids; infinite if their shapes differ."""
        if self.shape != other.shape:
            return math.inf
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape) - 1)
        return float(np.linalg.norm(self.world(corners) - other.world(corners), axis=-1).max())

    def distance_vox(self, other: Grid) -> float:
        """As ``distance_mm``, in voxels of this grid along the axis where it is largest."""
        if self.shape != other.shape:
            return math.inf
        corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(self.shape) - 1)
        apart = (other.world(corners) - self.world(corners)) @ np.linalg.inv(self.affine[:3, :3]).T
        return float(np.abs(apart).max())

    def same_as(self, other: Grid, tolerance_vox: float = GEOMETRY_TOLERANCE_VOX) -> bool:
        """Whether no voxel differs by more than ``tolerance_vox`` voxels along any axis."""
        return self.distance_vox(other) <= tolerance_vox


@dataclass(frozen=True)
class Orientation:
    """How a grid's axes map to canonical RAS+: output axis ``a`` is input axis ``order[a]``,
    reversed where ``flip[a]``."""

    order: Index3
    flip: tuple[bool, bool, bool]

    @classmethod
    def to_canonical(cls, grid: Grid) -> Orientation:
        """The lossless permutation and flips that bring a grid closest to RAS+."""
        directions = grid.affine[:3, :3] / np.linalg.norm(grid.affine[:3, :3], axis=0)
        order = [-1, -1, -1]
        weight = np.abs(directions)
        for _ in range(3):  # greedy on the largest cosine, as the axes are nearly orthogonal
            world, axis = np.unravel_index(int(np.argmax(weight)), (3, 3))
            order[int(world)] = int(axis)
            weight[world, :] = -1
            weight[:, axis] = -1
        flips = [bool(directions[a, order[a]] < 0) for a in range(3)]
        return cls((order[0], order[1], order[2]), (flips[0], flips[1], flips[2]))

    @classmethod
    def towards(cls, axes: str, grid: Grid) -> Orientation:
        """The lossless permutation and flips after which a grid's axes run as ``axes``, see ``Grid.axes``."""
        turned = cls.to_canonical(grid)
        worlds = [next(world for world, ends in enumerate(ENDS) if letter in ends) for letter in axes]
        flips = [
            turned.flip[world] != (letter == ENDS[world][1])
            for world, letter in zip(worlds, axes, strict=True)
        ]
        i, j, k = (turned.order[world] for world in worlds)
        return cls((i, j, k), (flips[0], flips[1], flips[2]))

    @property
    def identity(self) -> bool:
        return self.order == (0, 1, 2) and not any(self.flip)

    @property
    def inverse(self) -> Orientation:
        order, flip = [0, 0, 0], [False, False, False]
        for a in range(3):
            order[self.order[a]] = a
            flip[self.order[a]] = self.flip[a]
        return Orientation((order[0], order[1], order[2]), (flip[0], flip[1], flip[2]))

    def grid(self, grid: Grid) -> Grid:
        shape = tuple(grid.shape[self.order[a]] for a in range(3))
        matrix = np.zeros((4, 4))
        matrix[3, 3] = 1
        for a in range(3):
            source = self.order[a]
            matrix[source, a] = -1 if self.flip[a] else 1
            matrix[source, 3] = grid.shape[source] - 1 if self.flip[a] else 0
        return Grid(shape, grid.affine @ matrix)  # type: ignore[arg-type]
