"""``roi``: the region of a stage. Each function returns a Region on the stage's grid, or None if the region
is empty."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from zoomseg.core.arrays import AnyNumpy, Array, namespace, to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.geometry import Box, Grid, Vector3
from zoomseg.core.memory import require_ram_of
from zoomseg.core.morphology import (
    Mask,
    dilated,
    dilated_by_cube,
    eroded_by_cube,
    filled_by_slice,
    largest_component,
)
from zoomseg.core.region import Region, bounding_box
from zoomseg.core.resample import resample_data
from zoomseg.core.volume import Volume
from zoomseg.recipe.spec import (
    ATLAS,
    BodyMask,
    BoxAround,
    DilatedForeground,
    OnMissing,
    ProbabilityTimesAtlas,
    RoiSpec,
    WholeVolume,
)

_MASK_BYTES = 8
"""Bytes per voxel of a mask and the distances from it."""


def find_region(
    spec: RoiSpec,
    grid: Grid,
    image: Volume,
    predictions: Mapping[str, StagePrediction],
    on_missing: OnMissing,
) -> Region | None:
    """Compute the region for any kind. ``image`` contains the scan's own intensities (HU for CT)."""
    match spec:
        case WholeVolume():
            return Region.whole(grid)
        case BodyMask():
            found = body_mask(image, grid, spec.threshold, spec.opening_vox)
        case DilatedForeground():
            prediction = predictions[spec.of]
            names = None if spec.labels == "all" else _names(spec, prediction)
            found = dilated_foreground(prediction, grid, _radius_vox(spec, grid), spec.threshold, names)
        case BoxAround():
            prediction = predictions[spec.of]
            seen = foreground(prediction, _names(spec, prediction))
            found = box_around(seen, prediction.grid, grid, spec.margin_mm)
        case ProbabilityTimesAtlas():
            prediction = predictions[spec.of]
            names = _names(spec, prediction)
            likely = probability_times_atlas(prediction, predictions[ATLAS], names) > spec.threshold
            found = box_around(likely, prediction.grid, grid, spec.margin_mm)
    if found is None and on_missing == "whole_volume":
        return Region.whole(grid)
    return found


def body_mask(image: Volume, grid: Grid, threshold: float, opening_vox: int = 0) -> Region | None:
    """Voxels over ``threshold`` in the first channel: largest component, holes filled slice by slice (lungs
    and bowel gas are open to the outside in 3D where the scan ends). Roth et al. 2018, 2.2. Before that, the
    mask is eroded ``opening_vox`` times, and dilated as often afterwards, as in their released code."""
    # Scans are often stored clipped (for example to [-125, 275] HU): air then has the lowest value.
    first = image.data[:1, ...]
    level = max(threshold, float(first.min()))
    mask: Mask = to_numpy(resample_data(first, image.grid, grid)[0, ...] > level)
    if opening_vox:
        mask = eroded_by_cube(mask, opening_vox)
    if not mask.any():
        return None
    body = largest_component(mask, connectivity=6)
    if opening_vox:
        body = dilated_by_cube(body, opening_vox)
    return Region.of_mask(grid, filled_by_slice(body))


def foreground(prediction: StagePrediction, labels: tuple[str, ...] | None = None) -> Mask:
    """Bool mask ``[I, J, K]`` on the prediction's grid: voxels of its valid region whose argmax is one of
    ``labels`` (default any)."""
    winner = to_numpy(namespace(prediction.probabilities).argmax(prediction.probabilities, axis=0))
    if labels is None:
        return (winner > 0) & prediction.in_region
    found: Mask = np.isin(winner, [prediction.channel(name) for name in labels]) & prediction.in_region
    return found


def dilated_foreground(
    prediction: StagePrediction,
    grid: Grid,
    radius_vox: float | Vector3,
    threshold: float | None = None,
    labels: tuple[str, ...] | None = None,
) -> Region | None:
    """The predicted foreground, or that of ``labels``, and voxels whose probability of it exceeds
    ``threshold``, dilated by a ball of ``radius_vox`` voxels of ``grid`` (or by an ellipsoid, a radius per
    axis). Roth et al. 2018, Section 2.2 (r = 3, all labels, no threshold)."""
    seen = foreground(prediction, labels)
    if threshold is not None:
        seen |= to_numpy(_likelihood_of_none(prediction, labels) < 1 - threshold) & prediction.in_region
    found = _moved(seen, prediction.grid, grid)
    if found is None:
        return None
    i, j, k = (math.floor(r) for r in np.broadcast_to(radius_vox, 3))
    box = found.box.expand((i, j, k)).intersect(grid.box)
    require_ram_of(box.shape, _MASK_BYTES, "a region")
    return Region(grid, box, dilated(found.mask_in(box), radius_vox))


def _radius_vox(spec: DilatedForeground, grid: Grid) -> float | Vector3:
    if spec.margin_mm is None:
        assert spec.radius_vox is not None
        return spec.radius_vox
    i, j, k = (spec.margin_mm / mm for mm in grid.spacing_mm)
    return i, j, k


def _likelihood_of_none(prediction: StagePrediction, labels: tuple[str, ...] | None) -> Array:
    """``[I, J, K]``: the probability that a voxel is none of these labels."""
    if labels is None:
        background: Array = prediction.probabilities[0, ...]
        return background
    rest: Array = 1 - sum(prediction.probabilities[prediction.channel(name), ...] for name in labels)
    return rest


def _moved(mask: Mask, source: Grid, grid: Grid) -> Region | None:
    """A mask on another grid: voxels whose centre falls on a set voxel and, so that nothing is lost on a
    coarser grid, voxels that contain the centre of one."""
    box = bounding_box(mask)
    if box is None:
        return None
    require_ram_of(grid.box_of(source, box).shape, _MASK_BYTES, "a region")
    moved = Region(source, box, mask[box.slices]).on(grid)
    out = moved.mask_in(moved.box)
    centres = grid.index(source.world(np.argwhere(mask))) - np.array(moved.box.start)
    held = np.clip(np.floor(centres + 0.5), 0, np.array(moved.box.shape) - 1).astype(int)
    out[tuple(held.T)] = True
    return Region(grid, moved.box, out)


def _names(
    spec: DilatedForeground | BoxAround | ProbabilityTimesAtlas, prediction: StagePrediction
) -> tuple[str, ...]:
    return prediction.labels if isinstance(spec.labels, str) else spec.labels


def probability_times_atlas(
    prediction: StagePrediction, atlas: StagePrediction, labels: tuple[str, ...]
) -> AnyNumpy:
    """Probability times atlas prior of every label, summed over ``labels``: ``[I, J, K]`` on the prediction's
    grid, zero where the prediction is not valid. Valindria et al. 2018, Section 2.2."""
    own = to_numpy(prediction.probabilities)[[prediction.channel(name) for name in labels]]
    shares = atlas.probabilities[[atlas.channel(name) for name in labels]]
    likely: AnyNumpy = (own * to_numpy(resample_data(shares, atlas.grid, prediction.grid))).sum(axis=0)
    return likely * prediction.in_region


def box_around(mask: Mask, source: Grid, grid: Grid, margin_mm: float) -> Region | None:
    """The bounding box of a mask on ``source``, widened by ``margin_mm`` on every side."""
    box = bounding_box(mask)
    if box is None:
        return None
    wide = widened(grid.box_of(source, box), grid, (margin_mm, margin_mm, margin_mm))
    return None if wide.empty else Region(grid, wide)


def widened(box: Box, grid: Grid, margin_mm: Vector3) -> Box:
    """A box of ``grid`` with a margin on both sides of each axis, as far as the grid reaches."""
    i, j, k = (math.ceil(mm / s) for mm, s in zip(margin_mm, grid.spacing_mm, strict=True))
    return box.expand((i, j, k)).intersect(grid.box)
