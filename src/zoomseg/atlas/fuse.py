"""Label fusion: atlases registered to a scan vote for its labels.

All arrays are on one grid. Beyond a volume its edge voxels are repeated, for the scan and the atlases.

Shapes: N atlases, I J K voxels, S shifts of the search window, M contextual features, V undecided voxels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from zoomseg.core.errors import GeometryError
from zoomseg.core.geometry import Box
from zoomseg.core.region import bounding_box
from zoomseg.recipe.spec import AtlasFusionSpec, IntensityFusion, MajorityFusion, PatchFusion

VERSION = 1
"""Of the fused probabilities: increase it with every change of them, so that cached ones are not used."""

CONTEXT_RADII_VOX = (2, 4, 8, 16)
"""Distances at which the surroundings of a voxel are compared: four, each double the previous one, as in the
authors' implementation; theirs start at 4 voxels, which are half as large as the ones used here."""

BLOCK_BYTES = 200_000_000
"""Approximate memory of the distances (and the contextual features) that are processed at a time."""

EPSILON = 1e-6
"""Added to every h, so that a perfect match does not divide by zero."""

Shift = tuple[int, int, int]


def fuse(
    spec: AtlasFusionSpec, target: Tensor, atlas_images: Tensor, atlas_labels: Tensor, classes: int
) -> Tensor:
    """The probability of every class at every voxel of the scan.

    Args:
        spec: how the atlases vote.
        target: the scan's normalised intensities ``[I, J, K]``.
        atlas_images: the registered atlases' normalised intensities ``[N, I, J, K]``.
        atlas_labels: their class indices ``[N, I, J, K]``, uint8, below ``classes``.
        classes: number of classes, background included.

    Returns:
        float32 ``[classes, I, J, K]``, summing to one over the classes.

    Raises:
        GeometryError: shapes that do not fit each other, no atlas, or a class index out of range.
    """
    _check(target, atlas_images, atlas_labels, classes)
    target, atlas_images = target.float(), atlas_images.float()
    match spec:
        case MajorityFusion():
            weights = torch.ones_like(atlas_images)
        case IntensityFusion():
            distances = _local_differences(target, atlas_images, spec.patch_radius_vox)
            weights = _weights(distances)
        case PatchFusion():
            return _fuse_patches(spec, target, atlas_images, atlas_labels, classes)
    return _vote(atlas_labels, weights, classes)


def _check(target: Tensor, images: Tensor, labels: Tensor, classes: int) -> None:
    if target.ndim != 3 or images.ndim != 4 or images.shape != labels.shape or images.shape[0] == 0:
        raise GeometryError(
            f"fusion needs a scan [I, J, K] and atlas images and labels [N, I, J, K] with N > 0, got "
            f"{tuple(target.shape)}, {tuple(images.shape)} and {tuple(labels.shape)}"
        )
    if images.shape[1:] != target.shape:
        raise GeometryError(f"atlases of shape {tuple(images.shape[1:])} for a scan of {tuple(target.shape)}")
    if int(labels.max()) >= classes:
        raise GeometryError(f"an atlas holds class {int(labels.max())}, but there are {classes} classes")


def _vote(labels: Tensor, weights: Tensor, classes: int) -> Tensor:
    """Weighted share of every class among the candidates (the first axis of both)."""
    votes = torch.zeros(classes, *labels.shape[1:])
    for label, weight in zip(labels, weights, strict=True):
        votes.scatter_add_(0, label[None].long(), weight[None])
    return votes / votes.sum(dim=0, keepdim=True)


def _weights(distances: Tensor) -> Tensor:
    """exp(-d / h) with h the smallest distance of the voxel's candidates ``[N, ...]`` (Coupe et al. 2011): if
    one matches well, the others hardly count; if none does, all count almost equally. Shifted by the smallest
    d / h, which cancels in the shares, so that no weight underflows."""
    smallest = distances.amin(dim=0)
    return torch.exp(-(distances - smallest) / (smallest + EPSILON))


def _pad(volumes: Tensor, radius: int) -> Tensor:
    """``[C, I, J, K]`` with its edge voxels repeated ``radius`` times on every side."""
    return F.pad(volumes[None], (radius,) * 6, mode="replicate")[0] if radius else volumes


def _box_sum(volumes: Tensor, radius: int) -> Tensor:
    """Sum over the cube of ``radius`` around every voxel; the last three axes lose ``2 * radius``."""
    for axis in (-3, -2, -1):
        size = volumes.shape[axis] - 2 * radius
        total = volumes.narrow(axis, 0, size).clone()
        for offset in range(1, 2 * radius + 1):
            total += volumes.narrow(axis, offset, size)
        volumes = total
    return volumes


def _local_differences(target: Tensor, images: Tensor, radius: int) -> Tensor:
    """Mean squared intensity difference over the patch around every voxel ``[N, I, J, K]``."""
    squares = [_box_sum(_pad((image - target)[None].square(), radius), radius)[0] for image in images]
    return torch.stack(squares) / (2 * radius + 1) ** 3


# --- patches with augmented features (Bai et al. 2015) ---------------------------------------------


def context_offsets() -> list[Shift]:
    """Offsets of the surroundings: eight directions in each of the three planes (18 in total, as they share
    the axes), four distances each."""
    directions = [d for d in itertools.product((-1, 0, 1), repeat=3) if 1 <= sum(map(abs, d)) <= 2]
    out: list[Shift] = []
    for radius, direction in itertools.product(CONTEXT_RADII_VOX, directions):
        # Diagonal ones lie on the same circle as the axis-aligned ones.
        step = radius if sum(map(abs, direction)) == 1 else round(radius / 2**0.5)
        out.append((step * direction[0], step * direction[1], step * direction[2]))
    return out


def window(radius: int) -> list[Shift]:
    """The shifts of a search window."""
    return [(a, b, c) for a, b, c in itertools.product(range(-radius, radius + 1), repeat=3)]


@dataclass(frozen=True, eq=False)
class _Features:
    """The features by which a volume is compared. ``patch [4, I, J, K]``: intensity and the unit vector of
    its gradient, compared over the patch; ``image`` and ``surroundings [I, J, K]`` (mean over 3x3x3), whose
    difference at each of the offsets is compared at the voxel alone."""

    patch: Tensor
    image: Tensor
    surroundings: Tensor

    @classmethod
    def of(cls, image: Tensor) -> _Features:
        gradient = torch.stack([_central_difference(image, axis) for axis in range(3)])
        gradient = gradient / gradient.norm(dim=0).clamp_min(EPSILON)
        surroundings = _box_sum(_pad(image[None], 1), 1)[0] / 27
        return cls(torch.cat([image[None], gradient]), image, surroundings)

    def patch_in(self, box: Box, margin: int) -> Tensor:
        """``[4, *box.shape + 2 * margin]``."""
        return _cut(self.patch, box, margin)

    def context_in(self, box: Box, margin: int) -> Tensor:
        """``[M, *box.shape + 2 * margin]``: the surroundings' intensity minus the voxel's own."""
        centre = _cut(self.image[None], box, margin)[0]
        reach = margin + max(CONTEXT_RADII_VOX)
        around = _cut(self.surroundings[None], box, reach)[0]
        parts = []
        for offset in context_offsets():
            start = [reach - margin + o for o in offset]
            part = around
            for axis in range(3):
                part = part.narrow(axis, start[axis], centre.shape[axis])
            parts.append(part - centre)
        return torch.stack(parts)


def _central_difference(image: Tensor, axis: int) -> Tensor:
    n = image.shape[axis]
    padded = _pad(image[None], 1)[0]
    for other in range(3):
        if other != axis:
            padded = padded.narrow(other, 1, image.shape[other])
    return (padded.narrow(axis, 2, n) - padded.narrow(axis, 0, n)) / 2


def _cut(volumes: Tensor, box: Box, margin: int) -> Tensor:
    """The box and a margin around it; beyond the volume its edge is repeated. The margin is read by index, so
    that no padded copy of the whole volume is made."""
    for axis in range(3):
        index = torch.arange(box.start[axis] - margin, box.stop[axis] + margin)
        volumes = volumes.index_select(1 + axis, index.clamp(0, volumes.shape[1 + axis] - 1))
    return volumes


def _scale(features: Iterable[Tensor], radius: int) -> Tensor:
    """Factor of squared differences: 1 / range², with the range of each feature ``[C, ...]`` over all atlases
    and the search window, so that features of any unit count equally. A feature that is equal in all
    candidates distinguishes none of them and counts nothing. The result is smaller by ``radius`` on every
    side."""
    low = high = torch.empty(0)
    for feature in features:
        least, most = _pool(-feature, radius).neg_(), _pool(feature, radius)
        low = torch.minimum(low, least) if low.numel() else least
        high = torch.maximum(high, most) if high.numel() else most
    span = high.sub_(low)
    return torch.where(span > EPSILON, span.clamp_min(EPSILON).pow(-2), torch.zeros(()))


def _pool(volumes: Tensor, radius: int) -> Tensor:
    """Largest value in the search window of every voxel; the last three axes lose ``2 * radius``."""
    for axis in (-3, -2, -1):
        size = volumes.shape[axis] - 2 * radius
        largest = volumes.narrow(axis, 0, size)
        for offset in range(1, 2 * radius + 1):
            largest = torch.maximum(largest, volumes.narrow(axis, offset, size))
        volumes = largest
    return volumes


def _fuse_patches(spec: PatchFusion, target: Tensor, images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Voxels whose whole search window has the same label in all atlases are decided; the others are
    processed in slabs."""
    low, high = (
        sign * _pool(sign * _pad(labels.float(), spec.search_radius_vox), spec.search_radius_vox)
        for sign in (-1, 1)
    )
    low, high = low.amin(dim=0), high.amax(dim=0)
    out = torch.zeros(classes, *target.shape)
    out.scatter_(0, low[None].long(), 1.0)
    doubt = low != high
    box = bounding_box(doubt.numpy())
    if box is None:
        return out
    scan, atlases = _Features.of(target), [_Features.of(image) for image in images]
    for slab in _slabs(box, len(images) * len(window(spec.search_radius_vox))):
        active = doubt[slab.slices]
        if active.any():
            out[(slice(None), *slab.slices)][:, active] = _fuse_slab(
                spec, slab, active, scan, atlases, labels, classes
            )
    return out


def _slabs(box: Box, candidates: int) -> Iterator[Box]:
    """The box in slabs whose distances, one float32 per candidate and voxel, take about BLOCK_BYTES."""
    per_row = 4 * max(candidates, 2 * len(context_offsets())) * box.shape[1] * box.shape[2]
    rows = max(1, BLOCK_BYTES // per_row)
    for start in range(box.start[0], box.stop[0], rows):
        stop = min(start + rows, box.stop[0])
        yield Box((start, *box.start[1:]), (stop, *box.stop[1:]))


def _fuse_slab(
    spec: PatchFusion,
    slab: Box,
    active: Tensor,
    scan: _Features,
    atlases: list[_Features],
    labels: Tensor,
    classes: int,
) -> Tensor:
    """Probabilities ``[classes, V]`` of the slab's ``active`` voxels."""
    distances = _patch_distances(spec, slab, active, scan, atlases)
    distances += _context_distances(spec, slab, active, scan, atlases)
    weights = _weights(distances)
    radius = spec.search_radius_vox
    votes = torch.zeros(classes, distances.shape[1])
    for n in range(len(atlases)):
        around = _cut(labels[n][None], slab, radius)[0]
        for s, shift in enumerate(window(radius)):
            label = _shifted(around, shift, radius, slab.shape)[active]
            votes.scatter_add_(0, label[None].long(), weights[n * len(window(radius)) + s][None])
    return votes / votes.sum(dim=0, keepdim=True)


def _shifted(volume: Tensor, shift: Shift, radius: int, shape: Shift) -> Tensor:
    """The part of ``shape`` at ``shift`` from the middle of a volume that is larger by ``radius`` on every
    side (the last three axes)."""
    for axis in range(3):
        volume = volume.narrow(axis - 3, radius + shift[axis], shape[axis])
    return volume


def _patch_distances(
    spec: PatchFusion, slab: Box, active: Tensor, scan: _Features, atlases: list[_Features]
) -> Tensor:
    """Squared, scaled differences of intensity and gradient summed over the patch ``[N * S, V]``."""
    reach, patch = spec.search_radius_vox, spec.patch_radius_vox
    wanted = scan.patch_in(slab, patch)
    offered = [atlas.patch_in(slab, patch + reach) for atlas in atlases]
    scale = _scale(offered, reach)
    shape = (wanted.shape[1], wanted.shape[2], wanted.shape[3])
    rows = []
    for features, shift in itertools.product(offered, window(reach)):
        difference = _shifted(features, shift, reach, shape) - wanted
        rows.append(_box_sum((difference.square_() * scale).sum(dim=0), patch)[active])
    return torch.stack(rows)


def _context_distances(
    spec: PatchFusion, slab: Box, active: Tensor, scan: _Features, atlases: list[_Features]
) -> Tensor:
    """Squared, scaled differences of the contextual features at the voxel ``[N * S, V]``. The features of one
    voxel are contiguous in memory, as whole voxels are selected."""
    reach = spec.search_radius_vox
    scale = _scale((atlas.context_in(slab, reach) for atlas in atlases), reach)[:, active].T.contiguous()
    wanted = scan.context_in(slab, 0)[:, active].T.contiguous()
    size = [n + 2 * reach for n in slab.shape]
    at = active.nonzero()  # [V, 3]
    rows = []
    for atlas in atlases:
        offered = atlas.context_in(slab, reach).flatten(1).T.contiguous()  # [voxels, M]
        for shift in window(reach):
            i, j, k = (at[:, a] + reach + shift[a] for a in range(3))
            picked = offered.index_select(0, (i * size[1] + j) * size[2] + k)
            rows.append(torch.linalg.vecdot(picked.sub_(wanted).square_(), scale))
    return torch.stack(rows)
