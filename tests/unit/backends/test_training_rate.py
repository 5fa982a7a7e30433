from __future__ import annotations

import pytest
import torch

from zoomseg.backends import training_rate
from zoomseg.backends.device import Device
from zoomseg.backends.training_rate import BLOCK_SHARE, GRID, measured, rounded


@pytest.fixture(autouse=True)
def _forgotten() -> None:
    measured.cache_clear()


def test_the_fastest_pass_counts_but_not_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.001, 0.5, 0.4, 0.1, 0.3, 0.2])
    monkeypatch.setattr(training_rate._Block, "seconds", lambda self: next(seconds))
    # Forward, and two gradients: 2 patches of 24x24x24 voxels, twice 32 channels to 32, 27 weights each.
    multiply_adds = 3 * 2 * 24**3 * 2 * 32 * 32 * 27
    assert measured(Device("cpu")) == rounded(BLOCK_SHARE * multiply_adds / 0.1)


def test_it_is_measured_once_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[int] = []
    monkeypatch.setattr(training_rate._Block, "seconds", lambda self: passes.append(1) or 0.1)
    first = Device("cpu").multiply_adds_per_second
    before = len(passes)
    assert Device("cpu").multiply_adds_per_second == first
    assert len(passes) == before > 0


def test_it_draws_no_random_numbers_of_the_training() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    measured(Device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_it_is_what_a_convolution_reaches() -> None:
    """The rate of a larger convolution, forward alone, is within a factor of ten."""
    import time

    x = torch.randn(2, 32, 32, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.randn(32, 32, 3, 3, 3).contiguous(memory_format=torch.channels_last_3d)
    torch.nn.functional.conv3d(x, weight, padding=1)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        torch.nn.functional.conv3d(x, weight, padding=1)
        seconds.append(time.perf_counter() - started)
    forward = 2 * 32**3 * weight.numel() / min(seconds)
    assert forward / 10 < measured(Device("cpu")) < 10 * forward


@pytest.mark.parametrize("rate", [2e10, 3.1e11, 5e12])
def test_rates_are_rounded_to_a_quarter(rate: float) -> None:
    assert rounded(rate) == pytest.approx(rate, rel=0.13)
    assert rounded(1.01 * rounded(rate)) == rounded(rate)
    assert rounded(GRID * rate) == pytest.approx(GRID * rounded(rate))
