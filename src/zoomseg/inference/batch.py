"""Many scans with one loaded model: a scan that fails is named, the others are done.

While a scan is computed, the next one is read and the last one written, each in a thread of its own. The
computation stays in the caller's thread, where an interruption arrives.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from zoomseg.core.case import Case
from zoomseg.core.errors import OutputError, ZoomSegError
from zoomseg.core.geometry import Grid
from zoomseg.core.volume import Volume
from zoomseg.inference import probability_maps, stage_outputs
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.resource_usage import ResourceMonitor, ResourceUsage
from zoomseg.io import digests
from zoomseg.io.dicom.write.results import DicomResult, write_results
from zoomseg.io.files import check_name, printable, reason_of
from zoomseg.io.scans import ScanInput, read_scan, reading_bytes, write_labels
from zoomseg.io.seg_nrrd import write_segmentation
from zoomseg.pipeline.cascade import Prediction
from zoomseg.pipeline.sliding_window import TileProgress
from zoomseg.recipe.spec import Recipe


@dataclass(frozen=True, eq=False)
class Segmented:
    """A scan that was segmented and written to ``path``."""

    case: str
    path: Path
    image: Volume
    result: Prediction
    seconds: dict[str, float]
    """``read``, the steps of the computation, ``write``, and ``total`` for all of them and what lies
    between; apart from these ``waited``, for which the computation stood still until the scan was read."""
    usage: ResourceUsage
    """Of the process while this scan had the computation: from the wait for its reading to the turn of the
    next scan; if none was waiting, until this one was written."""
    scan: ScanInput
    scan_sha256: str
    """Of the files that it was read from (see ``io.digests``)."""


@dataclass(frozen=True)
class Failed:
    """A scan that could not be segmented, and why."""

    case: str
    reason: str


Outcome = Segmented | Failed
OnResult = Callable[[Outcome], None]
OnScanProgress = Callable[[str, TileProgress], None]
"""How far the scan of this id is."""

T = TypeVar("T")


@dataclass(frozen=True)
class ExtraOutputs:
    """What is written with each label map."""

    stages: bool = False
    """What every stage said (see ``inference.stage_outputs``); its answers are then held as a whole."""
    dicom: tuple[DicomResult, ...] = ()
    """Objects that refer to the slices, of scans that came as DICOM."""
    slicer: bool = False
    """A segmentation for 3D Slicer (see ``segmentation_path``)."""
    probabilities: tuple[str, ...] = ()
    """Organs whose probability maps are wanted (see ``inference.probability_maps``); the stages' answers are
    then held as a whole."""
    uid_seed: str = ""
    """What the UIDs of ``dicom`` are made of; at random, if left out."""

    @property
    def held(self) -> bool:
        """Whether what the stages say is held as a whole."""
        return self.stages or bool(self.probabilities)

    def writing_bytes(self, grid: Grid) -> int:
        """How much memory writing takes that the label map alone does not."""
        return probability_maps.writing_bytes(grid) if self.probabilities else 0

    def paths(self, out: Path, scan: ScanInput, recipe: Recipe) -> list[Path]:
        """Every file that a scan may get."""
        found = list(stage_outputs.paths(out, scan.id, recipe)) if self.stages else []
        found += [kind.path(out, scan.id) for kind in self.dicom]
        found += [probability_maps.path(out, scan.id, organ) for organ in self.probabilities]
        return found + ([segmentation_path(out, scan)] if self.slicer else [])


LABELS_ALONE = ExtraOutputs()


def ignore_progress(case: str, progress: TileProgress) -> None:
    pass


def segment(
    scans: Iterable[ScanInput],
    out: Path,
    predictor: Predictor,
    on_result: OnResult,
    organs: tuple[str, ...] | None = None,
    on_progress: OnScanProgress = ignore_progress,
    ahead: bool = True,
    beside: ExtraOutputs = LABELS_ALONE,
) -> None:
    """Read, predict and write scans, to ``out/<case>.nii.gz``.

    Args:
        on_result: gets the outcomes in the order of the scans, each as soon as it is written, in the thread
            that writes; what it raises ends the batch.
        on_progress: called in the caller's thread.
        ahead: whether reading, computing and writing overlap. Then up to three scans are in memory (one
            coming, one computed, one being written), else one.
        beside: what is written with each label map.

    Raises:
        OutputError: a result cannot be written (the next one could not either).
        KeyboardInterrupt: at once, but for a result that is being written: it is written and settled.
    """
    with ThreadPoolExecutor(1, "zoomseg-write") as writer:
        _Batch(iter(scans), out, predictor, on_result, organs, on_progress, ahead, beside, writer).run()


@dataclass(frozen=True, eq=False)
class _Read:
    scan: ScanInput
    case: Case | Failed
    sha256: str
    seconds: float


@dataclass(frozen=True, eq=False)
class _Computed:
    scan: ScanInput
    sha256: str
    image: Volume
    result: Prediction
    seconds: dict[str, float]
    """By step so far."""
    total: float


@dataclass(eq=False)
class _Batch:
    scans: Iterator[ScanInput]
    out: Path
    predictor: Predictor
    settle: OnResult
    organs: tuple[str, ...] | None
    tell: OnScanProgress
    ahead: bool
    beside: ExtraOutputs
    writer: ThreadPoolExecutor
    coming: deque[Future[_Read]] = field(default_factory=deque)
    """At most one."""
    writing: Future[None] | None = None

    def run(self) -> None:
        while self.coming or self._begin_reading():
            self._do(self.coming.popleft())
        self._await_writing()

    def _do(self, reading: Future[_Read]) -> None:
        """One scan, to where the next one's turn comes."""
        with ResourceMonitor(self.predictor.device) as meter:
            began = time.perf_counter()
            read = reading.result()
            waited = time.perf_counter() - began
            if self.ahead:
                self._begin_reading()
            found = self._compute(read, waited)
            if not self.coming:  # nothing to overlap with: what writing takes is this scan's, too
                self._write(found, meter)
                self._await_writing()
                return
        self._write(found, meter)

    def _begin_reading(self) -> bool:
        """False if there is nothing left to read."""
        scan = next(self.scans, None)
        if scan is not None:
            self.coming.append(_in_background(lambda: self._read(scan)))
        return scan is not None

    def _read(self, scan: ScanInput) -> _Read:
        began = time.perf_counter()
        case = tried(scan.id, scan.paths[0], lambda: self._admitted(scan))
        seconds = time.perf_counter() - began
        if isinstance(case, Failed):
            return _Read(scan, case, "", seconds)
        image, sha256 = case
        return _Read(scan, image, sha256, seconds)

    def _admitted(self, scan: ScanInput) -> tuple[Case, str]:
        """A scan and its files' digest. It is refused before it is read if it is too large for the memory
        allowed, or its results cannot have its name."""
        for path in (
            result_path(self.out, scan),
            *self.beside.paths(self.out, scan, self.predictor.bundle.recipe),
        ):
            check_name(path)
        channels = self.predictor.channels
        if self.predictor.limits.any:
            grid, reading = reading_bytes(scan, channels_last=channels > 1)
            self.predictor.admit(grid, reading + self.beside.writing_bytes(grid), keep=self.beside.held)
        sha256 = _digest(scan)  # before the voxels: of a file that is replaced now, it is then the old one's
        return read_scan(scan, channels_last=channels > 1), sha256

    def _compute(self, read: _Read, waited: float) -> _Computed | Failed:
        scan, case = read.scan, read.case
        if isinstance(case, Failed):
            return case
        began = time.perf_counter()

        def tell(progress: TileProgress) -> None:
            self.tell(scan.id, progress)

        result = tried(
            scan.id,
            scan.paths[0],
            lambda: self.predictor.predict(
                case, self.organs, keep=self.beside.held, on_progress=tell, alone=self._await_others
            ),
        )
        if isinstance(result, Failed):
            return result
        total = read.seconds + time.perf_counter() - began
        seconds = {"read": read.seconds, "waited": waited, **result.seconds}
        return _Computed(scan, read.sha256, case.image, result, seconds, total)

    def _write(self, found: _Computed | Failed, meter: ResourceMonitor) -> None:
        self._await_writing()  # no more than one finished scan is held
        self.writing = self.writer.submit(self._finish, found, meter)

    def _await_writing(self) -> None:
        if self.writing is not None:
            self.writing.result()

    def _await_others(self) -> None:
        """Until neither the next scan is being read nor the last one written; what goes wrong there is told
        where each has its turn."""
        wait(self.coming)
        if self.writing is not None:
            wait([self.writing])

    def _finish(self, found: _Computed | Failed, meter: ResourceMonitor) -> None:
        if isinstance(found, Failed):
            self.settle(found)
            return
        scan = found.scan
        self.settle(tried(scan.id, scan.paths[0], lambda: self._written(found, meter)))

    def _written(self, found: _Computed, meter: ResourceMonitor) -> Segmented:
        began = time.perf_counter()
        scan, result, path = found.scan, found.result, result_path(self.out, found.scan)
        stage_outputs.forget(self.out, scan.id)
        write_results(
            self.out,
            scan,
            result.labels,
            self.beside.dicom,
            self.predictor.bundle.recipe.name,
            self.beside.uid_seed,
        )
        if self.beside.slicer:
            write_segmentation(segmentation_path(self.out, scan), result.labels, self.organs)
        if self.beside.stages:
            stage_outputs.write(self.out, scan, found.image.grid, self.predictor.bundle.recipe, result)
        if self.beside.probabilities:
            probability_maps.write(
                self.out,
                scan,
                found.image.grid,
                self.predictor.bundle.recipe,
                result,
                self.beside.probabilities,
            )
        # Last: where it is, all is there.
        write_labels(path, result.labels, like=scan.paths[0])
        write = time.perf_counter() - began
        meter.end()
        seconds = found.seconds | {"write": write, "total": found.total + write}
        return Segmented(
            scan.id,
            path,
            found.image,
            replace(result, stages={}, atlas=None),
            seconds,
            meter.usage,
            scan,
            found.sha256,
        )


def _digest(scan: ScanInput) -> str:
    """Empty where a file cannot be read: whoever reads its voxels says so."""
    try:
        return digests.of_scan(scan)
    except OSError:
        return ""


def tried(case: str, file: Path, work: Callable[[], T]) -> T | Failed:
    """What goes wrong with one scan is that scan's failure, be it a mistake of ours: the next ones may go
    well. What would go wrong with any, as no result can be written, is raised.

    Args:
        file: named where the error itself names none.
    """
    try:
        return work()
    except OutputError:
        raise
    except ZoomSegError as error:
        return Failed(case, printable(str(error)))
    except Exception as error:
        return Failed(case, printable(f"{file}: {why(error)}"))


def why(error: Exception) -> str:
    """What is no error of the user's, in one line: too little memory, or a mistake of ours, then with its
    place in the package."""
    if _out_of_memory(error):
        return "does not fit in memory"
    ours = Path(__file__).parents[1]
    inside = [f for f in traceback.extract_tb(error.__traceback__) if ours in Path(f.filename).parents]
    at = f" at {Path(inside[-1].filename).relative_to(ours)}:{inside[-1].lineno}" if inside else ""
    return (
        f"unexpected {type(error).__name__}{at} ({reason_of(error)}); please report it with the scan's header"
    )


def _out_of_memory(error: Exception) -> bool:
    """Torch has its own error for a full GPU, and none for a full machine."""
    full = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return full or "can't allocate memory" in str(error)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Work in a thread that is abandoned when the process ends; for executors' threads it would wait."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name="zoomseg-read", daemon=True).start()
    return future


def result_path(out: Path, scan: ScanInput) -> Path:
    """Where a scan's label map goes."""
    return out / result_name(scan.id)


def result_name(case: str) -> str:
    """What a case's label map is called."""
    return f"{case}.nii.gz"


def segmentation_path(out: Path, scan: ScanInput) -> Path:
    """Where a scan's segmentation for 3D Slicer goes: a folder of its own, as its suffix would make another
    case of it among the label maps."""
    return out / "slicer" / f"{scan.id}.seg.nrrd"
