"""The 3D U-Net of Cicek et al. 2016 (MICCAI), as used by Roth et al. 2018; flat along one axis, in 2D.

Shape suffixes: B batch, C channels, I J K voxels.
"""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from zoomseg.networks.blocks import TwoConvolutions, concatenate, crop_margin, initialise, same_padding
from zoomseg.recipe.network_shapes import Padding, in_plane


def _skip_margins(levels: int) -> tuple[int, ...]:
    """Voxels to crop on each side of every level's skip under valid convolutions (40, 16, 4 for four levels):
    the loss of the levels below, at twice their resolution."""
    margins = [4]
    for _ in range(levels - 2):
        margins.append(8 + 2 * margins[-1])
    return tuple(reversed(margins))


class UNet(nn.Module):
    """``channels`` are the outputs of each encoder level, whose first convolution has half of them;
    transposed convolutions keep the number of channels; decoder levels have ``channels`` throughout.

    ``padding`` "valid" is the published network (skips cropped), "same" keeps the shape. Along ``flat_axis``
    (0 = I, 1 = J, 2 = K) nothing is convolved, pooled or cropped: the input is then a stack of independent
    slices. In training, batch norm includes all voxels of all slices of the batch.
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        channels: tuple[int, ...],
        padding: Padding,
        flat_axis: int | None = None,
    ) -> None:
        super().__init__()
        kernel, window = in_plane(3, flat_axis), in_plane(2, flat_axis)
        added = same_padding(kernel) if padding == "same" else (0, 0, 0)
        inputs = (in_channels, *channels[:-1])
        self.encoder = nn.ModuleList(
            TwoConvolutions(c_in, max(1, c // 2), c, kernel, added)
            for c_in, c in zip(inputs, channels, strict=True)
        )
        self.pool = nn.MaxPool3d(window)
        # Biases as published: with them, and without batch norm, the count is Cicek's 19 069 955.
        self.up = nn.ModuleList(
            nn.ConvTranspose3d(c, c, window, stride=window, bias=False) for c in channels[1:]
        )
        self.decoder = nn.ModuleList(
            TwoConvolutions(c + below, c, c, kernel, added) for c, below in itertools.pairwise(channels)
        )
        self.last = nn.Conv3d(channels[0], classes, 1)
        lost = _skip_margins(len(channels)) if padding == "valid" else (0,) * (len(channels) - 1)
        self.margins = tuple(in_plane(margin, flat_axis, flat=0) for margin in lost)
        initialise(self, slope=0.0)

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        """Logits ``[B, classes, ...]`` of the voxels that the network predicts, in a 1-tuple."""
        skips: list[Tensor] = []
        x = x_BCIJK
        for level, block in enumerate(self.encoder):
            x = block(x if level == 0 else self.pool(x))
            skips.append(x)
        for level in reversed(range(len(self.decoder))):
            skip = crop_margin(skips[level], self.margins[level])
            x = self.decoder[level](concatenate(self.up[level](x), skip))
        return (self.last(x),)
