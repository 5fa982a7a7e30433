"""Whether numbers are Hounsfield units, by how those of a patient are spread. No header of NIfTI, NRRD or
MetaImage says so, and what is normalised as something else loses the one unit that it had.

Water is 0, air -1000 (Hounsfield 1973, doi:10.1259/0007-1285-46-552-1016); muscle, blood and organs lie from
0 to 100, with contrast medium to 150, fat at -100. Windows that data sets are cut to (-125 to 275, -160 to
240, -200 to 300, -1024 to ...) keep soft tissue, and fat and air at or near their lower end. MR, PET and
cone-beam CT in other units have no negative numbers, or few: those that interpolation makes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

LOWEST, HIGHEST = -100.0, 100.0
"""CT has numbers so low, and so high."""
DARK, DARK_SHARE = -80.0, 0.05
"""Air, lung and fat lie below that, and are this share of a scan or more."""
SOFT, SOFT_SHARE = (-20.0, 150.0), 0.5
"""Of what is no air, lung or fat, soft tissue is this share or more; the rest is bone and noise."""
PLANES = 32
"""So many planes are looked at."""


def looks_like_hounsfield(values: npt.NDArray[Any]) -> bool:
    """Whether the intensities ``[I, J, K]`` of a scan are spread as those of CT are."""
    sample = values[:: max(1, values.shape[0] // PLANES)]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0 or sample.min() > LOWEST or sample.max() < HIGHEST:
        return False
    bright = sample[sample > DARK]
    soft = np.count_nonzero((bright >= SOFT[0]) & (bright <= SOFT[1]))
    return bool(bright.size <= (1 - DARK_SHARE) * sample.size and soft >= SOFT_SHARE * bright.size > 0)
