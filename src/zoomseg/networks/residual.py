"""U-Net with a residual encoder and a light decoder; strides and kernels per level and axis.

Shape suffixes: B batch, C channels, I J K voxels.
"""

from __future__ import annotations

from torch import Tensor, nn

from zoomseg.core.geometry import Index3
from zoomseg.networks.blocks import (
    LEAKY_SLOPE,
    ConvNormAct,
    ResidualBlock,
    concatenate,
    initialise,
    transposed,
    upsample,
)


class ResEncUNet(nn.Module):
    """Stem, then residual blocks per level (the first of a level strided), then per decoder level a
    transposed convolution, the skip, one convolution.

    There are heads at every decoder level but the lowest; those below the highest have an output in training
    only, and only with ``deep_supervision``. The arguments are those of ``recipe.spec.ResEncUNet``.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: tuple[int, ...],
        strides: tuple[Index3, ...],
        kernels: tuple[Index3, ...],
        blocks: tuple[int, ...],
        deep_supervision: bool,
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(in_channels, channels[0], kernels[0], strides[0])
        self.stem_stride = strides[0]
        self.encoder = nn.ModuleList()
        for level, count in enumerate(blocks):
            before = channels[max(level - 1, 0)]
            stride = strides[level] if level > 0 else (1, 1, 1)
            first = ResidualBlock(before, channels[level], kernels[level], stride)
            rest = (ResidualBlock(channels[level], channels[level], kernels[level]) for _ in range(count - 1))
            self.encoder.append(nn.Sequential(first, *rest))
        below = range(1, len(channels))
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(channels[n], channels[n - 1], strides[n], stride=strides[n]) for n in below
        )
        self.decoder = nn.ModuleList(
            ConvNormAct(2 * channels[n - 1], channels[n - 1], kernels[n - 1]) for n in below
        )
        heads = max(1, len(channels) - 2) if deep_supervision else 1
        self.heads = nn.ModuleList(nn.Conv3d(channels[n], classes, 1) for n in range(heads))
        initialise(self, slope=LEAKY_SLOPE)

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[B, classes, I, J, K]`` first; in training with deep supervision those of the lower
        decoder levels follow, highest resolution first."""
        skips: list[Tensor] = []
        x = self.stem(x_BCIJK)
        for block in self.encoder:
            x = block(x)
            skips.append(x)
        outputs = len(self.heads) if self.training else 1
        logits: list[Tensor] = []
        for level in reversed(range(len(self.decoder))):
            x = self.decoder[level](concatenate(transposed(x, self.up[level]), skips[level]))
            if level < outputs:
                logits.insert(0, self.heads[level](x))
        return (upsample(logits[0], self.stem_stride), *logits[1:])
