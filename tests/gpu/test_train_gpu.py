"""Training on a GPU equals that on a CPU. Skipped without a CUDA GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.tiny_dataset import CPU, retrained, tiny_dataset, tiny_recipe
from zoomseg.backends.device import Device
from zoomseg.recipe.spec import Augmentation
from zoomseg.training import loop
from zoomseg.training.log import LogRow, NullObserver

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


class Losses(NullObserver):
    def __init__(self) -> None:
        self.found: list[float] = []

    def row(self, row: LogRow, remaining_seconds: float | None) -> None:
        self.found.append(row.loss)


@pytest.mark.parametrize("together", [True, False])
def test_losses_are_the_cpu_s(tmp_path: Path, together: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without augmentation: noise differs between devices."""
    monkeypatch.setattr(loop, "LOG_EVERY_STEPS", 1)
    data = tiny_dataset(tmp_path / "data")
    recipe = retrained(tiny_recipe(together, iterations=5), augmentation=Augmentation())
    split = loop.Split(("case_0", "case_1", "case_2"), ("case_3",))
    losses = []
    for device in (CPU, Device("cuda:0")):
        watch = Losses()
        loop.train(data, split, recipe, tmp_path / device.torch_device.type, loop.LoopSettings(device), watch)
        losses.append(watch.found)
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


def test_bfloat16_learns(tmp_path: Path) -> None:
    data, watch = tiny_dataset(tmp_path / "data"), Losses()
    split = loop.Split(data.ids, ())
    gpu = Device("cuda:0", bfloat16=True)
    recipe = tiny_recipe(together=True, iterations=80, lr=2e-2)
    loop.train(data, split, recipe, tmp_path / "model", loop.LoopSettings(gpu), watch)
    assert watch.found[-1] < 0.6 * watch.found[0]
