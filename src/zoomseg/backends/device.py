"""The computing device: precision, threads, allocator. Torch is imported only if a GPU, or training, needs
it."""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from zoomseg.core.arrays import AnyNumpy, Array, array_like
from zoomseg.core.errors import ZoomSegError
from zoomseg.core.extras import installed

if TYPE_CHECKING:
    import torch

CPU_VOXELS, GPU_VOXELS = 1 << 17, 1 << 20
"""Input voxels that keep a device busy: more at once only use memory."""

WRONG_CUDNN = (90800, 91500)
"""From the first version on, and before the second."""
KEPT_FREED = 256 << 20
"""Bytes that glibc requests beyond what is needed, if freed memory is kept."""
HELD_SHARE = 0.1
"""Share of a GPU's memory for training data: in 24 GB, 300 cases of 2.5 million voxels."""


@dataclass(frozen=True)
class Device:
    """``kind`` is ``cpu`` or ``cuda:N``; ``bfloat16`` states whether networks compute in bfloat16, or in
    float32 throughout."""

    kind: str = "cpu"
    bfloat16: bool = False

    @property
    def is_gpu(self) -> bool:
        return self.kind.startswith("cuda")

    @property
    def precision(self) -> str:
        return "bfloat16" if self.bfloat16 else "float32"

    @property
    def torch_device(self) -> torch.device:
        """Torch's name of the device."""
        import torch

        return torch.device(self.kind)

    def put(self, values: AnyNumpy) -> Array:
        """Values on the device: as a torch tensor there, or unchanged on a CPU."""
        if self.kind == "cpu":
            return values
        import torch

        return array_like(values, torch.empty(0, device=self.torch_device))

    def autocast(self) -> torch.autocast:
        import torch

        return torch.autocast(self.torch_device.type, dtype=torch.bfloat16, enabled=self.bfloat16)

    @contextmanager
    def tuned(self) -> Iterator[None]:
        """Let cuDNN try its algorithms for every shape and use the fastest: sensible if there are few
        shapes."""
        import torch

        before = torch.backends.cudnn.benchmark
        torch.backends.cudnn.benchmark = self.is_gpu
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before

    def tiles_at_once(self, voxels: int) -> int:
        """Number of tiles of this many voxels per call of a network that keeps the device busy."""
        return max(1, (GPU_VOXELS if self.is_gpu else CPU_VOXELS) // voxels)

    @property
    def batches_ahead(self) -> int:
        """Number of batches prepared in advance: on a CPU none, as no other processor prepares them."""
        return 2 if self.is_gpu else 0

    @property
    def room_for_data(self) -> int:
        """Bytes of training data that may be held beside the networks, so that a GPU need not wait for the
        disk."""
        return int(HELD_SHARE * self.memory_bytes) if self.is_gpu else 0

    @property
    def multiply_adds_per_second(self) -> float:
        """Rate of residual blocks in training, measured on this machine: sufficient to estimate the duration
        in advance."""
        from zoomseg.backends import training_rate

        return training_rate.measured(self)

    @property
    def name(self) -> str:
        """The hardware's own name."""
        if self.is_gpu:
            import torch

            return torch.cuda.get_device_name(self.torch_device)
        return f"{platform.processor() or platform.machine()}, {psutil.cpu_count()} cores"

    @property
    def memory_bytes(self) -> int:
        if self.is_gpu:
            import torch

            return int(torch.cuda.get_device_properties(self.torch_device).total_memory)
        return int(psutil.virtual_memory().total)


def check_name(name: str) -> None:
    """Refuse names that are no device's, without checking its existence.

    Raises:
        ZoomSegError: it is none.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,4})?", name):
        raise ZoomSegError(f"unknown device '{name}'; allowed: auto, cpu, cuda, cuda:N")


def resolve(name: str) -> Device:
    """The existing device for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ZoomSegError: no such device on this machine.
    """
    check_name(name)
    if name == "auto":
        name = "cuda" if cuda_is_available() else "cpu"
    if name == "cpu":
        keep_memory()
        return Device("cpu", fast_bfloat16())
    if not cuda_is_available():
        raise ZoomSegError(
            f"device '{name}' was requested, but no usable CUDA GPU was found; use --device cpu"
        )
    import torch

    count, index = torch.cuda.device_count(), int(name.partition(":")[2] or 0)
    if index >= count:
        raise ZoomSegError(f"device '{name}' was requested, but there are {count}, from cuda:0")
    # By number: "cuda" denotes another one in a thread that selected another.
    return Device(f"cuda:{index}", cuda_bfloat16(torch.device("cuda", index)))


def cuda_is_available() -> bool:
    """Whether torch can compute on a GPU. Torch, which takes seconds to load, is only queried if there is a
    driver."""
    if not installed("torch") or not has_gpu_driver():
        return False
    import torch

    return torch.cuda.is_available()


def has_gpu_driver() -> bool:
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()  # AMD's
    return True


def cuda_bfloat16(device: torch.device) -> bool:
    """Whether cuDNN supports bfloat16 for 3D convolutions on this GPU. Before Ampere, torch computes them
    without cuDNN, which takes many times the time and memory, and also with the versions of cuDNN that are
    wrong in half precision (github.com/pytorch/pytorch/issues/163539 and 166122)."""
    import torch

    version = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
    wrong = WRONG_CUDNN[0] <= version < WRONG_CUDNN[1]
    return torch.cuda.get_device_capability(device) >= (8, 0) and not wrong


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 natively; elsewhere it is emulated, and slower than float32. Only
    Linux reports it."""
    try:
        info = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = re.search(r"^flags\s*:(.*)$", info, re.MULTILINE)
    return flags is not None and not {"avx512_bf16", "amx_bf16"}.isdisjoint(flags[1].split())


def keep_memory() -> None:
    """Make glibc keep freed memory: otherwise, the kernel maps and zeroes 3D feature maps at every layer,
    which takes a third of the run time of a U-Net on a CPU."""
    _set_malloc(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1, top_pad=KEPT_FREED)


def give_back_memory() -> None:
    """Make glibc return freed memory at once, and request no more than is needed."""
    _set_malloc(mmap_threshold=1 << 20, trim_threshold=1 << 20, top_pad=1 << 20)


def trim_memory() -> None:
    """Return memory that has already been freed, once."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _set_malloc(mmap_threshold: int, trim_threshold: int, top_pad: int) -> None:
    libc = _glibc()
    if libc is None:
        return
    for option, value in ((-3, mmap_threshold), (-1, trim_threshold), (-2, top_pad)):  # as in malloc.h
        libc.mallopt(option, value)


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None
