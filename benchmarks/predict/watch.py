"""Run a command and monitor its memory from outside."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

PERIOD_SECONDS = 0.02
FAMILY_SECONDS = 0.5
"""Interval between searches for new child processes, which take longer than a memory sample."""

_MB = 1024**2


@dataclass(frozen=True)
class Sample:
    """Resident memory of a process and all its children at one time; shared pages are counted repeatedly."""

    time: float
    ram_mb: float


@dataclass(frozen=True)
class Watched:
    """A command that has ended. Times are seconds since the epoch."""

    started: float
    ended: float
    exit_code: int
    samples: tuple[Sample, ...]
    peak_ram_mb: float
    """The highest sample, or the peak of a single process as recorded by the system (between samples, too),
    whichever is higher."""
    over_limit: bool
    """Whether it was terminated because it exceeded the memory limit."""


def watch(command: Sequence[str], env: Mapping[str, str], log: Path, limit_mb: float) -> Watched:
    """Run ``command``, and terminate it if it exceeds ``limit_mb``; its output is written to ``log``.

    The peak that the system records for a child includes the memory of its parent at the start, so the caller
    must be small.
    """
    with log.open("wb") as out:
        started = time.time()
        child = subprocess.Popen(command, env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=out)
    samples: list[Sample] = []
    over = False
    family: list[psutil.Process] = []
    family_known = 0.0
    try:
        while (ended := _reaped(child)) is None:
            now = time.time()
            if now - family_known > FAMILY_SECONDS:
                family, family_known = _family(child.pid), now
            samples.append(Sample(now, sum(_ram_mb(process) for process in family)))
            if samples[-1].ram_mb > limit_mb and not over:
                over = True
                _end(child.pid)
            time.sleep(PERIOD_SECONDS)
    except BaseException:
        _end(child.pid)
        child.wait()
        raise
    exit_code, system_peak_mb = ended
    peak = max([system_peak_mb, *(sample.ram_mb for sample in samples)])
    return Watched(started, time.time(), exit_code, tuple(samples), peak, over)


def _reaped(child: subprocess.Popen[bytes]) -> tuple[int, float] | None:
    """Exit code and peak resident memory in MB of a process that has ended; None while it runs."""
    pid, status, usage = os.wait4(child.pid, os.WNOHANG)
    if pid == 0:
        return None
    child.returncode = os.waitstatus_to_exitcode(status)
    return child.returncode, usage.ru_maxrss / (_MB if sys.platform == "darwin" else 1024)


def _family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _ram_mb(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / _MB
    except psutil.NoSuchProcess:
        return 0.0


def _end(pid: int) -> None:
    for process in _family(pid):
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
