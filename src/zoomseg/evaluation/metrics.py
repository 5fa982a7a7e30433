"""Agreement of two label maps: Dice, surface Dice (NSD), HD95, ASSD and volumes.

Definitions are those of Nikolov et al., "Deep learning to achieve clinically applicable segmentation
of head and neck anatomy for radiotherapy" (2018), and of the ``surface-distance`` package that came
with it: a surface element sits wherever a 2x2x2 neighbourhood of voxels is neither all inside nor all
outside, its area is that of the marching-cubes contour through the neighbourhood, and every average
and percentile over a surface is weighted by those areas. ASSD is the mean of the two directed average
distances.

An organ that neither map has is not scored (NaN). An organ that only one map has scores Dice = NSD = 0
at infinite distance. Rules that differ by organ are those of ``evaluation.tolerances``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import product

import edt
import numpy as np
import numpy.typing as npt

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box, Grid, Index3, Vector3
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.region import class_boxes
from zoomseg.evaluation.tolerances import OrganRule, Tolerances

Mask = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]
Corner = tuple[int, int, int]

INSIDE = 255
"""Neighbour code of a voxel corner whose 8 voxels are all inside."""

HAUSDORFF_SHARE = 0.95

ROUNDING = 1e-6
"""Relative error of a large distance, and of a sum of float64: three times 0.7 mm is within 2.1 mm."""

BALL_VOXELS = 400
"""Number of voxels around each surface element that are checked one by one."""

BALL_REACH = 16
"""Maximum distance of these along any axis, in voxels."""

STEPS_AT_ONCE = 8
"""Number of steps after which elements that have found the other surface are removed."""


@dataclass(frozen=True)
class OrganScore:
    """Scores of an organ in a case; distances are NaN if neither map has it, infinite if only one has."""

    organ: str
    dice: float
    nsd: float
    hd95_mm: float
    assd_mm: float
    volume_ml: float
    reference_ml: float

    @property
    def missed(self) -> bool:
        return self.reference_ml > 0 and self.volume_ml == 0

    @property
    def spurious(self) -> bool:
        return self.reference_ml == 0 and self.volume_ml > 0


@dataclass(frozen=True)
class SurfaceAgreement:
    """Agreement of two surfaces: NSD (share of both surfaces within the tolerance), HD95, ASSD."""

    nsd: float
    hd95_mm: float
    assd_mm: float


def score(
    prediction: Classes,
    reference: Classes,
    grid: Grid,
    schema: LabelSchema,
    tolerance_mm: float | Tolerances = 1.0,
    organs: Iterable[str] | str = "all",
) -> tuple[OrganScore, ...]:
    """Score two maps ``[I, J, K]`` of class indices on ``grid``, one row per organ in schema order. Volumes
    are those on the grid; distances and areas assume perpendicular axes. If an organ is scored on the slices
    of the reference alone, these are planes of constant k.

    Voxels whose reference is ``IGNORE`` count as background in both maps.

    Raises:
        GeometryError: the maps differ in shape, from each other or from the grid, or the tolerance is not
            usable.
        LabelError: an organ that is not in the schema.
    """
    if prediction.shape != reference.shape:
        raise GeometryError(f"prediction {prediction.shape} and reference {reference.shape} differ in shape")
    if reference.shape != grid.shape:
        raise GeometryError(f"the maps have the shape {reference.shape}, their grid {grid.shape}")
    rules = tolerance_mm if isinstance(tolerance_mm, Tolerances) else Tolerances.same(tolerance_mm)
    # Axes in the order of the reference's memory: scores are the same in any order, and nothing is copied.
    axes = np.argsort([-abs(stride) for stride in reference.strides], kind="stable")
    prediction, reference = (np.ascontiguousarray(x.transpose(axes)) for x in (prediction, reference))
    i, j, k = (grid.spacing_mm[axis] for axis in axes)
    slices = axes.tolist().index(2)
    classes = [schema.class_of(organ) for organ in schema.select(organs)]
    if (reference == IGNORE).any():
        prediction = np.where(reference == IGNORE, np.uint8(0), prediction)
    boxes = [class_boxes(labels, classes) for labels in (prediction, reference)]
    rows = []
    for c in classes:
        box, organ = union_of(found.get(c) for found in boxes).slices, schema.names[c - 1]
        masks, rule = (prediction[box] == c, reference[box] == c), rules.of(organ)
        volumes = [int(np.count_nonzero(mask)) * grid.voxel_volume_ml for mask in masks]
        if rule.reference_slices and volumes[1] > 0:
            # Nothing is left of a reference on one slice alone, so that there is no score.
            masks, rule = _on_reference_slices(*masks, slices), replace(rule, neither=None)
        rows.append(OrganScore(organ, *_agreement(*masks, (i, j, k), rule), *volumes))
    return tuple(rows)


def union_of(boxes: Iterable[Box | None]) -> Box:
    """The smallest box around the given ones; an empty one if there are none."""
    there = [box for box in boxes if box is not None]
    return reduce(Box.union, there) if there else Box((0, 0, 0), (0, 0, 0))


def _on_reference_slices(prediction: Mask, reference: Mask, axis: int) -> tuple[Mask, Mask]:
    """Both maps from the reference's lowest plane along an axis to the one below its highest."""
    others = tuple(a for a in range(3) if a != axis)
    planes = np.flatnonzero(reference.any(axis=others))
    kept = (slice(None),) * axis + (slice(planes[0], planes[-1]),)
    return prediction[kept], reference[kept]


def _agreement(
    prediction: Mask, reference: Mask, spacing_mm: Vector3, rule: OrganRule
) -> tuple[float, float, float, float]:
    """Dice, NSD, HD95 and ASSD of two masks."""
    tolerance_mm = math.nan if rule.tolerance_mm is None else rule.tolerance_mm
    nothing = 0.0 * tolerance_mm  # NaN without a tolerance
    predicted_voxels, reference_voxels = (int(np.count_nonzero(x)) for x in (prediction, reference))
    if predicted_voxels == 0 and reference_voxels == 0:
        neither = math.nan if rule.neither is None else rule.neither
        return neither, neither + nothing, math.nan, math.nan
    if predicted_voxels == 0 or reference_voxels == 0:
        return 0.0, nothing, math.inf, math.inf
    dice = 2 * int(np.count_nonzero(prediction & reference)) / (predicted_voxels + reference_voxels)
    surface = surface_agreement(prediction, reference, spacing_mm, tolerance_mm)
    return dice, surface.nsd + nothing, surface.hd95_mm, surface.assd_mm


# --- surfaces -------------------------------------------------------------------------------------


def surface_agreement(a: Mask, b: Mask, spacing_mm: Vector3, tolerance_mm: float) -> SurfaceAgreement:
    """Agreement of the surfaces of two non-empty masks ``[I, J, K]``.

    Raises:
        GeometryError: a mask is empty.
    """
    if not (a.any() and b.any()):
        raise GeometryError("surface distances need two masks that are not empty")
    areas = surface_areas(spacing_mm)
    surface_a, surface_b = (_Surface.of(mask, areas) for mask in (a, b))
    distance_ab, area_ab = _directed(surface_a, surface_b, spacing_mm)
    distance_ba, area_ba = _directed(surface_b, surface_a, spacing_mm)
    within = tolerance_mm * (1 + ROUNDING)
    close = area_ab[distance_ab <= within].sum() + area_ba[distance_ba <= within].sum()
    means = [np.average(distance_ab, weights=area_ab), np.average(distance_ba, weights=area_ba)]
    return SurfaceAgreement(
        nsd=float(close / (area_ab.sum() + area_ba.sum())),
        hd95_mm=max(_percentile(distance_ab, area_ab), _percentile(distance_ba, area_ba)),
        assd_mm=float(sum(means)) / 2,
    )


@dataclass(frozen=True)
class FarthestPoint:
    """Where two surfaces are farthest apart: a voxel at the surface of the mask that extends farther, and its
    distance from the other mask's surface."""

    voxel: Index3
    distance_mm: float


def farthest_point(a: Mask, b: Mask, spacing_mm: Vector3) -> FarthestPoint:
    """The point of the Hausdorff distance of two non-empty masks ``[I, J, K]``: in the direction with the
    larger HD95, the surface element farthest from the other surface.

    Raises:
        GeometryError: a mask is empty.
    """
    if not (a.any() and b.any()):
        raise GeometryError("surface distances need two masks that are not empty")
    areas = surface_areas(spacing_mm)
    of_a, of_b = _Surface.of(a, areas), _Surface.of(b, areas)
    found: list[tuple[float, float, Index3]] = []
    for mask, source, target in ((a, of_a, of_b), (b, of_b, of_a)):
        distance = distance_to(target.mask, source.elements, spacing_mm)
        order = np.lexsort((source.areas_mm2, distance))
        worst = int(np.argmax(distance))
        corner = np.unravel_index(int(source.elements[worst]), source.mask.shape)
        percentile = _percentile(distance[order], source.areas_mm2[order])
        found.append((percentile, float(distance[worst]), _voxel_at(mask, corner)))
    _, distance_mm, voxel = max(found, key=lambda one: one[:2])
    return FarthestPoint(voxel, distance_mm)


def _voxel_at(mask: Mask, corner: Sequence[int | np.intp]) -> Index3:
    """A voxel of the mask that touches a voxel corner ``[I+1, J+1, K+1]``."""
    steps = product((0, 1), repeat=3)
    near = (tuple(int(c) - d for c, d in zip(corner, step, strict=True)) for step in steps)
    there = (v for v in near if all(0 <= i < n for i, n in zip(v, mask.shape, strict=True)))
    i, j, k = next(v for v in there if mask[v])
    return (i, j, k)


def neighbour_codes(mask: Mask) -> Codes:
    """For every voxel corner ``[I+1, J+1, K+1]``, which of the 8 voxels around it are inside: voxel (di, dj,
    dk) is bit 4 di + 2 dj + dk. Outside the array is background."""
    bits: Codes = np.pad(mask, 1).view(np.uint8)
    along_k: Codes = bits[:, :, :-1] | np.left_shift(bits[:, :, 1:], 1, dtype=np.uint8)
    along_j: Codes = along_k[:, :-1] | np.left_shift(along_k[:, 1:], 2, dtype=np.uint8)
    code: Codes = along_j[:-1] | np.left_shift(along_j[1:], 4, dtype=np.uint8)
    return code


@dataclass(frozen=True, eq=False)
class _Surface:
    """The surface elements of a mask ``[I, J, K]``."""

    mask: Mask
    """``[I+1, J+1, K+1]``: the voxel corners with a surface element."""
    elements: npt.NDArray[np.int64]
    """Flat indices into ``mask``."""
    areas_mm2: Floats

    @classmethod
    def of(cls, mask: Mask, areas_mm2: Floats) -> _Surface:
        codes = neighbour_codes(mask)
        surface: Mask = codes - np.uint8(1) < INSIDE - 1  # neither 0, which wraps to 255, nor INSIDE
        elements = np.flatnonzero(surface)
        return cls(surface, elements, areas_mm2[codes.ravel()[elements]])


def _directed(source: _Surface, target: _Surface, spacing_mm: Vector3) -> tuple[Floats, Floats]:
    """Distance (mm) from each surface element of ``source`` to the nearest one of ``target``, sorted,
    and the areas (mm^2) of the source's elements in the same order."""
    distance = distance_to(target.mask, source.elements, spacing_mm)
    order = np.lexsort((source.areas_mm2, distance))
    return distance[order], source.areas_mm2[order]


def distance_to(goal: Mask, elements: npt.NDArray[np.int64], spacing_mm: Vector3) -> Floats:
    """Distance (mm) from lattice points (flat indices) to the nearest true voxel of ``goal``.

    Most points of two compared surfaces are a few voxels apart: these are found by checking all voxels around
    them, nearest first, and are exact. Only for the others, the distance of every voxel of the box is
    computed, in float32.
    """
    distance = _distance_nearby(goal, elements, spacing_mm)
    far = np.isinf(distance)
    if far.any():
        distance[far] = edt.edt(~goal, anisotropy=spacing_mm).ravel()[elements[far]]
    return distance


def _distance_nearby(goal: Mask, elements: npt.NDArray[np.int64], spacing_mm: Vector3) -> Floats:
    """As ``distance_to``; infinite if no voxel of the ball around an element is true."""
    steps, steps_mm = _ball(spacing_mm)
    reach = steps.max(axis=0)
    padded = np.zeros(goal.shape + 2 * reach, dtype=bool)
    padded[tuple(slice(r, r + n) for r, n in zip(reach, goal.shape, strict=True))] = goal
    strides = np.array([padded.shape[1] * padded.shape[2], padded.shape[2], 1])
    flat, at = padded.ravel(), (_lattice(elements, goal) + reach) @ strides
    out, waiting = np.full(len(elements), np.inf), np.arange(len(elements))
    moves = steps @ strides
    for first in range(0, len(moves), STEPS_AT_ONCE):
        near = np.full(len(at), np.inf)
        for n in reversed(
            range(first, min(first + STEPS_AT_ONCE, len(moves)))
        ):  # the nearest one is written last
            near[flat.take(at + moves[n])] = steps_mm[n]
        out[waiting] = near
        left = np.isinf(near)
        at, waiting = at[left], waiting[left]
        if not len(at):
            break
    return out


@lru_cache(maxsize=64)
def _ball(spacing_mm: Vector3) -> tuple[npt.NDArray[np.int64], Floats]:
    """Steps ``[N, 3]`` in voxels to all voxels within a distance, nearest first, and their lengths (mm)."""
    radius = min(
        math.cbrt(BALL_VOXELS * math.prod(spacing_mm) * 3 / (4 * math.pi)), BALL_REACH * min(spacing_mm)
    )
    along = [np.arange(-math.floor(radius / s), math.floor(radius / s) + 1) for s in spacing_mm]
    steps = np.stack(np.meshgrid(*along, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _length(steps, spacing_mm)
    order = np.argsort(lengths, kind="stable")[: np.count_nonzero(lengths <= radius)]
    return steps[order], lengths[order]


def _length(steps: npt.NDArray[np.int64], spacing_mm: Vector3) -> Floats:
    """From whole voxels, so that a distance of exactly the tolerance is not lost to rounding."""
    mm = steps * np.array(spacing_mm)
    out: Floats = np.sqrt(np.sum(mm * mm, axis=1))
    return out


def _lattice(flat: npt.NDArray[np.int64], array: Mask) -> npt.NDArray[np.int64]:
    """Indices ``[N, 3]`` of flat indices into ``array``."""
    return np.stack(np.unravel_index(flat, array.shape), axis=1)


def _percentile(distance: Floats, area: Floats) -> float:
    """Distance within which ``HAUSDORFF_SHARE`` of the surface lies; ``distance`` is sorted."""
    covered = np.cumsum(area) / area.sum()
    i = int(np.searchsorted(covered, HAUSDORFF_SHARE))
    return float(distance[min(i, len(distance) - 1)])


# --- area of a surface element --------------------------------------------------------------------
#
# The contour through a 2x2x2 neighbourhood cuts every edge between an inside and an outside corner at
# its middle. Corners that touch along edges form a piece with a contour of its own; the smaller side
# (inside or outside) is the one that is cut off. A piece of at most four corners has one of six shapes,
# and the area of each follows from the voxel's face areas.

CORNERS: tuple[Corner, ...] = tuple((i, j, k) for i, j, k in product((0, 1), repeat=3))
"""Corner (di, dj, dk) at the position of its bit in a neighbour code."""


@lru_cache(maxsize=64)
def surface_areas(spacing_mm: Vector3) -> Floats:
    """Area (mm^2) of the contour for each of the 256 neighbour codes."""
    i, j, k = spacing_mm
    faces = (j * k, i * k, i * j)
    areas = np.array([sum(_piece_area(p, faces) for p in _pieces(code)) for code in range(256)])
    areas.setflags(write=False)
    return areas


def _pieces(code: int) -> list[list[Corner]]:
    """The smaller side's corners, split into pieces connected along edges."""
    inside = [c for bit, c in enumerate(CORNERS) if code >> bit & 1]
    left = inside if len(inside) <= 4 else [c for c in CORNERS if c not in inside]
    pieces: list[list[Corner]] = []
    while left:
        piece = [left[0]]
        for corner in piece:  # grows during the iteration
            piece += [c for c in left if c not in piece and _axis(corner, c) is not None]
        left = [c for c in left if c not in piece]
        pieces.append(piece)
    return pieces


def _axis(a: Corner, b: Corner) -> int | None:
    """The axis of the cube's edge between two corners, or None if no edge joins them."""
    differing = [axis for axis in range(3) if a[axis] != b[axis]]
    return differing[0] if len(differing) == 1 else None


def _piece_area(piece: list[Corner], faces_mm2: Vector3) -> float:
    """Area (mm^2) of the contour around one piece; ``faces_mm2`` are the voxel's faces across i, j, k."""
    joints = {c: [a for d in piece if (a := _axis(c, d)) is not None] for c in piece}
    used = {axis for axes in joints.values() for axis in axes}
    ends = [axes[0] for axes in joints.values() if len(axes) == 1]
    oblique = math.hypot(*faces_mm2)  # eight times the triangle that cuts off one corner
    match len(piece), len(ends):
        case 1, _:  # a triangle
            return oblique / 8
        case 2, _:  # a rectangle along the edge
            return _slope(faces_mm2, ends[0]) / 2
        case 3, _:  # an L: half the face it lies in, and a trapezoid
            return sum(faces_mm2[a] for a in range(3) if a not in used) / 2 + 3 / 8 * oblique
        case _, 0:  # a square: the face across it
            return sum(faces_mm2[a] for a in range(3) if a not in used)
        case _, 2:  # a chain that turns into all three axes: a bent hexagon
            return oblique / 2 + sum(_slope(faces_mm2, end) for end in ends) / 4
        case _:  # a corner with its three neighbours: a flat hexagon
            return 3 / 4 * oblique


def _slope(faces_mm2: Vector3, along: int) -> float:
    """Area of the diagonal plane through a voxel that contains the axis ``along``."""
    b, c = (face for axis, face in enumerate(faces_mm2) if axis != along)
    return math.hypot(b, c)
