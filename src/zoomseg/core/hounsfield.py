"""Detect Hounsfield units by the distribution of intensities. Headers of NIfTI, NRRD and MetaImage do not
state the unit, and a CT that is normalised as another modality loses its absolute scale.

Water is 0, air -1000 (Hounsfield 1973, doi:10.1259/0007-1285-46-552-1016); muscle, blood and organs are
between 0 and 100, with contrast medium up to 150, fat is at -100. Windows to which data sets are clipped
(-125 to 275, -160 to 240, -200 to 300, -1024 to ...) keep soft tissue, and fat and air at or near their lower
end. MR, PET and cone-beam CT in other units have no negative values, or only the few that interpolation
creates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LOWEST, HIGHEST = -100.0, 100.0
"""CT has values at least this low, and at least this high."""
DARK, DARK_SHARE = -80.0, 0.05
"""Air, lung and fat are below this value, and make up at least this share of a scan."""
SOFT, SOFT_SHARE = (-20.0, 150.0), 0.5
"""Soft tissue is at least this share of the voxels that are not air, lung or fat; the others are bone and
noise."""
PLANES = 32
"""Number of planes that are examined."""


def looks_like_hounsfield(values: npt.NDArray[Any]) -> bool:
    """Whether the intensities ``[I, J, K]`` of a scan are distributed like those of CT."""
    sample = values[:: max(1, values.shape[0] // PLANES)]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0 or sample.min() > LOWEST or sample.max() < HIGHEST:
        return False
    bright = sample[sample > DARK]
    soft = np.count_nonzero((bright >= SOFT[0]) & (bright <= SOFT[1]))
    return bool(bright.size <= (1 - DARK_SHARE) * sample.size and soft >= SOFT_SHARE * bright.size > 0)
