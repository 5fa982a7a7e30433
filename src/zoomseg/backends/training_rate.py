"""Measurement of the rate at which a device trains networks.

Processors differ by a factor of ten (AVX2 in float32, AVX512 in bfloat16, AMX), so that a table would be
wrong for most of them.
"""

from __future__ import annotations

import functools
import math
import time

import torch

from zoomseg.backends.device import Device
from zoomseg.networks.blocks import ResidualBlock
from zoomseg.networks.build import fastest_layout

CHANNELS, SIDE_CPU, SIDE_GPU, BATCH = 32, 24, 64, 2
"""Of the measured feature map: a middle level of a planned network."""
BLOCK_SHARE = 0.85
"""An estimate of the share of a training step's time spent in residual blocks; the rest is for patches, the
decoder, the loss and the optimiser. With it, the rate was 153 billion multiply-adds per second on a core with
AMX, where training steps reached 134 to 214."""
REPEATS = 5
GRID = 1.25
"""Rates are rounded to a power of this, so that two trainings on one machine are planned alike."""


@functools.cache
def measured(device: Device) -> float:
    """Multiply-adds per second in training steps. The fastest of a few passes counts, as other processes
    slow some of them; with their preparation they take less than a second."""
    block = _Block(device)
    block.seconds()  # the first call prepares kernels
    fastest = min(block.seconds() for _ in range(REPEATS))
    return rounded(BLOCK_SHARE * block.multiply_adds / max(fastest, 1e-9))


def rounded(rate: float) -> float:
    """To the nearest power of ``GRID``."""
    return float(GRID ** round(math.log(rate, GRID)))


class _Block:
    """A residual block, and its gradients: with AMX, its norms and activations take more time than its
    convolutions, which alone would promise three times the steps."""

    def __init__(self, device: Device) -> None:
        side = SIDE_GPU if device.is_gpu else SIDE_CPU
        layout = fastest_layout(device.torch_device)
        with torch.random.fork_rng(devices=[]):  # a training's own random numbers stay as they are
            torch.default_generator.manual_seed(0)
            module = ResidualBlock(CHANNELS, CHANNELS, (3, 3, 3))
            x_BCIJK = torch.randn(BATCH, CHANNELS, side, side, side)
        self._device = device
        self._module = module.to(device.torch_device).to(memory_format=layout)  # type: ignore[call-overload]
        self._x_BCIJK = x_BCIJK.to(device.torch_device).contiguous(memory_format=layout).requires_grad_()
        weights = sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)
        self.multiply_adds = 3 * BATCH * side**3 * weights

    def seconds(self) -> float:
        started = time.perf_counter()
        with self._device.autocast(), self._device.tuned():
            output = self._module(self._x_BCIJK)
        torch.autograd.grad(output.float().sum(), (self._x_BCIJK, *self._module.parameters()))
        if self._device.is_gpu:
            torch.cuda.synchronize(self._device.torch_device)
        return time.perf_counter() - started
