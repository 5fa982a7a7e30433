"""The residual FCN of DLTK (Pawlowski et al. 2017), as Valindria et al. 2018 use it.

Written after ``dltk/networks/segmentation/fcn.py``, ``dltk/core/residual_unit.py`` and
``dltk/core/upsample.py`` of the released toolkit (0.2.1). Like there, convolutions have no bias, residual
units clip at 0 and 6 (ReLU6), and scale 0 is the first convolution alone; the network of release 0.1.1
(``dltk/models/segmentation/fcn.py``) had leaky ReLUs of slope 0.1 instead. Other than there: weights are
He-normal, and linear upsampling repeats the border (there it fades towards zero), so that what is constant
stays so.

Shape suffixes: B batch, C channels (L of the lower scale, S of the skip), I J K voxels.
"""

from __future__ import annotations

import itertools

import torch.nn.functional as F
from torch import Tensor, nn

from zoomseg.core.geometry import Index3
from zoomseg.networks.blocks import initialise, upsample
from zoomseg.recipe.spec import ResidualFCNActivation

SLOPES: dict[ResidualFCNActivation, float] = {"relu6": 0.0, "leaky_relu": 0.1}
"""Slope of the negative side."""


def _activation(name: ResidualFCNActivation) -> nn.Module:
    match name:
        case "relu6":
            return nn.ReLU6(inplace=True)
        case "leaky_relu":
            return nn.LeakyReLU(SLOPES[name], inplace=True)


def _pre_activated(
    channels_in: int, channels_out: int, activation: ResidualFCNActivation, stride: Index3 = (1, 1, 1)
) -> nn.Sequential:
    """Batch norm, activation, 3x3x3 convolution; a strided axis has a kernel of twice the stride, so that all
    voxels have equal weight, and becomes shorter by ``stride``."""
    k_i, k_j, k_k = (2 * s if s > 1 else 3 for s in stride)
    p_i, p_j, p_k = ((s + 1) // 2 for s in stride)
    return nn.Sequential(
        nn.BatchNorm3d(channels_in),
        _activation(activation),
        nn.Conv3d(channels_in, channels_out, (k_i, k_j, k_k), stride, (p_i, p_j, p_k), bias=False),
    )


class ResidualUnit(nn.Module):
    """Two pre-activated convolutions (He et al. 2016) added to the input.

    The input is max-pooled by the stride; missing channels are zeros, before and after its own; if it has
    more channels than the output, a 3x3x3 convolution projects it.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        activation: ResidualFCNActivation,
        stride: Index3 = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.first = _pre_activated(channels_in, channels_out, activation, stride)
        self.second = _pre_activated(channels_out, channels_out, activation)
        self.pool = nn.MaxPool3d(stride, stride)
        lacking = max(0, channels_out - channels_in)
        self.zeros = (lacking // 2, lacking - lacking // 2)
        self.project = (
            nn.Conv3d(channels_in, channels_out, 3, padding=1, bias=False)
            if channels_in > channels_out
            else nn.Identity()
        )

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        skip = F.pad(self.project(self.pool(x_BCIJK)), (0, 0, 0, 0, 0, 0, *self.zeros))
        out: Tensor = self.second(self.first(x_BCIJK)) + skip
        return out


class UpScore(nn.Module):
    """The lower scale's scores, upsampled, plus the skip projected to scores (Long et al. 2015).

    The lower scale is projected to ``classes`` channels unless it has that number.
    """

    def __init__(self, channels_low: int, channels_skip: int, classes: int, stride: Index3) -> None:
        super().__init__()
        self.low = (
            nn.Identity() if channels_low == classes else nn.Conv3d(channels_low, classes, 1, bias=False)
        )
        self.skip = nn.Sequential(nn.Conv3d(channels_skip, classes, 1, bias=False), nn.BatchNorm3d(classes))
        self.stride = stride

    def forward(self, low_BLIJK: Tensor, skip_BSIJK: Tensor) -> Tensor:
        out: Tensor = upsample(self.low(low_BLIJK), self.stride) + self.skip(skip_BSIJK)
        return out


class ResidualFCN(nn.Module):
    """First convolution, ``units`` residual units per lower scale (the first of them strided), then scores
    added up from the lowest scale to the highest, and a 1x1x1 convolution of these.

    The arguments are those of ``recipe.spec.ResidualFCN``. With a stride at scale 0, logits are upsampled
    to the input's resolution (DLTK leaves them small).
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: tuple[int, ...],
        strides: tuple[Index3, ...],
        units: int,
        activation: ResidualFCNActivation,
    ) -> None:
        super().__init__()
        self.first = nn.Conv3d(in_channels, channels[0], 3, strides[0], 1, bias=False)
        self.first_stride = strides[0]
        self.encoder = nn.ModuleList()
        for (before, after), stride in zip(itertools.pairwise(channels), strides[1:], strict=True):
            rest = (ResidualUnit(after, after, activation) for _ in range(units - 1))
            self.encoder.append(nn.Sequential(ResidualUnit(before, after, activation, stride), *rest))
        below = (*(classes for _ in channels[2:]), channels[-1])
        self.upscore = nn.ModuleList(
            UpScore(low, skip, classes, stride)
            for low, skip, stride in zip(below, channels[:-1], strides[1:], strict=True)
        )
        self.last = nn.Conv3d(classes, classes, 1, bias=False)
        initialise(self, slope=SLOPES[activation])

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[B, classes, I, J, K]`` in a 1-tuple."""
        x = self.first(x_BCIJK)
        skips: list[Tensor] = []
        for scale in self.encoder:
            skips.append(x)
            x = scale(x)
        for level in reversed(range(len(self.upscore))):
            x = self.upscore[level](x, skips[level])
        return (upsample(self.last(x), self.first_stride),)
