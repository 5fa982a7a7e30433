"""Where a stage looks: body mask, dilated foreground, box around labels."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from zoomseg.core.geometry import Grid
from zoomseg.core.morphology import dilated
from zoomseg.export.runner import resample
from zoomseg.export.runner.region import Answer, Mask, Region, bounding_box
from zoomseg.export.runner.resample import AnyArray

CORNERS: Mask = np.ones((3, 3, 3), dtype=bool)
"""Voxels that share a corner are neighbours."""


def find(
    roi: Mapping[str, Any], grid: Grid, voxels: AnyArray, scan: Grid, answers: Mapping[str, Answer]
) -> Region | None:
    """The region of ``roi`` on ``grid``; None where there is nothing to look at. ``voxels [C, I, J, K]`` are
    the scan's own, on ``scan``."""
    match roi["kind"]:
        case "whole_volume":
            return Region.whole(grid)
        case "body_mask":
            return body_mask(voxels, scan, grid, roi["threshold"])
        case "dilated_foreground":
            return dilated_foreground(answers[roi["of"]], grid, roi["radius_vox"], roi["threshold"])
        case "box":
            return box_around(answers[roi["of"]], tuple(roi["labels"]), grid, roi["margin_mm"])
        case kind:
            raise ValueError(f"region of kind '{kind}'")


def body_mask(voxels: AnyArray, scan: Grid, grid: Grid, threshold: float) -> Region | None:
    """Voxels over ``threshold`` in the first channel: largest component, holes filled slice by slice."""
    # Scans are often stored clipped: air is then the lowest value there is.
    level = max(threshold, float(voxels[0].min()))
    mask: Mask = resample.linear(voxels[:1], scan, grid)[0] > level
    if not mask.any():
        return None
    mask = largest_component(mask, ndimage.generate_binary_structure(3, 1))
    for k in range(mask.shape[2]):
        mask[:, :, k] = ndimage.binary_fill_holes(mask[:, :, k])
    return _region(grid, mask)


def largest_component(mask: Mask, neighbours: Mask) -> Mask:
    """The largest connected component; of equally large ones the first in memory. Nothing stays nothing."""
    components, sizes = _components(mask, neighbours)
    largest: Mask = components == int(np.argmax(sizes)) if sizes.any() else mask
    return largest


def without_islands(mask: Mask, below: float) -> Mask:
    """Without connected components of fewer than ``below`` times the voxels of the largest."""
    components, sizes = _components(mask, CORNERS)
    kept: Mask = ((sizes >= below * sizes.max()) & (sizes > 0))[components]
    return kept


def components(mask: Mask) -> npt.NDArray[np.signedinteger]:
    """Every voxel's connected component, from 1; 0 for those that are not set."""
    return _components(mask, CORNERS)[0]


def _components(mask: Mask, neighbours: Mask) -> tuple[npt.NDArray[np.signedinteger], npt.NDArray[np.int64]]:
    """Every voxel's component, from 1, and their numbers of voxels; what is not set is none."""
    components, count = ndimage.label(mask, neighbours)
    sizes = np.bincount(components.ravel(), minlength=count + 1).astype(np.int64)
    sizes[0] = 0
    return components, sizes


def _region(grid: Grid, mask: Mask) -> Region | None:
    box = bounding_box(mask)
    return None if box is None else Region(grid, box, mask[box.slices])


def _foreground(answer: Answer, labels: tuple[str, ...]) -> Mask:
    """Where the answer holds, and its argmax is one of ``labels``."""
    winner = answer.probabilities.argmax(axis=0)
    found: Mask = np.isin(winner, answer.channels(labels)) & answer.answered
    return found


def dilated_foreground(
    answer: Answer, grid: Grid, radius_vox: float, threshold: float | None
) -> Region | None:
    """All that the answer found, and what is foreground with a probability over ``threshold``, dilated by a
    ball of ``radius_vox`` voxels of ``grid``."""
    seen = _foreground(answer, answer.labels)
    if threshold is not None:
        seen |= (answer.probabilities[0] < 1 - threshold) & answer.answered
    found = _moved(seen, answer.grid, grid)
    if found is None:
        return None
    reach = math.floor(radius_vox)
    box = found.box.expand((reach, reach, reach)).intersect(grid.box)
    return Region(grid, box, dilated(found.mask_in(box), radius_vox))


def _moved(mask: Mask, source: Grid, grid: Grid) -> Region | None:
    """A mask on another grid: voxels whose centre falls on a set voxel, and, so that nothing is lost on a
    coarser grid, those that hold the centre of one."""
    found = _region(source, mask)
    if found is None:
        return None
    moved = found.on(grid)
    out = moved.mask_in(moved.box)
    centres = grid.index(source.world(np.argwhere(mask))) - np.array(moved.box.start)
    held = np.clip(np.floor(centres + 0.5), 0, np.array(moved.box.shape) - 1).astype(int)
    out[tuple(held.T)] = True
    return Region(grid, moved.box, out)


def box_around(answer: Answer, labels: tuple[str, ...], grid: Grid, margin_mm: float) -> Region | None:
    """The bounding box of the answer's ``labels``, widened by ``margin_mm`` on every side."""
    box = bounding_box(_foreground(answer, labels))
    if box is None:
        return None
    i, j, k = (math.ceil(margin_mm / s) for s in grid.spacing_mm)
    wide = grid.box_of(answer.grid, box).expand((i, j, k)).intersect(grid.box)
    return None if wide.empty else Region(grid, wide)
