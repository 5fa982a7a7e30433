"""Measure one row: run its process, sample its memory and assign the samples to its steps."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from account import Account, Segment
from rows import Job, Row
from watch import Sample, Watched, watch


@dataclass(frozen=True)
class Step:
    name: str
    group: str
    """One of ``account.GROUPS``."""
    seconds: float
    peak_ram_mb: float | None
    """The highest sample during the step; None if there was no sample during it."""


@dataclass(frozen=True)
class Measured:
    """A row of the table. ``seconds`` and ``peak_ram_mb`` refer to the whole process, or the part before it
    failed."""

    name: str
    title: str
    program: str
    """Name and version as recorded by the process; empty if it failed."""
    network: str
    flops_per_voxel: float
    classes: int
    seconds: float
    peak_ram_mb: float
    peak_vram_mb: float
    tiles: int
    steps: tuple[Step, ...]
    failure: str | None = None
    """The reason if the row failed; it then has no steps."""

    def group_seconds(self, group: str) -> float:
        return sum(step.seconds for step in self.steps if step.group == group)


def measure(row: Row, job: Job, out: Path, env: Mapping[str, str], limit_mb: float) -> Measured:
    """Run ``row`` in ``out``; if it fails or exceeds ``limit_mb``, the result contains the reason."""
    out.mkdir(parents=True, exist_ok=True)
    watched = watch(row.command(job, row.network, out), env, out / "log.txt", limit_mb)
    failure = failure_of(watched, out / "log.txt", limit_mb)
    if failure is None:
        try:
            return measured(row, watched, row.account(out))
        except (OSError, ValueError, KeyError) as error:
            failure = f"left no account of itself ({error})"
    return measured(row, watched, Account("", (), 0), failure)


def measured(row: Row, watched: Watched, account: Account, failure: str | None = None) -> Measured:
    return Measured(
        name=row.name,
        title=row.title,
        program=account.program,
        network=row.network.name,
        flops_per_voxel=row.network.flops_per_voxel,
        classes=row.network.classes,
        seconds=watched.ended - watched.started,
        peak_ram_mb=watched.peak_ram_mb,
        peak_vram_mb=account.peak_vram_mb,
        tiles=account.tiles,
        steps=() if failure else steps_of(watched, account.segments),
        failure=failure,
    )


def failure_of(watched: Watched, log: Path, limit_mb: float) -> str | None:
    if watched.over_limit:
        return f"out of memory: passed {limit_mb / 1024:.1f} GB"
    if watched.exit_code == 0:
        return None
    if watched.exit_code == -9:
        return "out of memory: ended by the system"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit code {watched.exit_code}: {' / '.join(lines[-2:]) or 'no message'}"


def steps_of(watched: Watched, segments: Iterable[Segment]) -> tuple[Step, ...]:
    """Steps in the order of their first segment, preceded by ``start``, the remaining time of the process."""
    parts: dict[tuple[str, str], list[Segment]] = {}
    for segment in sorted(segments, key=lambda s: s.start):
        parts.setdefault((segment.step, segment.group), []).append(segment)
    steps = [_step(name, group, found, watched.samples) for (name, group), found in parts.items()]
    first = min((found[0].start for found in parts.values()), default=watched.ended)
    rest = watched.ended - watched.started - sum(step.seconds for step in steps)
    start = _step("start", "start", [Segment("start", "start", watched.started, first)], watched.samples)
    return (Step("start", "start", rest, start.peak_ram_mb), *steps)


def _step(name: str, group: str, segments: list[Segment], samples: Iterable[Sample]) -> Step:
    seen = [x.ram_mb for x in samples if any(s.start <= x.time <= s.end for s in segments)]
    return Step(name, group, sum(s.end - s.start for s in segments), max(seen, default=None))


def environment(threads: int) -> dict[str, str]:
    """The environment of the benchmark, with the number of threads set for every library."""
    names = (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
        "nnUNet_def_n_proc",
    )
    return os.environ | dict.fromkeys(names, str(threads))


def processor() -> str:
    """The processor's name and number of cores."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, {os.cpu_count()} cores"
