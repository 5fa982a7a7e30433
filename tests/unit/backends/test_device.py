from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from zoomseg.backends import device as device_module
from zoomseg.backends.device import Device, resolve
from zoomseg.core.errors import ZoomSegError


def test_cpu_is_always_there() -> None:
    device = resolve("cpu")
    assert device.torch_device == torch.device("cpu")
    assert device.memory_bytes > 0
    assert device.precision in ("float32", "bfloat16")


def test_a_gpu_has_data_beside_its_networks_and_others_to_make_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: SimpleNamespace(total_memory=24e9))
    gpu, cpu = (Device(name) for name in ("cuda:0", "cpu"))
    assert (gpu.room_for_data, cpu.room_for_data) == (2_400_000_000, 0)
    assert (gpu.batches_ahead, cpu.batches_ahead) == (2, 0)


def pretend_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device_module, "has_gpu_driver", lambda: True)


@pytest.mark.parametrize("name", ["tpu", "cudas", "cuda:one", "cuda:-1", "cpu:0", ""])
def test_unknown_device_names_the_allowed(name: str) -> None:
    with pytest.raises(ZoomSegError, match=f"unknown device '{name}'; allowed: auto, cpu, cuda"):
        resolve(name)


def test_a_gpu_that_is_not_there_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpus(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: (9, 0))
    assert [resolve(name).torch_device for name in ("cuda:1", "cuda", "auto")] == [
        torch.device(name) for name in ("cuda:1", "cuda:0", "cuda:0")
    ]
    with pytest.raises(ZoomSegError, match="device 'cuda:2' was requested, but there are 2, from cuda:0"):
        resolve("cuda:2")


@pytest.mark.parametrize(
    ("capability", "cudnn", "precision"),
    [
        ((9, 0), 92000, torch.bfloat16),
        ((8, 0), 90701, torch.bfloat16),
        ((7, 5), 92000, None),  # a T4 emulates it
        ((9, 0), 90800, None),
        ((9, 0), 91002, None),
        ((9, 0), 91500, torch.bfloat16),
    ],
)
def test_a_gpu_computes_in_bfloat16_where_cudnn_does_well(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], cudnn: int, precision: torch.dtype | None
) -> None:
    pretend_gpus(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda place: capability)
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
    assert resolve("cuda").bfloat16 is (precision is not None)


def test_cudnn_looks_for_the_fastest_on_a_gpu_alone_and_only_meanwhile() -> None:
    cudnn = torch.backends.cudnn
    assert not cudnn.benchmark
    with Device("cuda:0").tuned():
        assert cudnn.benchmark
        with Device("cpu").tuned():
            assert not cudnn.benchmark
    assert not cudnn.benchmark


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_missing_gpu_says_what_to_do() -> None:
    with pytest.raises(ZoomSegError, match="use --device cpu"):
        resolve("cuda")
    assert resolve("auto").torch_device.type == "cpu"


def test_autocast_only_where_a_precision_is_set() -> None:
    a = torch.ones(4, 4)
    with Device("cpu").autocast():
        assert (a @ a).dtype == torch.float32
    with Device("cpu", bfloat16=True).autocast():
        assert (a @ a).dtype == torch.bfloat16
