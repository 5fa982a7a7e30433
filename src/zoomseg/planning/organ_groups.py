"""Groups of neighbouring organs. If some organs are small and all lie in a few places far from each other, a
box around each group costs less than one region around all, and can be sampled more finely."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from zoomseg.core.geometry import Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.planning.fingerprint import Fingerprint, OrganStatistics, as_vector
from zoomseg.planning.rationale import voxels_of

SMALL_VOXELS = 1000
"""An organ with fewer voxels on the grid of the single region is small: ten voxels per side."""
FAR_SHARE = 0.25
"""Groups are far apart if their boxes together take at most this share of a scan."""
MAX_GROUPS = 6
"""Each group has a network of its own, and these share the time of the training."""


@dataclass(frozen=True)
class Group:
    """Organs whose boxes with a margin overlap, and their common box: millimetres from the corner of the
    median scan, axes in RAS order."""

    organs: tuple[str, ...]
    start_mm: Vector3
    stop_mm: Vector3

    @property
    def extent_mm(self) -> Vector3:
        return as_vector(np.subtract(self.stop_mm, self.start_mm))

    def meets(self, other: Group) -> bool:
        sides = zip(self.start_mm, self.stop_mm, other.start_mm, other.stop_mm, strict=True)
        return all(a < d and c < b for a, b, c, d in sides)

    def joined(self, other: Group) -> Group:
        start = as_vector(np.minimum(self.start_mm, other.start_mm))
        return Group(self.organs + other.organs, start, as_vector(np.maximum(self.stop_mm, other.stop_mm)))


def groups_of(data: Fingerprint, margin_mm: float) -> tuple[Group, ...]:
    """All organs that were found, in groups; the first group contains the first organ."""
    groups: list[Group] = []
    for organ in data.organs:
        found = _alone(organ, data, margin_mm)
        while meeting := [group for group in groups if group.meets(found)]:
            for group in meeting:
                groups.remove(group)
                found = group.joined(found)
        groups.append(found)
    order = {organ.name: n for n, organ in enumerate(data.organs)}
    sorted_ = [Group(tuple(sorted(g.organs, key=order.__getitem__)), g.start_mm, g.stop_mm) for g in groups]
    return tuple(sorted(sorted_, key=lambda group: order[group.organs[0]]))


def _alone(organ: OrganStatistics, data: Fingerprint, margin_mm: float) -> Group:
    extent = np.array(data.extent_mm)
    centre = np.array(organ.centre) * extent
    reach = np.array(organ.extent_mm) / 2 + margin_mm
    start, stop = np.maximum(centre - reach, 0), np.minimum(centre + reach, extent)
    return Group((organ.name,), as_vector(start), as_vector(stop))


def why_not(
    groups: Sequence[Group], data: Fingerprint, schema: LabelSchema, one_region_mm: Vector3
) -> str | None:
    """The reason why a single region is better than a box per group; None if it is not."""
    if len(data.organs) < len(schema.names):
        return "some organs were not found, so their position is unknown"
    if len(groups) < 2:
        return "no organ lies far from all others"
    if len(groups) > MAX_GROUPS:
        return (
            f"{len(groups)} groups of organs lie apart, and at most {MAX_GROUPS} get a network each: more "
            "would be trained too briefly"
        )
    share = sum(math.prod(group.extent_mm) for group in groups) / math.prod(data.extent_mm)
    if share > FAR_SHARE:
        return f"boxes around {len(groups)} groups of organs would hold {share:.0%} of a scan"
    smallest = min(data.organs, key=lambda organ: organ.volume_ml)
    if voxels_of(smallest, one_region_mm) >= SMALL_VOXELS:
        return f"also the smallest organ, {smallest.name}, has {SMALL_VOXELS:,} voxels and more on its grid"
    if np.allclose(one_region_mm, data.spacing_mm, rtol=0.1):
        return "its grid is as fine as the data already"
    return None
