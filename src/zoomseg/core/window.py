"""How a window of intensities becomes what networks see. Plain numbers alone: exported models carry it."""

from __future__ import annotations

from collections.abc import Sequence

from zoomseg.core.errors import ScanError


def check_within(lower: float, upper: float, lowest: float, highest: float, name: str) -> None:
    """Refuse a scan of which a window shows nothing: air alone, or numbers of another unit. A network sees it
    as one grey, in which it finds what it likes.

    Raises:
        ScanError: the scan's ``lowest`` and ``highest`` intensity lie on one side of the window.
    """
    if lowest < upper and highest > lower:
        return
    raise ScanError(
        f"no voxel of {name} lies inside the window that the model sees, {lower:g} to {upper:g}: they run "
        f"from {lowest:g} to {highest:g}; is there a body in the scan, and is its unit the model's (CT: HU)?"
    )


def line(
    lower: float,
    upper: float,
    output: Sequence[float],
    inner: Sequence[float] | None,
    inner_share: float,
) -> tuple[float, float, float]:
    """Shift, scale and gain, so that ``(x - shift) * scale``, and ``gain`` for each of the intensities
    ``inner`` that lie below x, lead from ``lower`` to ``upper`` through ``output``.

    Args:
        inner: the part of the window that gets ``inner_share`` (above 0, below 1) of the output; None: none
            does, and the gain is zero.
    """
    height, whole = output[1] - output[0], upper - lower
    scale, gain = height / whole, 0.0
    if inner is not None:
        width = inner[1] - inner[0]
        scale = (1 - inner_share) * height / (whole - width)
        gain = inner_share * height / width - scale
    return lower - output[0] / scale, scale, gain
