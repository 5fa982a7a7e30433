"""Torch's kernel agrees with the package's own interpolation."""

from __future__ import annotations

import pytest
import torch

from zoomseg.core.resample import sample_linear as sampled
from zoomseg.training.data.warp import sample_linear


@pytest.mark.parametrize("shape", [(7, 6, 5), (1, 4, 1), (2, 2, 30)])
def test_points_inside_and_beyond_are_sampled_as_elsewhere(shape: tuple[int, int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.rand((3, *shape), generator=generator)
    points = (torch.rand((6, 5, 4, 3), generator=generator) * 1.5 - 0.25) * torch.tensor(shape)
    found = sample_linear(data, points)
    assert torch.allclose(found, sampled(data, points), atol=1e-5)
    assert found.std() > 0.1


def test_stored_halves_and_integers_become_floats() -> None:
    point = torch.tensor([0.25, 0.0, 0.0]).reshape(1, 1, 1, 3)
    for dtype in (torch.float16, torch.int16):
        out = sample_linear(torch.tensor([4, 8], dtype=dtype).reshape(1, 2, 1, 1), point)
        assert out.dtype == torch.float32
        assert out.item() == pytest.approx(5.0)
