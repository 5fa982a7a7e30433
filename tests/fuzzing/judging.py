"""Properties that must hold for any input.

A command ends by itself, within the limits of time and memory, with a known exit code and, if it failed, a
few clear lines. Nothing outside its folder is changed, and no incomplete file in it looks complete.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fuzzing.inputs import PACKAGE, SOUND, Input
from fuzzing.runner import Ran
from zoomseg.core.errors import ZoomSegError
from zoomseg.datasets.layouts import open_dataset
from zoomseg.io.bundle import load as load_model

CODES = (0, 1, 2)
MAX_LINES = 15
MAX_CHARACTERS = 1_500
"""Limit for one line on standard error, which should state a path and a problem, and not repeat the input."""

_FULL = re.compile(
    r"does not fit in memory|can't allocate memory|Unable to allocate|MemoryError|std::bad_alloc"
)
_TRACEBACK = "Traceback (most recent call last)"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Violation:
    """``kind`` is one of a few words; ``detail`` describes what happened."""

    kind: str
    detail: str


def violations(given: Input, ran: Ran) -> tuple[Violation, ...]:
    """All violations by a command."""
    return (*_ended_badly(ran), *_unclear(ran), *_elsewhere(ran), *_looks_complete(given, ran))


def _ended_badly(ran: Ran) -> Iterator[Violation]:
    if ran.hung:
        yield Violation("hang", f"stopped after {ran.seconds:.0f} s")
    if ran.ended:
        yield Violation("signal", f"the process ended by {ran.ended}")
    if ran.traceback:
        yield Violation("traceback", _place(ran.traceback))
    elif _TRACEBACK in ran.stdout + ran.stderr:
        yield Violation("traceback", _place(ran.stderr))
    if full := _FULL.search(ran.traceback + ran.stdout + ran.stderr):
        yield Violation("memory", full[0])
    if ran.code is not None and ran.code not in CODES:
        yield Violation("exit code", f"{ran.code!r}")


def _place(trace: str) -> str:
    """The last line of a traceback, and its origin in the package."""
    ours = re.findall(r'File ".*?/zoomseg/([^"]*)", line (\d+)', trace)
    where = f"{ours[-1][0]}:{ours[-1][1]}: " if ours else ""
    lines = trace.strip().splitlines()
    return f"{where}{lines[-1][:200]}" if lines else where


def _unclear(ran: Ran) -> Iterator[Violation]:
    """Output of a command that ended with a code: none at all, too much, or control characters."""
    if ran.code is None:
        return
    lines = ran.stderr.splitlines()
    if ran.code != 0 and not (ran.stdout + ran.stderr).strip():
        yield Violation("unclear", f"exit code {ran.code} without a word")
    if len(lines) > MAX_LINES:
        yield Violation("unclear", f"{len(lines)} lines on standard error")
    longest = max(map(len, lines), default=0)
    if longest > MAX_CHARACTERS:
        yield Violation("unclear", f"a line of {longest} characters on standard error")
    if control := _CONTROL.search(ran.stdout + ran.stderr):
        yield Violation("unclear", f"the control character {control[0]!r} is printed")


def _elsewhere(ran: Ran) -> Iterator[Violation]:
    yield from (Violation("outside", what) for what in dict.fromkeys(ran.outside))
    yield from (Violation("left over", path) for path in ran.left)


# --- files that look complete ---------------------------------------------------------------------


def _looks_complete(given: Input, ran: Ran) -> Iterator[Violation]:
    """Files that look like the result of a command that failed, and results that are not valid."""
    command = "package" if given.entry == PACKAGE else given.arguments[0] if given.arguments else ""
    failed = ran.code not in (0, 1)
    match command:
        case "predict":
            found = _predicted(given, ran)
        case "package":
            found = _packaged(given.out.with_name("labels.nii.gz"), ran)
        case "check":
            found = _opens_as_dataset(given.out) if failed else iter(())
        case "train" | "import":
            found = _opens_as_model(given.out) if failed else _is_no_model(given.out)
        case "evaluate":
            found = (f"{p.name} of a failed evaluation" for p in given.out.glob("*.*") if failed)
        case _:
            found = (f"{p.name} of a failed command" for p in (given.out,) if failed and p.is_file())
    yield from (Violation("looks complete", what) for what in found)


def _predicted(given: Input, ran: Ran) -> Iterator[str]:
    """Label maps that are damaged or not done according to run.json, and cases done without a label map."""
    maps = {path.name.removesuffix(".nii.gz"): path for path in given.out.glob("[!.]*.nii.gz")}
    try:
        cases = json.loads((given.out / "run.json").read_text())["cases"]
    except FileNotFoundError:
        cases = {}
    except (ValueError, KeyError, OSError) as error:
        yield f"run.json cannot be read ({error})"
        return
    done = {case for case, account in cases.items() if account.get("status") == "done"}
    yield from (f"label map of {case!r}, not done" for case in sorted({*maps} - done))
    yield from (f"{case!r} is done, but has no label map" for case in sorted(done - {*maps}))
    yield from (wrong for path in maps.values() if (wrong := _damaged(path)))
    if given.sound and ran.code in (0, 1) and SOUND not in done:
        yield "the sound scan of the batch is not done"
    if ran.code == 0 and not done:
        yield "exit code 0, but no case is done"


def _damaged(path: Path) -> str:
    """The error in a label map; empty if it can be read and contains 3D integers."""
    try:
        image: Any = nib.load(path)
        values = np.asanyarray(image.dataobj)
    except Exception as error:
        return f"{path.name} cannot be read ({error})"
    return "" if values.dtype.kind in "iu" and values.ndim == 3 else f"{path.name} is no label map"


def _packaged(path: Path, ran: Ran) -> Iterator[str]:
    if ran.code != 0:
        if path.exists():
            yield "label map of a package that failed"
    elif not path.exists():
        yield "exit code 0, but no label map"
    elif wrong := _damaged(path):
        yield wrong


def _opens_as_dataset(folder: Path) -> Iterator[str]:
    try:
        found = open_dataset(folder)
    except ZoomSegError:
        return
    yield f"a data set of {len(found.cases)} cases that opens, of a failed command"


def _opens_as_model(folder: Path) -> Iterator[str]:
    try:
        load_model(folder)
    except ZoomSegError:
        return
    yield "a model that opens, of a failed command"


def _is_no_model(folder: Path) -> Iterator[str]:
    try:
        load_model(folder)
    except ZoomSegError as error:
        yield f"exit code 0, but {error}"
