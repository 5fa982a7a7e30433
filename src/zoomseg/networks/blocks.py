"""Common parts of the networks.

Shape suffixes: B batch, C channels (S of the skip), I J K voxels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zoomseg.core.geometry import Index3
from zoomseg.networks import channels_last

LEAKY_SLOPE = 0.01

NormLayer = Callable[[int], nn.Module]
"""Creates the norm for this number of channels."""


def instance_norm(channels: int) -> nn.Module:
    """Instance norm with a learned scale and shift per channel."""
    return nn.InstanceNorm3d(channels, affine=True)


def same_padding(kernel: Index3) -> Index3:
    """Number of zeros on each side that preserve the shape under an odd kernel."""
    return (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)


def crop_margin(x_BCIJK: Tensor, margin_vox: Index3) -> Tensor:
    """Remove ``margin_vox`` voxels from both sides of each axis."""
    for axis, margin in enumerate(margin_vox, start=2):
        x_BCIJK = x_BCIJK.narrow(axis, margin, x_BCIJK.shape[axis] - 2 * margin) if margin else x_BCIJK
    return x_BCIJK


def upsample(x_BCIJK: Tensor, factors: Index3) -> Tensor:
    """Trilinear upsampling by ``factors``, half-voxel exact; constants are preserved up to the border."""
    if factors == (1, 1, 1):
        return x_BCIJK
    scale = [float(n) for n in factors]
    return F.interpolate(x_BCIJK, scale_factor=scale, mode="trilinear", align_corners=False)


class TwoConvolutions(nn.Sequential):
    """Two convolutions with bias, batch norm, ReLU; the first one has the ``stride``."""

    def __init__(
        self,
        channels_in: int,
        channels_mid: int,
        channels_out: int,
        kernel: Index3,
        padding: Index3,
        stride: Index3 = (1, 1, 1),
    ) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_mid, kernel, stride, padding),
            nn.BatchNorm3d(channels_mid),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_mid, channels_out, kernel, padding=padding),
            nn.BatchNorm3d(channels_out),
            nn.ReLU(inplace=True),
        )


class ConvNormAct(nn.Sequential):
    """Same-padded convolution, norm, leaky ReLU of negative ``slope`` (``None``: no activation)."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Index3,
        stride: Index3 = (1, 1, 1),
        norm: NormLayer = instance_norm,
        slope: float | None = LEAKY_SLOPE,
    ) -> None:
        # The norm subtracts the mean, so a bias of the convolution would have no effect.
        conv = nn.Conv3d(channels_in, channels_out, kernel, stride, same_padding(kernel), bias=False)
        layers: list[nn.Module] = [conv, norm(channels_out)]
        if slope is not None:
            layers.append(nn.LeakyReLU(slope, inplace=True))
        super().__init__(*layers)
        self._slope = slope

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        return self.norm_and_activation(self[0](x_BCIJK))

    def norm_and_activation(self, x_BCIJK: Tensor) -> Tensor:
        """The layers after the convolution."""
        norm, *activation = list(self)[1:]
        if isinstance(norm, nn.InstanceNorm3d) and channels_last.applies(x_BCIJK):
            return channels_last.norm_and_activation(x_BCIJK, norm, self._slope)
        for layer in (norm, *activation):
            x_BCIJK = layer(x_BCIJK)
        return x_BCIJK


class ResidualBlock(nn.Module):
    """conv-norm-lrelu-conv-norm, added to the input, lrelu.

    If the shape changes, the input is averaged over the stride and projected by a 1x1x1 convolution with
    norm, so that no voxel of it is skipped.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: Index3,
        stride: Index3 = (1, 1, 1),
        norm: NormLayer = instance_norm,
        slope: float = LEAKY_SLOPE,
    ) -> None:
        super().__init__()
        self.first = ConvNormAct(channels_in, channels_out, kernel, stride, norm, slope)
        self.second = ConvNormAct(channels_out, channels_out, kernel, norm=norm, slope=None)
        skip: list[nn.Module] = []
        if stride != (1, 1, 1):
            skip.append(nn.AvgPool3d(stride, stride))
        if channels_in != channels_out:
            skip.append(ConvNormAct(channels_in, channels_out, (1, 1, 1), norm=norm, slope=None))
        self.skip = nn.Sequential(*skip)
        self.activation = nn.LeakyReLU(slope, inplace=True)

    def forward(self, x_BCIJK: Tensor) -> Tensor:
        out: Tensor = self.activation(self.second(self.first(x_BCIJK)) + self._skipped(x_BCIJK))
        return out

    def _skipped(self, x_BCIJK: Tensor) -> Tensor:
        pool, *projection = self.skip or (None,)
        if projection and channels_last.applies(x_BCIJK):
            assert isinstance(pool, nn.AvgPool3d)
            projected = cast(ConvNormAct, projection[0])
            pooled = channels_last.averaged_and_projected(x_BCIJK, pool, cast(nn.Conv3d, projected[0]))
            return projected.norm_and_activation(pooled)
        out: Tensor = self.skip(x_BCIJK)
        return out


def initialise(module: nn.Module, slope: float) -> None:
    """He initialisation (normal, fan in) for activations of negative ``slope``, drawn from torch's
    generator: the same after the same ``torch.manual_seed``."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, a=slope, mode="fan_in", nonlinearity="leaky_relu")
        elif isinstance(part, nn.ConvTranspose3d):
            # Kernel = stride: each output voxel depends on one tap of each input channel.
            nn.init.normal_(part.weight, std=math.sqrt(2.0 / (1 + slope**2) / part.in_channels))
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)


def transposed(x_BCIJK: Tensor, layer: nn.Module) -> Tensor:
    """Upsampling by a transposed convolution with kernel = stride."""
    if channels_last.applies(x_BCIJK):
        return channels_last.upsampled(x_BCIJK, cast(nn.ConvTranspose3d, layer))
    out: Tensor = layer(x_BCIJK)
    return out


def concatenate(up_BCIJK: Tensor, skip_BSIJK: Tensor) -> Tensor:
    """Decoder features concatenated with the encoder's of the same level."""
    return torch.cat((skip_BSIJK, up_BCIJK), dim=1)
