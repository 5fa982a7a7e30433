"""Residual U-Net with atrous spatial pyramid pooling at the bottom (FLARE 2022, Infervision).

The paper gives: four down-sampling and four up-sampling layers, residual blocks, ASPP, He-normal weights,
15.17 M parameters, 93.43 G multiply-adds at 128^3 and 182.49 G at 160^3. It gives neither channels nor
blocks. Its authors' released backbone does: a first pair of convolutions with stride 2, then levels of three
residual blocks, 32 to 256 channels, trilinear upsampling, batch norm and ReLU, no convolution but the last
1x1x1 at the input's own resolution. That network has the paper's figures (15.18 M, 93.2 G, 182.0 G before
the last layer), but WITHOUT its ASPP, which the released configuration leaves out.

Ours, to have ASPP and stay within 5 % of the paper's parameters: its dilated convolutions are separable,
depthwise and then pointwise, as in the work that the paper cites for ASPP (Chen et al. 2018). Dilations 2, 4
and 8 are the released code's. The branch of the global mean has no batch norm: one voxel per case has no
statistics in a batch of one. Skips of strided residual blocks are averaged before their projection (see
``ResidualBlock``), which changes no count.

Shape suffixes: B batch, C channels, I J K voxels.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from zoomseg.core.geometry import Index3
from zoomseg.networks.blocks import (
    ConvNormAct,
    ResidualBlock,
    TwoConvolutions,
    concatenate,
    initialise,
    upsample,
)

BLOCKS = 3
"""Residual blocks per level."""
KERNEL: Index3 = (3, 3, 3)
SAME: Index3 = (1, 1, 1)
HALF: Index3 = (2, 2, 2)
POINT: Index3 = (1, 1, 1)


class ASPP(nn.Module):
    """A 1x1x1 convolution, one separable 3x3x3 convolution per dilation and the global mean in parallel,
    joined by a 1x1x1 convolution. The number of channels does not change."""

    def __init__(self, channels: int, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.point = _pointwise(channels, channels)
        self.dilated = nn.ModuleList(_separable(channels, dilation) for dilation in dilations)
        self.mean = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Conv3d(channels, channels, 1), nn.ReLU())
        self.join = _pointwise((2 + len(dilations)) * channels, channels)

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        branches = [self.point(x_BCIJK), *(branch(x_BCIJK) for branch in self.dilated)]
        mean = self.mean(x_BCIJK).expand_as(branches[0])
        out: Tensor = self.join(torch.cat((*branches, mean), dim=1))
        return out


class ResUNetASPP(nn.Module):
    """Every level, including the first, halves the resolution: ``channels`` of four levels, the lowest last.

    Decoder levels upsample, concatenate the skip and convolve twice; the last layer's logits are upsampled
    from half to full resolution. (Upsampling before the projection would give the same logits, at eight times
    the multiply-adds of that layer.)
    """

    def __init__(
        self, in_channels: int, classes: int, channels: tuple[int, ...], dilations: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.stem = TwoConvolutions(in_channels, channels[0], channels[0], KERNEL, SAME, HALF)
        self.encoder = nn.ModuleList(
            _residual_level(before, after) for before, after in itertools.pairwise(channels)
        )
        self.aspp = ASPP(channels[-1], dilations)
        self.decoder = nn.ModuleList(
            TwoConvolutions(c + below, c, c, KERNEL, SAME) for c, below in itertools.pairwise(channels)
        )
        self.last = nn.Conv3d(channels[0], classes, 1)
        initialise(self, slope=0.0)

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[B, classes, I, J, K]`` in a 1-tuple."""
        x = self.stem(x_BCIJK)
        skips: list[Tensor] = []
        for level in self.encoder:
            skips.append(x)
            x = level(x)
        x = self.aspp(x)
        for level, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = level(concatenate(upsample(x, HALF), skip))
        return (upsample(self.last(x), HALF),)


def _residual_level(channels_in: int, channels_out: int) -> nn.Sequential:
    """Residual blocks with batch norm and ReLU, the first strided."""
    first = ResidualBlock(channels_in, channels_out, KERNEL, HALF, nn.BatchNorm3d, 0.0)
    rest = (
        ResidualBlock(channels_out, channels_out, KERNEL, norm=nn.BatchNorm3d, slope=0.0)
        for _ in range(BLOCKS - 1)
    )
    return nn.Sequential(first, *rest)


def _pointwise(channels_in: int, channels_out: int) -> nn.Module:
    return ConvNormAct(channels_in, channels_out, POINT, norm=nn.BatchNorm3d, slope=0.0)


def _separable(channels: int, dilation: int) -> nn.Sequential:
    """Every channel is convolved separately with ``dilation``, then all are joined voxel by voxel."""
    depthwise = nn.Conv3d(
        channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
    )
    return nn.Sequential(
        depthwise, nn.BatchNorm3d(channels), nn.ReLU(inplace=True), _pointwise(channels, channels)
    )
