"""Parts that the networks share.

Shape suffixes: B batch, C channels (S of the skip), I J K voxels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoomseg.core.geometry import Index3

LEAKY_SLOPE = 0.01


def same_padding(kernel: Index3) -> Index3:
    """Zeros on each side that keep the shape under an odd kernel."""
    return (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)


def crop_margin(x_BCIJK: Tensor, margin_vox: int) -> Tensor:
    """Take ``margin_vox`` voxels off each of the six sides."""
    m = margin_vox
    return x_BCIJK if m == 0 else x_BCIJK[:, :, m:-m, m:-m, m:-m]


class ConvNormAct(nn.Sequential):
    """Same-padded convolution, instance norm, leaky ReLU (left out where ``activation`` is False)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Index3,
        stride: Index3 = (1, 1, 1),
        activation: bool = True,
    ) -> None:
        # The norm subtracts the mean, so a bias of the convolution would do nothing.
        conv = nn.Conv3d(channels_in, channels_out, kernel, stride, same_padding(kernel), bias=False)
        layers: list[nn.Module] = [conv, nn.InstanceNorm3d(channels_out, affine=True)]
        if activation:
            layers.append(nn.LeakyReLU(LEAKY_SLOPE, inplace=True))
        super().__init__(*layers)


class ResidualBlock(nn.Module):
    """conv-norm-lrelu-conv-norm, added to the input, lrelu.

    Where the shape changes, the input is averaged over the stride and projected by a 1x1x1
    convolution with norm, so that no voxel of it is skipped.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: Index3, stride: Index3 = (1, 1, 1)
    ) -> None:
        super().__init__()
        self.first = ConvNormAct(channels_in, channels_out, kernel, stride)
        self.second = ConvNormAct(channels_out, channels_out, kernel, activation=False)
        skip: list[nn.Module] = []
        if stride != (1, 1, 1):
            skip.append(nn.AvgPool3d(stride, stride))
        if channels_in != channels_out:
            skip.append(ConvNormAct(channels_in, channels_out, (1, 1, 1), activation=False))
        self.skip = nn.Sequential(*skip)
        self.activation = nn.LeakyReLU(LEAKY_SLOPE, inplace=True)

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        out: Tensor = self.activation(self.second(self.first(x_BCIJK)) + self.skip(x_BCIJK))
        return out


def initialise(module: nn.Module, slope: float) -> None:
    """He initialisation (normal, fan in) for activations of negative ``slope``, drawn from torch's
    generator: the same after the same ``torch.manual_seed``."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, a=slope, mode="fan_in", nonlinearity="leaky_relu")
        elif isinstance(part, nn.ConvTranspose3d):
            # Kernel = stride: each output voxel sees one tap of each input channel.
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / (1 + slope**2) / part.in_channels))
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def concatenate(up_BCIJK: Tensor, skip_BSIJK: Tensor) -> Tensor:
    """Decoder features beside the encoder's of the same level."""
    return torch.cat((skip_BSIJK, up_BCIJK), dim=1)
