"""Many scans with one loaded model: a scan that fails is named, the others are done."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from zoomseg.core.case import Case
from zoomseg.core.errors import OutputError, ZoomSegError
from zoomseg.core.volume import Volume
from zoomseg.engine.meter import Meter, Usage
from zoomseg.engine.predict import Predictor, Result
from zoomseg.io.scans import ScanInput, read_image, write_labels


@dataclass(frozen=True, eq=False)
class Done:
    """A scan that was segmented and written to ``path``."""

    case: str
    path: Path
    image: Volume
    result: Result
    seconds: dict[str, float]
    usage: Usage
    """From before reading to after writing."""


@dataclass(frozen=True)
class Failed:
    """A scan that could not be segmented, and why."""

    case: str
    reason: str


def segment(
    scans: Iterable[ScanInput], out: Path, predictor: Predictor, organs: tuple[str, ...] | None = None
) -> Iterator[Done | Failed]:
    """Read, predict and write scans one after the other, to ``out/<case>.nii.gz``.

    Raises:
        OutputError: a result cannot be written (the next one could not either).
    """
    for scan in scans:
        try:
            yield _segment(scan, out, predictor, organs)
        except OutputError:
            raise
        except ZoomSegError as error:
            yield Failed(scan.id, str(error))
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            yield Failed(scan.id, f"{scan.paths[0]}: does not fit in memory")


def _out_of_memory(error: Exception) -> bool:
    """Torch has its own error for a full GPU, and none for a full machine."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def _segment(scan: ScanInput, out: Path, predictor: Predictor, organs: tuple[str, ...] | None) -> Done:
    with Meter(predictor.device.place) as meter:
        clock = [time.perf_counter()]
        image = read_image(scan.paths, channels_last=predictor.channels > 1)
        clock.append(time.perf_counter())
        result = predictor.predict(Case(scan.id, image), organs, keep=False)
        clock.append(time.perf_counter())
        path = result_path(out, scan)
        write_labels(path, result.labels, like=scan.paths[0])
        clock.append(time.perf_counter())
    seconds = {"read": clock[1] - clock[0], **result.seconds, "write": clock[3] - clock[2]}
    seconds["total"] = clock[3] - clock[0]
    return Done(scan.id, path, image, result, seconds, meter.usage)


def result_path(out: Path, scan: ScanInput) -> Path:
    """Where a scan's label map goes."""
    return out / f"{scan.id}.nii.gz"
