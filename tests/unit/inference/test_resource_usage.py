"""Areas under known curves, exactly; and a real process that computes and holds memory."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zoomseg.backends.device import Device, trim_memory
from zoomseg.inference import resource_usage
from zoomseg.inference.resource_usage import (
    ResourceMonitor,
    ResourceSample,
    ResourceUsage,
    highest_ram_mb,
    rise,
    take_sample,
    used,
)

CPU = Device("cpu")
IDLE = ResourceSample(0.0, 100.0, 500.0, 0.0, 0.0, 7.0)


def test_areas_are_trapezoids_and_peaks_are_the_highest() -> None:
    samples = [
        ResourceSample(10.0, 100.0, 100.0, 0.0, 0.0, 7.0, 40.0, 100.0),
        ResourceSample(10.5, 300.0, 300.0, 64.0, 80.0, 7.5, 41.0, 102.0),
        ResourceSample(12.5, 200.0, 340.0, 32.0, 96.0, 11.0, 42.5, 110.0),
    ]
    assert used(samples) == ResourceUsage(
        peak_ram_mb=340.0,
        peak_vram_mb=96.0,
        ram_area_mb_s=0.5 * 200 + 2 * 250,
        vram_area_mb_s=0.5 * 32 + 2 * 48,
        cpu_area_percent_s=400.0,
        machine_cpu_area_percent_s=75 * 2.5,  # idle in 2.5 of 10 s of all cores
    )


def test_a_peak_of_earlier_work_does_not_count() -> None:
    samples = [IDLE, replace(IDLE, seconds=1.0, ram_mb=180.0), replace(IDLE, seconds=2.0, ram_mb=120.0)]
    assert used(samples).peak_ram_mb == 180.0


def test_nothing_takes_nothing() -> None:
    assert used([IDLE]) == ResourceUsage(100.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def test_looks_at_the_beginning_and_at_the_end() -> None:
    given = iter([IDLE, replace(IDLE, seconds=4.0, ram_mb=200.0, cpu_seconds=9.0)])
    with ResourceMonitor(CPU, lambda: next(given), period=3600.0) as resource_usage:
        pass
    assert resource_usage.usage == ResourceUsage(200.0, 0.0, 600.0, 0.0, 200.0, 0.0)


def test_ends_where_the_work_does_not_where_the_block_does() -> None:
    given = iter([IDLE, replace(IDLE, seconds=4.0), replace(IDLE, seconds=9.0)])
    with ResourceMonitor(CPU, lambda: next(given), period=3600.0) as resource_usage:
        resource_usage.end()
    assert resource_usage.usage.ram_area_mb_s == 400.0


def test_looks_meanwhile_until_the_end_also_of_work_that_fails() -> None:
    """The third sample is awaited inside; after the end there is exactly one more, then none."""
    looks: list[ResourceSample] = []
    thrice = threading.Event()

    def probe() -> ResourceSample:
        looks.append(replace(IDLE, seconds=float(len(looks))))
        if len(looks) == 3:
            thrice.set()
        return looks[-1]

    def fail() -> None:
        assert thrice.wait(10)
        raise ZeroDivisionError

    resource_usage = ResourceMonitor(CPU, probe, period=0.001)
    with pytest.raises(ZeroDivisionError), resource_usage:
        fail()
    count = len(looks)
    assert count >= 4
    assert resource_usage.usage.ram_area_mb_s == 100.0 * (count - 1)
    time.sleep(0.01)
    assert len(looks) == count


def test_a_busy_core_counts_and_a_sleeping_one_does_not() -> None:
    with ResourceMonitor(CPU) as busy:
        end = time.process_time() + 0.3
        while time.process_time() < end:
            pass
    with ResourceMonitor(CPU) as idle:
        time.sleep(0.3)
    assert 25 <= busy.usage.cpu_area_percent_s <= 60  # 100 % for 0.3 s; the system counts hundredths
    assert idle.usage.cpu_area_percent_s <= 10


def test_memory_held_for_a_while_counts_for_that_while() -> None:
    began = time.perf_counter()
    with ResourceMonitor(CPU, period=0.02) as resource_usage:
        before = take_sample(CPU).ram_mb
        block = bytearray(b"x") * (200 * 1024**2)
        time.sleep(0.3)
        held = take_sample(CPU).ram_mb
        del block
    seconds = time.perf_counter() - began
    assert held - before == pytest.approx(200, abs=20)
    assert resource_usage.usage.peak_ram_mb >= held - 1  # the system counts some pages late
    assert (
        (before + 0.3 / seconds * 150) * seconds < resource_usage.usage.ram_area_mb_s < (held + 20) * seconds
    )


def test_a_reading_of_this_process() -> None:
    now = take_sample(CPU)
    assert 10 < now.ram_mb <= now.highest_ram_mb + 1
    assert highest_ram_mb() >= now.highest_ram_mb
    assert now.cpu_seconds > 0.1
    assert (now.vram_mb, now.highest_vram_mb) == (0.0, 0.0)


def test_the_peak_is_read_where_the_system_does_not_count_that_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in some containers, whose ``/proc/self/status`` lacks the line."""
    monkeypatch.setattr(Path, "read_text", lambda self: "Name:\tpython\nVmRSS:\t  1 kB\n")
    assert 10 < take_sample(CPU).highest_ram_mb < 1e6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu_memory_is_what_tensors_hold() -> None:
    device = Device("cuda:0")
    torch.zeros(1, device=device.torch_device)
    before = take_sample(device).vram_mb
    with ResourceMonitor(device, period=0.01) as resource_usage:
        block = torch.zeros(64 * 1024**2, dtype=torch.uint8, device=device.torch_device)
        time.sleep(0.2)
        del block
    assert resource_usage.usage.peak_vram_mb - before == pytest.approx(64, abs=0.01)
    assert resource_usage.usage.vram_area_mb_s > 0.2 * 64


def test_the_gpu_asked_is_the_one_that_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU: torch's counters are replaced, and record the device of the query."""
    place, asked = torch.device("cuda:1"), []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: asked.append(device))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 3 * 1024**2 * device.index)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * 1024**2 * device.index)
    with ResourceMonitor(Device("cuda:1"), period=3600.0) as resource_usage:
        assert asked == [place]
        time.sleep(0.05)
    assert asked == [place]  # the peak is of all that the meter saw
    assert resource_usage.usage.peak_vram_mb == 5.0
    assert 3 * 0.05 <= resource_usage.usage.vram_area_mb_s < 3 * 5


def taken(mb: int) -> None:
    """Touch this amount of memory, and free it again."""
    block = torch.ones(mb * 1024**2, dtype=torch.uint8)
    time.sleep(0.05)
    del block
    trim_memory()


@pytest.mark.parametrize("exact", [True, False])
def test_what_work_takes_at_once_is_measured(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    """By the system's count or, if it cannot be reset, by sampling; the second time without the remains of
    the first. The highest memory of the process is unchanged."""
    if not exact:
        monkeypatch.setattr(resource_usage, "_begin_anew", lambda: False)
    taken(200)
    before = highest_ram_mb()
    assert rise(lambda: taken(100)) / 1024**2 == pytest.approx(100, abs=4)
    assert rise(lambda: taken(20)) / 1024**2 == pytest.approx(20, abs=4)
    assert highest_ram_mb() >= before
