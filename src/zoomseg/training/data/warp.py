"""Sampling of stored cases at the coordinates of rotated, deformed and scaled patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_linear(data: Tensor, coordinates: Tensor) -> Tensor:
    """The same as ``core.resample.sample_linear``, ``[C, I, J, K]`` at indices ``[A, B, D, 3]`` -> float32
    ``[C, A, B, D]``, by torch's own kernel: in a fraction of the time and memory."""
    # grid_sample expects (k, j, i) in [-1, 1] with -1 and 1 at the outer voxels' centres.
    sizes = torch.tensor([max(n - 1, 1) for n in data.shape[1:]], dtype=torch.float32, device=data.device)
    grid = (coordinates / sizes * 2 - 1).flip(-1)
    return F.grid_sample(
        data[None].float(), grid[None], mode="bilinear", padding_mode="border", align_corners=True
    )[0]
