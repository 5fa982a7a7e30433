"""Measurement of the rate at which a device computes convolutions in training.

Processors differ by a factor of ten (AVX2 in float32, AVX512 in bfloat16, AMX), so that a table would be
wrong for most of them.
"""

from __future__ import annotations

import functools
import math
import time

import torch
import torch.nn.functional as F

from zoomseg.backends.device import Device
from zoomseg.networks.build import fastest_layout

CHANNELS, SIDE_CPU, SIDE_GPU, BATCH = 32, 24, 64, 2
"""Of the measured feature map: a middle level of a planned network."""
CONVOLUTION_SHARE = 0.85
"""Share of a training step's time spent in convolutions: 0.69 to 0.96 on CPUs
(benchmarks/results/2026-11-29-training-step.md)."""
REPEATS = 5
GRID = 1.25
"""Rates are rounded to a power of this, so that two trainings on one machine are planned alike."""


@functools.cache
def measured(device: Device) -> float:
    """Multiply-adds per second in training steps. The fastest of a few passes counts, as other processes
    slow some of them; with their preparation they take less than a second."""
    convolution = _Convolution(device)
    convolution.seconds()  # the first call prepares kernels
    fastest = min(convolution.seconds() for _ in range(REPEATS))
    return rounded(CONVOLUTION_SHARE * convolution.multiply_adds / max(fastest, 1e-9))


def rounded(rate: float) -> float:
    """To the nearest power of ``GRID``."""
    return float(GRID ** round(math.log(rate, GRID)))


class _Convolution:
    """A 3x3x3 convolution and both its gradients."""

    def __init__(self, device: Device) -> None:
        side = SIDE_GPU if device.is_gpu else SIDE_CPU
        layout = fastest_layout(device.place)
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> torch.Tensor:
            values = torch.randn(*shape, generator=generator).to(device.place)
            return values.contiguous(memory_format=layout).requires_grad_()

        self._device = device
        self._x_BCIJK = normal(BATCH, CHANNELS, side, side, side)
        self._weight = normal(CHANNELS, CHANNELS, 3, 3, 3)
        self.multiply_adds = 3 * BATCH * side**3 * self._weight.numel()

    def seconds(self) -> float:
        started = time.perf_counter()
        with self._device.autocast(), self._device.tuned():
            answer = F.conv3d(self._x_BCIJK, self._weight, padding=1)
        torch.autograd.grad(answer.sum(), (self._x_BCIJK, self._weight))
        if self._device.is_gpu:
            torch.cuda.synchronize(self._device.place)
        return time.perf_counter() - started
