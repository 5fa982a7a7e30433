"""The 3D U-Net of Cicek et al. 2016 (MICCAI), as used by Roth et al. 2018.

Shape suffixes: B batch, C channels, I J K voxels.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from zoomseg.networks.blocks import concatenate, crop_margin, initialise


def valid_halo(levels: int) -> int:
    """Voxels lost on each side by valid convolutions: two per side, level and path, at the level's scale.

    44 for four levels: 2 * (1 + 2 + 4 + 8) on the way down, 2 * (4 + 2 + 1) on the way up.
    """
    coarsest: int = 2 ** (levels - 1)
    return 2 * (2 * coarsest - 1) + 2 * (coarsest - 1)


def _skip_margins(levels: int) -> tuple[int, ...]:
    """Voxels to crop on each side of every level's skip under valid convolutions (40, 16, 4 for four
    levels): what the levels below lose, seen at twice their resolution."""
    margins = [4]
    for _ in range(levels - 2):
        margins.append(8 + 2 * margins[-1])
    return tuple(reversed(margins))


class _TwoConvolutions(nn.Sequential):
    """Twice a 3x3x3 convolution, batch norm, ReLU."""

    def __init__(self, channels_in: int, channels_mid: int, channels_out: int, padding: int) -> None:
        super().__init__(
            nn.Conv3d(channels_in, channels_mid, 3, padding=padding),
            nn.BatchNorm3d(channels_mid),
            nn.ReLU(inplace=True),
            nn.Conv3d(channels_mid, channels_out, 3, padding=padding),
            nn.BatchNorm3d(channels_out),
            nn.ReLU(inplace=True),
        )


class UNet3D(nn.Module):
    """``channels`` leave each encoder level, whose first convolution has half of them; transposed
    convolutions keep their channels; decoder levels have ``channels`` throughout.

    ``padding`` 0 is the published network (valid convolutions, skips cropped), 1 keeps the shape.
    """

    def __init__(self, in_channels: int, classes: int, channels: tuple[int, ...], padding: int) -> None:
        super().__init__()
        inputs = (in_channels, *channels[:-1])
        self.encoder = nn.ModuleList(
            _TwoConvolutions(c_in, max(1, c // 2), c, padding)
            for c_in, c in zip(inputs, channels, strict=True)
        )
        self.pool = nn.MaxPool3d(2)
        # Biases as published: with them, and batch norm aside, the count is Cicek's 19 069 955.
        self.up = nn.ModuleList(nn.ConvTranspose3d(c, c, 2, stride=2, bias=False) for c in channels[1:])
        self.decoder = nn.ModuleList(
            _TwoConvolutions(c + below, c, c, padding) for c, below in itertools.pairwise(channels)
        )
        self.last = nn.Conv3d(channels[0], classes, 1)
        self.margins = _skip_margins(len(channels)) if padding == 0 else (0,) * (len(channels) - 1)
        initialise(self, slope=0.0)

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[B, classes, ...]`` of the voxels the network answers for, in a 1-tuple."""
        skips: list[Tensor] = []
        x = x_BCIJK
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for level in reversed(range(len(self.decoder))):
            skip = crop_margin(skips[level], self.margins[level])
            x = self.decoder[level](concatenate(self.up[level](x), skip))
        return (self.last(x),)
