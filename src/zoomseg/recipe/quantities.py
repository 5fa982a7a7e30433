"""The numbers of a recipe: one type per kind of quantity, with its range.

A recipe may come from anywhere: a number outside of these ranges is a typing error or an attack, and is
refused when the file is read. Each limit lies well beyond published values and well before arithmetic
overflows or a loop does not end. Whether several numbers together fit a machine (channels times channels, a
patch times a batch) is checked where the machine is known (``planning.network_sizes``).
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, Field

from zoomseg.core.geometry import ENDS

# --- space ----------------------------------------------------------------------------------------

Voxels = Annotated[int, Field(ge=1, le=4096)]
"""A side of a tile, a patch or a grid. The largest detectors have 4096 pixels per side."""
Shape = tuple[Voxels, Voxels, Voxels]

Anisotropy = Annotated[float, Field(ge=1, le=1000)]
"""Ratio of the longest side of a voxel to its shortest."""

VoxelCount = Annotated[int, Field(ge=1, le=10**11)]
"""Of a whole scan: micro-CT reaches about 4096^3 voxels, 7e10."""

SpacingMm = Annotated[float, Field(ge=1e-4, le=1000)]
"""From a hundred nanometres, which no X-ray tube resolves, to a metre."""
Spacing = tuple[SpacingMm, SpacingMm, SpacingMm]
OwnSpacing = tuple[SpacingMm | None, SpacingMm | None, SpacingMm | None]
"""None: the scan's own."""

Factor = Annotated[float, Field(ge=0.01, le=1000)]
"""Of downsampling; below 1 a stage has more voxels than the scan."""

LengthMm = Annotated[float, Field(ge=0, le=10_000)]
"""No field of view is longer than ten metres."""

LengthVox = Annotated[float, Field(ge=0, le=100)]
"""A radius or shift, in voxels of a stage; the cost grows with it."""

PitchVox = Annotated[float, Field(ge=1, le=4096)]
"""Between control points: closer than a voxel they would be useless, and more numerous than voxels."""

NeighbourhoodVox = Annotated[int, Field(ge=0, le=4)]
"""Radius of a cube of voxels that are compared one by one: 4 means 729 voxels, for every voxel."""

AngleDeg = Annotated[float, Field(ge=0, le=180)]

Overlap = Annotated[float, Field(ge=0, le=0.9)]
"""With the same along all axes, each voxel is computed 1 / (1 - overlap)^3 times: a thousand times at 0.9."""

# --- networks -------------------------------------------------------------------------------------

MAX_LEVELS = 12
"""4096 voxels can be halved twelve times."""

Channels = Annotated[int, Field(ge=1, le=4096)]
"""The widest published segmentation networks have 1 to 2 thousand at their lowest level."""

Stride = Annotated[int, Field(ge=1, le=8)]
"""Networks use two; a stem may use larger steps."""
Strides = tuple[Stride, Stride, Stride]

Kernel = Annotated[int, Field(ge=1, le=31)]
"""31 is the largest published (RepLKNet, in two dimensions)."""
Kernels = tuple[Kernel, Kernel, Kernel]

Blocks = Annotated[int, Field(ge=1, le=64)]
"""Per level; ResNet-152 has 36."""

Dilation = Annotated[int, Field(ge=1, le=256)]
"""Of a convolution at the lowest level, where no grid has more voxels per side."""

ChannelIndex = Annotated[int, Field(ge=0, le=999)]
"""Index of a channel of a scan."""

# --- training -------------------------------------------------------------------------------------

Batch = Annotated[int, Field(ge=1, le=4096)]
"""Number of patches; networks for whole photographs have been trained with up to some thousands."""

Iterations = Annotated[int, Field(ge=1, le=10**9)]
"""At a millisecond a step, 12 days of the fastest steps there are."""

LearningRate = Annotated[float, Field(gt=0, le=10)]
"""1 is the largest in use, of plain gradient descent."""

Decay = Annotated[float, Field(ge=0, lt=1)]
"""Of a running mean or a momentum, per step: with 1 the mean would never change, and the momentum never
fall."""

Weight = Annotated[float, Field(ge=0, le=1000)]
"""Of one part of a loss relative to the others."""

WeightDecay = Annotated[float, Field(ge=0, le=10)]

GradientNorm = Annotated[float, Field(ge=0, le=1e9)]
"""Of a gradient."""

Strength = Annotated[float, Field(ge=0, le=10)]
"""Of a change of intensity, in standard deviations of the image, or relative to its contrast."""

Ratio = Annotated[float, Field(ge=0.05, le=20)]
"""Of a size or an exponent to the unchanged one: beyond, nothing in a patch would be recognisable."""

Pair = TypeVar("Pair", bound=tuple[float, float])


def _ascending(pair: Pair) -> Pair:
    if not pair[0] <= pair[1]:
        raise ValueError(f"the first ({pair[0]:g}) must not be above the second ({pair[1]:g})")
    return pair


Ratios = Annotated[tuple[Ratio, Ratio], AfterValidator(_ascending)]
"""From, to."""

# --- intensities, shares --------------------------------------------------------------------------

Intensity = Annotated[float, Field(ge=-1e9, le=1e9)]
"""In a scan's own unit: PET in becquerels per millilitre reaches some 1e6, raw counts 2^32."""

NormalisedIntensity = Annotated[float, Field(ge=-1000, le=1000)]
"""What a network reads: about -1 to 1."""

Share = Annotated[float, Field(ge=0, le=1)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
"""Share of cases in which an input is hidden: with 1 it would never be seen."""
InnerShare = Annotated[float, Field(ge=0.01, le=0.99)]
"""Of a window's output; the intensities outside need a part, too."""
PositiveShare = Annotated[float, Field(ge=1e-3, le=1)]
"""Of a whole that is divided by it."""

# --- names ----------------------------------------------------------------------------------------

MAX_NAME = 200
"""Names become parts of file names, which may have 255 bytes."""
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=MAX_NAME)]


def _known_orientation(name: str) -> str:
    one_of_each = len(name) == 3 and all(sum(letter in ends for letter in name) == 1 for ends in ENDS)
    if name not in ("canonical", "stored") and not one_of_each:
        raise ValueError(
            "expected canonical, stored, or the directions of i, j and k, such as LAS: one each of R or L, A "
            "or P, and S or I"
        )
    return name


ScanOrientation = Annotated[str, Field(max_length=20), AfterValidator(_known_orientation)]

LabelName = Annotated[str, Field(max_length=1000)]
Text = Annotated[str, Field(max_length=10_000)]
"""For people."""
