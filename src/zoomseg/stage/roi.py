"""``roi``: where a stage looks. Each function returns a Region on the stage's grid, or None where
there is nothing to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage
from torch import Tensor

from zoomseg.core.case import Prior
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region, bounding_box
from zoomseg.core.resample import resample
from zoomseg.core.volume import Volume
from zoomseg.recipe.spec import BodyMask, BoxAround, DilatedForeground, RoiSpec, WholeVolume

Mask = npt.NDArray[np.bool_]


def find_region(
    spec: RoiSpec,
    grid: Grid,
    image: Volume,
    priors: Mapping[str, Prior],
    on_missing: Literal["whole_volume", "empty"],
) -> Region | None:
    """Dispatch on the kind. ``image`` holds the scan's own intensities (HU for CT)."""
    match spec:
        case WholeVolume():
            return Region.whole(grid)
        case BodyMask():
            found = body_mask(image, grid, spec.threshold)
        case DilatedForeground():
            found = dilated_foreground(priors[spec.of], grid, spec.radius_vox)
        case BoxAround():
            prior = priors[spec.of]
            names = prior.labels if spec.labels == "all" else spec.labels
            found = box_around(prior, names, grid, spec.margin_mm)
    if found is None and on_missing == "whole_volume":
        return Region.whole(grid)
    return found


def body_mask(image: Volume, grid: Grid, threshold: float) -> Region | None:
    """Voxels over ``threshold`` in the first channel: largest component, holes filled slice by slice
    (lungs and bowel gas are open to the outside in 3D where the scan ends). Roth et al. 2018, 2.2."""
    first = Volume(image.data[:1], image.grid)
    mask: Mask = (resample(first, grid).data[0] > threshold).numpy()
    if not mask.any():
        return None
    components = cc3d.connected_components(mask, connectivity=6)
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    mask = components == int(np.argmax(sizes))
    for k in range(mask.shape[2]):
        mask[:, :, k] = ndimage.binary_fill_holes(mask[:, :, k])
    return Region.of_mask(grid, torch.from_numpy(mask))


def foreground(prior: Prior, labels: tuple[str, ...] | None = None) -> Tensor:
    """Bool mask ``[I, J, K]`` on the prior's grid: where its argmax is one of ``labels`` (default any)."""
    winner = prior.probabilities.argmax(dim=0)
    if labels is None:
        return winner > 0
    wanted = torch.tensor([prior.channel(name) for name in labels], device=winner.device)
    return torch.isin(winner, wanted)


def dilated_foreground(prior: Prior, grid: Grid, radius_vox: float) -> Region | None:
    """All predicted foreground, dilated by a ball of ``radius_vox`` voxels of ``grid``.

    The dilation runs on the prior's own grid, measured in voxels of ``grid``, then moves over: for a
    coarse prior that is a hundred times less work. Roth et al. 2018, Section 2.2 (r = 3).
    """
    mask = foreground(prior).cpu()
    box = bounding_box(mask)
    if box is None:
        return None
    unit = np.array(prior.grid.spacing_mm) / np.array(grid.spacing_mm)
    reach = np.ceil(radius_vox / unit).astype(int)
    outer = box.expand((int(reach[0]), int(reach[1]), int(reach[2])))
    inside = mask[box.slices].numpy()
    padded: Mask = np.pad(inside, [(int(n), int(n)) for n in reach])
    distance = ndimage.distance_transform_edt(~padded, sampling=unit)
    near = torch.from_numpy(np.asarray(distance <= radius_vox))
    lattice = prior.grid.crop(outer)
    return Region(lattice, lattice.box, near).on(grid)


def box_around(prior: Prior, labels: tuple[str, ...], grid: Grid, margin_mm: float) -> Region | None:
    """The bounding box of ``labels`` in the prior's argmax, widened by ``margin_mm`` on every side."""
    box = bounding_box(foreground(prior, labels))
    if box is None:
        return None
    here = grid.box_of(prior.grid, box)
    margin = [math.ceil(margin_mm / s) for s in grid.spacing_mm]
    wide: Box = here.expand((margin[0], margin[1], margin[2])).intersect(grid.box)
    return None if wide.empty else Region(grid, wide)
