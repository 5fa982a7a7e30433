"""Connected components of masks."""

from __future__ import annotations

from typing import Literal

import cc3d
import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]


def largest_component(mask: Mask, connectivity: Literal[6, 18, 26] = 26) -> Mask:
    """The largest connected component of ``mask [I, J, K]``; of equally large ones the first in memory.
    Nothing stays nothing."""
    components = cc3d.connected_components(mask, connectivity=connectivity)
    sizes = cc3d.statistics(components)["voxel_counts"].astype(np.int64)
    sizes[0] = 0  # what is not set
    largest: Mask = components == int(np.argmax(sizes)) if sizes.any() else np.zeros_like(mask)
    return largest
