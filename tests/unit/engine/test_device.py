from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from zoomseg.core.errors import ZoomSegError
from zoomseg.engine.device import Device, resolve


def test_cpu_is_always_there() -> None:
    device = resolve("cpu")
    assert device.place == torch.device("cpu")
    assert device.memory_bytes > 0
    assert device.precision in (None, torch.bfloat16)


def test_more_cores_do_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    cpu = torch.device("cpu")
    assert Device(cpu, torch.bfloat16).multiply_adds_per_second == 1.5e11
    assert Device(cpu, None).multiply_adds_per_second == 6e10
    assert Device(torch.device("cuda"), torch.bfloat16).multiply_adds_per_second == 5e12


def test_a_gpu_has_data_beside_its_networks_and_others_to_make_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=24e9))
    gpu, cpu = (Device(torch.device(name), None) for name in ("cuda", "cpu"))
    assert (gpu.room_for_data, cpu.room_for_data) == (2_400_000_000, 0)
    assert (gpu.batches_ahead, cpu.batches_ahead) == (2, 0)


@pytest.mark.parametrize("name", ["tpu", "cudas", "cuda:one", "cuda:-1", "cpu:0", ""])
def test_unknown_device_names_the_allowed(name: str) -> None:
    with pytest.raises(ZoomSegError, match=f"unknown device '{name}'; allowed: auto, cpu, cuda"):
        resolve(name)


def test_a_gpu_that_is_not_there_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve("cuda:1").place == torch.device("cuda:1")
    with pytest.raises(ZoomSegError, match="device 'cuda:2' was asked for, but there are 2, from cuda:0"):
        resolve("cuda:2")


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
