"""Comparison of a scan with a model's training scans: modality, intensities, and the size of the body.
Networks find organs in any image; a scan that is plainly something else is refused, one that is merely unlike
is segmented with a warning and less confidence.

Intensities are compared as distributions: the distance of two scans is the first Wasserstein distance,
computed as the mean difference of their quantiles. The usual distance of scans of one kind is estimated in
training: the largest distance of a case to its nearest neighbour.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from zoomseg.anatomy.positions import Span, TypicalPosition
from zoomseg.core.errors import ScanError
from zoomseg.core.geometry import Grid, Orientation

SAMPLED = 64
"""Maximum number of evenly spread voxels along each axis that represent a scan."""

MIN_SPREAD = 0.05
"""Relative to a window's width, and ``MIN_SPREAD_SD`` standard deviations without a window: minimum spread,
as few training cases may be closer together than scans of their kind usually are."""
MIN_SPREAD_SD = 0.15

UNLIKE = 1.5
OTHER = 3.0
"""Multiples of the training cases' spread: from the former on there is a warning, from the latter on the scan
is refused."""

OTHER_SECTION = 1.25
"""If a body is thinner or thicker by this factor than any in training, there is a warning."""

DARK = 0.25
"""Relative to a window's width: maximum distance by which the darkest voxels of a scan in the model's unit
lie above those of every training case. They are air or fat, which every CT shows."""

NEGATIVE = 0.1
"""Relative to its brightest voxels: a scan whose values are no farther below zero was merely interpolated."""

WAY_OUT = (
    "use a model that was trained on such scans ('zoomseg predict --any-scan', or any_scan=True in Python, "
    "segments it nevertheless)"
)

MAX_CASES = 64
"""Maximum number of cases whose intensities are stored."""

QUANTILES = 19
"""From 5 to 95 %."""

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Window = tuple[float, float]


@dataclass(frozen=True)
class TrainingDomain:
    """Common properties of a model's training cases: only numbers over cases, no image and no name.

    ``intensities`` has one row for every case examined: the 5, 10, ... 95 % quantiles of the body's voxels in
    the first channel, clipped to the recipe's window, or in standard deviations from the scan's mean if the
    recipe has none.

    Raises:
        ValueError: a range that ends before it begins, or rows of another length.
    """

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "allow_inf_nan": False}

    modality: str | None
    """DICOM's term, if the channels' names state it."""
    intensities: tuple[tuple[float, ...], ...]
    darkest: Span
    """Lowest and highest of the cases' 0.5 % quantiles of all voxels, in the scans' own unit; clipped to the
    window if there is one."""
    cross_section_cm2: Span
    """Smallest and largest area of the body in the cases' axial slices, by the median over a case's
    slices."""
    organs: dict[str, TypicalPosition]

    def __post_init__(self) -> None:
        if not 1 <= len(self.intensities) <= MAX_CASES:
            raise ValueError(f"intensities of 1 to {MAX_CASES} cases are needed, got {len(self.intensities)}")
        if any(len(row) != QUANTILES for row in self.intensities):
            raise ValueError(f"every case needs {QUANTILES} quantiles")
        spans = [self.darkest, self.cross_section_cm2]
        for organ in self.organs.values():
            spans += [organ.volume_ml] if organ.volume_ml else []
            ends = (span for offsets in organ.offsets_mm.values() for span in offsets)
            spans += [(low, high) for low, high in ends if low is not None and high is not None]
        if any(low > high for low, high in spans):
            raise ValueError("a range ends before it begins")


@dataclass(frozen=True)
class DomainSimilarity:
    """Similarity of a scan to the training cases. ``confidence_factor`` (0 to 1) is a factor on its organs'
    confidence."""

    warnings: tuple[str, ...] = ()
    confidence_factor: float = 1.0


@dataclass(frozen=True)
class Features:
    """The compared properties of a scan, as in ``TrainingDomain``."""

    quantiles: FloatArray
    darkest: float
    brightest: float
    cross_section_cm2: float


def thinned(channel: Array, grid: Grid) -> tuple[npt.NDArray[np.float32], float]:
    """A subsample of a channel ``[I, J, K]``, with RAS+ axes; and the area of one of its voxels in an axial
    plane, cm2."""
    orientation = Orientation.to_canonical(grid)
    steps = [max(1, math.ceil(n / SAMPLED)) for n in channel.shape]
    some = channel[tuple(slice(step // 2, None, step) for step in steps)]
    own = np.array(orientation.grid(grid).spacing_mm) * [steps[axis] for axis in orientation.order]
    return some.transpose(orientation.order).astype(np.float32), float(own[0] * own[1]) / 100


def features(voxels: npt.NDArray[np.float32], cell_cm2: float, window: Window | None) -> Features:
    """The properties of a subsampled scan, for a model that clips to ``window``, or scales by the scan's own
    moments (None)."""
    darkest, brightest = (float(v) for v in np.quantile(voxels, (0.005, 0.995)))
    if window is not None:
        lower, upper = window
        body = voxels > lower
        values = np.minimum(voxels[body], upper)
        darkest = max(darkest, lower)
    else:
        clipped = np.clip(voxels, darkest, brightest)
        values = ((clipped - clipped.mean()) / max(float(clipped.std()), 1e-6)).ravel()
        body = clipped > clipped.mean()
    levels = np.arange(1, QUANTILES + 1) / (QUANTILES + 1)
    quantiles = np.quantile(values, levels) if values.size else np.full(QUANTILES, darkest)
    areas = body.sum(axis=(0, 1))
    section = float(np.median(areas[areas > 0])) if (areas > 0).any() else 0.0
    return Features(quantiles.astype(np.float64), darkest, brightest, section * cell_cm2)


def compare(
    domain: TrainingDomain,
    channel: Array,
    grid: Grid,
    window: Window | None,
    modality: str | None,
    any_scan: bool = False,
) -> DomainSimilarity:
    """The similarity of a scan to the training cases.

    Args:
        channel: its first one, ``[I, J, K]``.
        window: of the model; None: it has none.
        modality: DICOM's term for it, if it is known.
        any_scan: whether scans that would be refused cause a warning instead, with a factor
            of zero.

    Raises:
        ScanError: it is plainly something else; the message states the reason.
    """
    seen = features(*thinned(channel, grid), window)
    distance, usual = _distance(domain, seen, window)
    other = (
        _other_modality(domain, modality)
        or _other_unit(domain, seen, window)
        or _other_intensities(distance / usual)
    )
    if other is not None and any_scan:
        return DomainSimilarity((f"clearly unlike the training scans: {other[0]}",), confidence_factor=0.0)
    if other is not None:
        raise ScanError("; ".join(other))
    found = [_unlike_intensities(distance / usual), _unlike_section(domain, seen)]
    warned = [(text, factor) for text, factor in found if text]
    return DomainSimilarity(tuple(text for text, _ in warned), math.prod(factor for _, factor in warned))


def _other_modality(domain: TrainingDomain, modality: str | None) -> tuple[str, str] | None:
    """The difference in modality, and what to do."""
    if domain.modality is None or modality in (None, "", domain.modality):
        return None
    return f"the scan is of modality {modality}, the model was trained on {domain.modality}", WAY_OUT


def _other_unit(domain: TrainingDomain, seen: Features, window: Window | None) -> tuple[str, str] | None:
    """The difference in unit: fat and air are darker than anything else in every CT; nothing is below zero in
    an MR."""
    if window is not None and seen.darkest > domain.darkest[1] + DARK * (window[1] - window[0]):
        what = (
            "the scan is not in the unit of the training scans: its darkest voxels are "
            f"at {seen.darkest:.4g}, theirs at {domain.darkest[1]:.4g} at most"
        )
        return what, f"convert it{' to Hounsfield units' if domain.modality == 'CT' else ''}, or {WAY_OUT}"
    below_zero = seen.darkest < -NEGATIVE * max(seen.brightest, 0.0)
    if window is None and domain.darkest[0] >= 0 and below_zero:
        what = (
            f"the scan has values far below zero, down to {seen.darkest:.4g}, unlike all training scans, "
            "so it may be CT"
        )
        return what, WAY_OUT
    return None


def _other_intensities(ratio: float) -> tuple[str, str] | None:
    if ratio <= OTHER:
        return None
    what = (
        "the scan's intensities differ from those of the training scans "
        f"({ratio:.1f} times as far away as these are from each other)"
    )
    return what, f"check its modality and unit, or {WAY_OUT}"


def _distance(domain: TrainingDomain, seen: Features, window: Window | None) -> tuple[float, float]:
    """The distance of a scan to the nearest training case, and the usual one for scans of their kind."""
    known = np.array(domain.intensities)
    apart = np.abs(known[:, None] - known[None]).mean(axis=2)
    np.fill_diagonal(apart, np.inf)
    least = MIN_SPREAD_SD if window is None else MIN_SPREAD * (window[1] - window[0])
    usual = max(float(apart.min(axis=1).max()) if len(known) > 1 else 0.0, least)
    return float(np.abs(known - seen.quantiles).mean(axis=1).min()), usual


def _unlike_intensities(ratio: float) -> tuple[str, float]:
    if ratio <= UNLIKE:
        return "", 1.0
    return (
        f"its intensities are unlike those of the training scans ({ratio:.1f} times as far away as these are "
        "from each other)",
        UNLIKE / ratio,
    )


def _unlike_section(domain: TrainingDomain, seen: Features) -> tuple[str, float]:
    low, high = domain.cross_section_cm2
    area = seen.cross_section_cm2
    ratio = max(low / max(area, 1e-3), area / max(high, 1e-3))
    if ratio <= OTHER_SECTION:
        return "", 1.0
    return (
        f"the body in it measures {area:.0f} cm2 across, in the training scans {low:.0f} to {high:.0f}: is "
        "it the same part of the body, of a patient of the same size, and a scan of all of it?",
        1 / ratio,
    )
