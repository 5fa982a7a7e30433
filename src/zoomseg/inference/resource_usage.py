"""Resource usage: memory, GPU memory and CPU over time, as the FLARE challenge measures them.

GPU memory is the memory that torch has allocated for tensors: its peak is exact to the byte, and of this
process alone. The driver's own figure also includes other programs, the CUDA context and torch's cache, and
therefore differs between machines.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import psutil

from zoomseg.backends.device import Device

if sys.platform != "win32":
    import resource

SAMPLING_INTERVAL_SECONDS = 0.1
"""Interval between samples, as in the FLARE challenge."""

PEAK_SAMPLING_INTERVAL_SECONDS = 0.001
"""Interval between samples for a peak, if the system does not report it."""

_MB = 1024**2


@dataclass(frozen=True)
class ResourceSample:
    """One sample of the process. Memory in MB (2^20 bytes)."""

    seconds: float
    """Of any clock."""
    ram_mb: float
    highest_ram_mb: float
    """Since the start of the process."""
    vram_mb: float
    highest_vram_mb: float
    """Since the start of the monitor."""
    cpu_seconds: float
    """Used by all threads since the start of the process."""
    machine_idle_seconds: float = 0.0
    machine_cpu_seconds: float = 0.0
    """Of all cores since the start of the machine: idle seconds, and the total of idle and busy seconds."""


@dataclass(frozen=True)
class ResourceUsage:
    """Usage between two points in time; GPU figures are 0 for work on the CPU."""

    peak_ram_mb: float
    peak_vram_mb: float
    ram_area_mb_s: float
    """Area under the memory-time curve."""
    vram_area_mb_s: float
    """Area under the GPU-memory-time curve."""
    cpu_area_percent_s: float
    """Area under the CPU-utilisation-time curve of this process; one busy core is 100 %, two are 200 %."""
    machine_cpu_area_percent_s: float
    """The same of the whole machine, including other programs: 100 % minus the share of time in which its
    cores were idle, as in the FLARE challenge. All cores busy are 100 %."""


class ResourceMonitor:
    """``with ResourceMonitor(device) as monitor: ...``; then ``monitor.usage``. A thread takes a sample every
    ``period`` seconds."""

    def __init__(
        self,
        device: Device,
        probe: Callable[[], ResourceSample] | None = None,
        period: float = SAMPLING_INTERVAL_SECONDS,
    ) -> None:
        self._device = device
        self._probe = probe or (lambda: take_sample(device))
        self._period = period
        self._samples: list[ResourceSample] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="zoomseg-monitor", daemon=True)

    def __enter__(self) -> ResourceMonitor:
        if _is_used_gpu(self._device):
            import torch

            torch.cuda.reset_peak_memory_stats(self._device.torch_device)
        self._samples.append(self._probe())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def end(self) -> None:
        """End the measurement before the block ends, at the end of the work."""
        if self._done.is_set():
            return
        self._done.set()
        self._thread.join()
        self._samples.append(self._probe())

    def _watch(self) -> None:
        while not self._done.wait(self._period):
            self._samples.append(self._probe())

    @property
    def usage(self) -> ResourceUsage:
        """The usage, after the monitor has ended."""
        return used(self._samples)


def used(samples: Sequence[ResourceSample]) -> ResourceUsage:
    """Areas (trapezoids between samples) and peaks of at least one sample, in order of time.

    The CPU's areas are exact: the system itself counts the time that its cores spent on the process, and were
    idle.
    """
    first, last = samples[0], samples[-1]
    # The system's own peak misses nothing between samples, but belongs to this work only if it rose
    # meanwhile.
    rose = [last.highest_ram_mb] if last.highest_ram_mb > first.highest_ram_mb else []
    return ResourceUsage(
        peak_ram_mb=max([*rose, *(r.ram_mb for r in samples)]),
        peak_vram_mb=last.highest_vram_mb,
        ram_area_mb_s=_area([(r.seconds, r.ram_mb) for r in samples]),
        vram_area_mb_s=_area([(r.seconds, r.vram_mb) for r in samples]),
        cpu_area_percent_s=100 * (last.cpu_seconds - first.cpu_seconds),
        machine_cpu_area_percent_s=100 * _busy_share(first, last) * (last.seconds - first.seconds),
    )


def _busy_share(first: ResourceSample, last: ResourceSample) -> float:
    """0 to 1, of the whole machine; 0 if its clock did not advance."""
    counted = last.machine_cpu_seconds - first.machine_cpu_seconds
    idle = last.machine_idle_seconds - first.machine_idle_seconds
    return 1 - idle / counted if counted > 0 else 0.0


def _area(curve: Sequence[tuple[float, float]]) -> float:
    return sum((b[0] - a[0]) * (a[1] + b[1]) / 2 for a, b in pairwise(curve))


def take_sample(device: Device) -> ResourceSample:
    """A sample of this process, with GPU memory of ``device``."""
    process = psutil.Process()
    cpu, machine = process.cpu_times(), psutil.cpu_times()
    allocated, highest = _gpu_mb(device)
    return ResourceSample(
        time.perf_counter(),
        process.memory_info().rss / _MB,
        highest_ram_mb(),
        allocated,
        highest,
        cpu.user + cpu.system,
        machine.idle,
        machine.user + machine.system + machine.idle,
    )


def highest_ram_mb() -> float:
    """Highest resident memory of this process so far."""
    return max(_earlier.highest_mb, _counted_mb())


def _counted_mb() -> float:
    """The peak counted by the system."""
    # On Linux, getrusage may report a peak of the parent process. Some containers do not count this one.
    status = Path("/proc/self/status")
    counted = status.read_text().partition("VmHWM:")[2].split() if status.exists() else []
    if counted:
        return int(counted[0]) / 1024
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / _MB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (_MB if sys.platform == "darwin" else 1024)


@dataclass
class _Earlier:
    """Peak of this process before the system's count was last reset."""

    highest_mb: float = 0.0


_earlier = _Earlier()


def rise(work: Callable[[], object]) -> int:
    """The bytes by which resident memory rose during ``work``: the maximum used at once by it and its
    libraries, and by other threads meanwhile.

    Exact where the system's count of the peak can be reset (``clear_refs`` of proc(5), Linux); elsewhere a
    thread takes a sample every ``PEAK_SAMPLING_INTERVAL_SECONDS``.
    """
    before = psutil.Process().memory_info().rss
    if _begin_anew():
        work()
        return max(0, int(_counted_mb() * _MB) - before)
    with _Watcher() as watcher:
        work()
    return max(0, watcher.highest - before)


def _begin_anew() -> bool:
    """Reset the system's peak to the current value; False if that is not possible."""
    peak = _counted_mb()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    _earlier.highest_mb = max(_earlier.highest_mb, peak)
    return True


class _Watcher:
    """A thread that samples resident memory; ``highest`` in bytes."""

    def __init__(self) -> None:
        self.highest = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="zoomseg-peak", daemon=True)

    def __enter__(self) -> _Watcher:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._done.wait(PEAK_SAMPLING_INTERVAL_SECONDS):
            self._look()

    def _look(self) -> None:
        self.highest = max(self.highest, psutil.Process().memory_info().rss)


def _gpu_mb(device: Device) -> tuple[float, float]:
    """Memory of tensors on the GPU, current and peak."""
    if not _is_used_gpu(device):
        return 0.0, 0.0
    import torch

    place = device.torch_device
    return torch.cuda.memory_allocated(place) / _MB, torch.cuda.max_memory_allocated(place) / _MB


def _is_used_gpu(device: Device) -> bool:
    if not device.is_gpu:
        return False
    import torch

    return torch.cuda.is_initialized()  # type: ignore[no-untyped-call, no-any-return]
