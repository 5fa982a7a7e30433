"""What the networks see: the scan in canonical orientation, normalised; grids; earlier answers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.window import check_within, line
from zoomseg.export.runner import resample
from zoomseg.export.runner.pipeline import Stage
from zoomseg.export.runner.region import Answer
from zoomseg.export.runner.resample import AnyArray, FloatArray

STATISTICS_VOXELS = 1_000_000
"""At most about this many voxels, evenly spread, decide a scan's percentiles and moments."""


@dataclass(frozen=True, eq=False)
class Scan:
    """In canonical orientation: ``raw [C, I, J, K]`` in the scan's unit, ``image`` normalised."""

    raw: AnyArray
    image: FloatArray
    grid: Grid
    orientation: Orientation
    """How the scan's own axes became canonical; its inverse brings labels back."""


def prepare(voxels: AnyArray, grid: Grid, intensity: Mapping[str, Any]) -> Scan:
    """A scan ``[C, I, J, K]`` made ready.

    Raises:
        ScanError: the model's window shows nothing of it.
    """
    if intensity["kind"] == "window":
        low, high = float(voxels.min()), float(voxels.max())
        check_within(intensity["lower"], intensity["upper"], low, high, "the scan")
    orientation = Orientation.to_canonical(grid)
    # Contiguous, as matrix products of anything else are copied first.
    raw = np.ascontiguousarray(np.stack([reorient(channel, orientation) for channel in voxels]))
    image = np.stack([normalised(channel, intensity) for channel in raw])
    return Scan(raw, image, orientation.grid(grid), orientation)


def reorient(data: AnyArray, orientation: Orientation) -> AnyArray:
    """Permute and flip the axes of ``[I, J, K]``; a view."""
    flips = [a for a in range(3) if orientation.flip[a]]
    return np.flip(data.transpose(orientation.order), flips)


def normalised(channel: AnyArray, intensity: Mapping[str, Any]) -> FloatArray:
    """One channel, clipped and scaled."""
    inner, gain = None, 0.0
    match intensity["kind"]:
        case "window":
            lower, upper, inner = intensity["lower"], intensity["upper"], intensity.get("inner")
            share = intensity.get("inner_share", 0.0)  # of no meaning without an inner part
            shift, scale, gain = line(lower, upper, intensity["output"], inner, share)
        case "zscore":
            lower, upper, shift, scale = _moments(channel, intensity["clip_percentiles"])
        case kind:
            raise ValueError(f"intensity of kind '{kind}'")
    # In float32 from here on: bounds that an integer type cannot hold must not be rounded to it.
    out: FloatArray = channel.astype(np.float32)
    np.clip(out, np.float32(lower), np.float32(upper), out=out)
    out -= np.float32(shift)
    out *= np.float32(scale)
    if inner is not None:
        first, last = (np.float32(end) for end in inner)
        out += (np.clip(channel.astype(np.float32), first, last) - first) * np.float32(gain)
    return out


def _moments(channel: AnyArray, percentiles: tuple[float, float]) -> tuple[float, float, float, float]:
    ordered = np.sort(_sample(channel).ravel().astype(np.float32))
    low, high = (float(ordered[round(q * (len(ordered) - 1))]) for q in percentiles)
    clipped = np.clip(ordered, low, high).astype(np.float64)
    return low, high, float(clipped.mean()), 1.0 / max(float(clipped.std(ddof=1)), 1e-6)


def _sample(channel: AnyArray) -> AnyArray:
    """A scan's voxels, or of a large one some in every part: every step-th of each axis, from either end."""
    if channel.size <= STATISTICS_VOXELS:
        return channel
    step = math.ceil((8 * channel.size / STATISTICS_VOXELS) ** (1 / 3))
    for axis, size in enumerate(channel.shape):
        index = np.arange(0, size, step)
        channel = channel.take(np.unique(np.concatenate([index, size - 1 - index])), axis=axis)
    return channel


def stage_grid(stage: Stage, scan: Grid, box: Box) -> Grid:
    """The stage's grid over the scan; for a fixed shape, over ``box`` of the scan's grid."""
    match stage.grid["kind"]:
        case "downsample":
            return scan.downsampled(tuple(stage.grid["factor"]))
        case "spacing":
            return scan.with_spacing(tuple(stage.grid["mm"]))
        case "shape":
            return scan.crop(box).with_shape(tuple(stage.grid["shape"]))
        case kind:
            raise ValueError(f"grid of kind '{kind}'")


def assemble(stage: Stage, scan: Scan, answers: Mapping[str, Answer], grid: Grid) -> FloatArray:
    """All input channels ``[C, *grid.shape]`` of a stage on ``grid``."""
    # One channel after the other, so that of the image only what is needed is ever copied.
    parts = [resample.linear(scan.image[c : c + 1], scan.grid, grid) for c in stage.channels]
    for of, labels in stage.priors:
        answer = answers[of]
        parts.append(resample.linear(answer.probabilities[answer.channels(labels)], answer.grid, grid))
    return np.concatenate(parts)
