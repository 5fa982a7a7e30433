"""U-Net of plain convolutions; strides and kernels per level and axis (Isensee et al. 2021).

Shape suffixes: B batch, C channels, I J K voxels.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoomseg.core.geometry import Index3
from zoomseg.networks.blocks import LEAKY_SLOPE, ConvNormAct, concatenate, initialise, transposed


def _stacked(
    count: int, before: int, after: int, kernel: Index3, stride: Index3 = (1, 1, 1)
) -> nn.Sequential:
    """A number of convolutions, the first of them strided."""
    rest = (ConvNormAct(after, after, kernel) for _ in range(count - 1))
    return nn.Sequential(ConvNormAct(before, after, kernel, stride), *rest)


class PlainConvUNet(nn.Module):
    """Convolutions per encoder level (the first of a level strided), then per decoder level a transposed
    convolution, the skip, convolutions; a 1x1x1 convolution at the end.

    The arguments are those of ``recipe.spec.PlainConvUNet``.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: tuple[int, ...],
        strides: tuple[Index3, ...],
        kernels: tuple[Index3, ...],
        convolutions: tuple[int, ...],
        decoder_convolutions: tuple[int, ...],
    ) -> None:
        super().__init__()
        inputs = (in_channels, *channels[:-1])
        levels = zip(convolutions, inputs, channels, kernels, strides, strict=True)
        self.encoder = nn.ModuleList(_stacked(*level) for level in levels)
        below = range(1, len(channels))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(channels[n], channels[n - 1], strides[n], stride=strides[n]) for n in below
        )
        self.decoder = nn.ModuleList(
            _stacked(decoder_convolutions[n - 1], 2 * channels[n - 1], channels[n - 1], kernels[n - 1])
            for n in below
        )
        self.last = nn.Conv3d(channels[0], classes, 1)
        initialise(self, slope=LEAKY_SLOPE)

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[B, classes, I, J, K]`` in a 1-tuple."""
        skips: list[Tensor] = []
        x = x_BCIJK
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        for n in reversed(range(len(self.decoder))):
            x = self.decoder[n](concatenate(transposed(x, self.up[n]), skips[n]))
        return (self.last(x),)
