from __future__ import annotations

import pytest
import torch

from zoomseg.core.errors import ZoomSegError
from zoomseg.engine.device import Device, resolve


def test_cpu_is_always_there() -> None:
    device = resolve("cpu")
    assert device.place == torch.device("cpu")
    assert device.memory_bytes > 0
    assert device.precision in (None, torch.bfloat16)


def test_unknown_device_names_the_allowed() -> None:
    with pytest.raises(ZoomSegError, match="unknown device 'tpu'; allowed: auto, cpu, cuda"):
        resolve("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpu_says_what_to_do() -> None:
    with pytest.raises(ZoomSegError, match="use --device cpu"):
        resolve("cuda")
    assert resolve("auto").place.type == "cpu"


def test_autocast_only_where_a_precision_is_set() -> None:
    a = torch.ones(4, 4)
    with Device(torch.device("cpu"), None).autocast():
        assert (a @ a).dtype == torch.float32
    with Device(torch.device("cpu"), torch.bfloat16).autocast():
        assert (a @ a).dtype == torch.bfloat16
