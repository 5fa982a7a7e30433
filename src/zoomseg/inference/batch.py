"""Many scans with one loaded model: a scan that fails is reported, and the others are processed.

While a scan is computed, the next one is read and the last one written, each in a separate thread. The
computation stays in the caller's thread, where an interruption arrives.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from zoomseg.core.case import Case
from zoomseg.core.errors import MemoryLimitError, OutputError, ZoomSegError
from zoomseg.core.geometry import Grid
from zoomseg.core.memory import total_ram
from zoomseg.core.volume import Volume
from zoomseg.inference import probability_maps, stage_outputs
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.resource_usage import ResourceMonitor, ResourceUsage
from zoomseg.io import digests
from zoomseg.io.dicom.write.results import DicomResult, write_results
from zoomseg.io.files import check_name, out_of_memory, printable, same_file, why, writing
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
    """``read``, the steps of the computation, ``write``, and ``total`` for all of them including the time
    between; in addition ``waited``, the time for which the computation waited for the scan to be read."""
    usage: ResourceUsage
    """Of the process during the computation of this scan: from the wait for its reading to the start of the
    next scan; if there was none, until this one was written."""
    scan: ScanInput
    scan_sha256: str
    """Digest of the files from which it was read (see ``io.digests``)."""


@dataclass(frozen=True)
class Failed:
    """A scan that could not be segmented, and the reason."""

    case: str
    reason: str
    short: bool = False
    """Whether too little memory was free, but the machine has enough."""
    unexpected: bool = False
    """Whether the error was none of ours (see ``io.files.why``): after one of a GPU, a process may be unable
    to use it again."""


ScanOutcome = Segmented | Failed
OnResult = Callable[[ScanOutcome], None]
OnScanProgress = Callable[[str, TileProgress], None]
"""Called with the id and the progress of a scan."""

T = TypeVar("T")


@dataclass(frozen=True)
class ExtraOutputs:
    """Files to be written with each label map."""

    stages: bool = False
    """Predictions of every stage (see ``inference.stage_outputs``), which are then held as a whole."""
    dicom: tuple[DicomResult, ...] = ()
    """Objects that refer to the slices, for scans from DICOM."""
    slicer: bool = False
    """A segmentation for 3D Slicer (see ``segmentation_path``)."""
    probabilities: tuple[str, ...] = ()
    """Organs whose probability maps are written (see ``inference.probability_maps``); the stages' predictions
    are then held as a whole."""
    uid_seed: str = ""
    """Seed of the UIDs of ``dicom``; random if empty."""

    @property
    def held(self) -> bool:
        """Whether predictions of the stages are held as a whole."""
        return self.stages or bool(self.probabilities)

    def writing_bytes(self, grid: Grid) -> int:
        """Memory needed for writing in addition to the label map."""
        return probability_maps.writing_bytes(grid) if self.probabilities else 0

    def paths(self, out: Path, scan: ScanInput, recipe: Recipe) -> list[Path]:
        """Every file that may be written for a scan."""
        found = list(stage_outputs.paths(out, scan.id, recipe)) if self.stages else []
        found += [kind.path(out, scan.id) for kind in self.dicom]
        found += probability_maps.paths(out, scan.id, self.probabilities).values()
        return found + ([segmentation_path(out, scan)] if self.slicer else [])


NO_EXTRA_OUTPUTS = ExtraOutputs()


def ignore_progress(case: str, progress: TileProgress) -> None:
    pass


def segment_batch(
    scans: Iterable[ScanInput],
    out: Path,
    predictor: Predictor,
    on_result: OnResult,
    organs: tuple[str, ...] | None = None,
    on_progress: OnScanProgress = ignore_progress,
    ahead: bool = True,
    extra: ExtraOutputs = NO_EXTRA_OUTPUTS,
) -> None:
    """Read, predict and write scans, to ``out/<case>.nii.gz``.

    Args:
        on_result: receives the outcomes in the order of the scans, each as soon as it is written, in the
            thread that writes; its exceptions end the batch.
        on_progress: called in the caller's thread.
        ahead: whether reading, computing and writing overlap. Then up to three scans are in memory (one being
            read, one computed, one written), otherwise one.
        extra: files to be written with each label map.

    Raises:
        OutputError: a result cannot be written (neither could the next one).
        KeyboardInterrupt: at once, except that a result that is being written is completed.
    """
    with ThreadPoolExecutor(1, "zoomseg-write") as writer:
        _Batch(iter(scans), out, predictor, on_result, organs, on_progress, ahead, extra, writer).run()


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
    """By step, so far."""
    total: float


@dataclass(eq=False)
class _Batch:
    scans: Iterator[ScanInput]
    out: Path
    predictor: Predictor
    on_result: OnResult
    organs: tuple[str, ...] | None
    on_progress: OnScanProgress
    ahead: bool
    extra: ExtraOutputs
    writer: ThreadPoolExecutor
    coming: deque[Future[_Read]] = field(default_factory=deque)
    """At most one."""
    writing: Future[None] | None = None

    def run(self) -> None:
        while self.coming or self._begin_reading():
            self._do(self.coming.popleft())
        self._await_writing()

    def _do(self, reading: Future[_Read]) -> None:
        """Process one scan, until the next one can start."""
        with ResourceMonitor(self.predictor.device) as monitor:
            began = time.perf_counter()
            read = self._enough_memory(reading.result())
            waited = time.perf_counter() - began
            if self.ahead:
                self._begin_reading()
            found = self._compute(read, waited)
            if isinstance(found, Failed) and found.short and not found.unexpected and self._is_shared:
                found = self._compute_alone(read, waited)
            if not self.coming:  # nothing to overlap with: the time for writing belongs to this scan
                self._write(found, monitor)
                self._await_writing()
                return
        self._write(found, monitor)

    def _begin_reading(self) -> bool:
        """Start reading the next scan; False if there is none."""
        scan = next(self.scans, None)
        if scan is not None:
            self.coming.append(self._read_later(scan))
        return scan is not None

    def _read_later(self, scan: ScanInput) -> Future[_Read]:
        return _in_background(lambda: self._read(scan))

    def _enough_memory(self, read: _Read) -> _Read:
        """A scan for which too little memory was free while the one before was computed and written is read
        again: alone it may fit."""
        short = isinstance(read.case, Failed) and read.case.short
        if not (short and self.ahead and self.writing is not None):
            return read
        self._await_writing()
        return self._read(read.scan)

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
        limit, or its name is not valid for results."""
        for path in (
            result_path(self.out, scan),
            *self.extra.paths(self.out, scan, self.predictor.bundle.recipe),
        ):
            check_name(path)
        channels = self.predictor.channels
        if self.predictor.limits.any:
            grid, reading = reading_bytes(scan, channels_last=channels > 1)
            self.predictor.admit(grid, reading + self.extra.writing_bytes(grid), keep=self.extra.held)
        sha256 = _digest(scan)  # before the voxels: for a file replaced now, it is the old one's
        return read_scan(scan, channels_last=channels > 1), sha256

    def _compute(self, read: _Read, waited: float) -> _Computed | Failed:
        scan, case = read.scan, read.case
        if isinstance(case, Failed):
            return case
        began = time.perf_counter()

        def on_tiles(progress: TileProgress) -> None:
            self.on_progress(scan.id, progress)

        result = tried(
            scan.id,
            scan.paths[0],
            lambda: self.predictor.predict(
                case,
                self.organs,
                keep=self.extra.held,
                on_progress=on_tiles,
                wait_for_others=self._await_others,
            ),
        )
        if isinstance(result, Failed):
            return result
        total = read.seconds + time.perf_counter() - began
        seconds = {"read": read.seconds, "waited": waited, **result.seconds}
        return _Computed(scan, read.sha256, case.image, result, seconds, total)

    @property
    def _is_shared(self) -> bool:
        """Whether other scans may be in memory: one that is read ahead, or one that is being written."""
        return bool(self.coming) or (self.writing is not None and not self.writing.done())

    def _compute_alone(self, read: _Read, waited: float) -> _Computed | Failed:
        """A scan that did not fit into memory beside others is computed again without them: the next one is
        dropped, and read again afterwards."""
        self._await_others()
        dropped = [reading.result().scan for reading in self.coming]
        self.coming.clear()
        found = self._compute(read, waited)
        self.coming.extend(self._read_later(scan) for scan in dropped)
        return found

    def _write(self, found: _Computed | Failed, monitor: ResourceMonitor) -> None:
        self._await_writing()  # at most one finished scan is held
        self.writing = self.writer.submit(self._finish, found, monitor)

    def _await_writing(self) -> None:
        if self.writing is not None:
            self.writing.result()

    def _await_others(self) -> None:
        """Wait until no other scan is being read or written; errors there are reported in their order."""
        wait(self.coming)
        if self.writing is not None:
            wait([self.writing])

    def _finish(self, found: _Computed | Failed, monitor: ResourceMonitor) -> None:
        if isinstance(found, Failed):
            self.on_result(found)
            return
        scan = found.scan
        self.on_result(tried(scan.id, scan.paths[0], lambda: self._written(found, monitor)))

    def _written(self, found: _Computed, monitor: ResourceMonitor) -> Segmented:
        began = time.perf_counter()
        scan, result, path = found.scan, found.result, result_path(self.out, found.scan)
        stage_outputs.forget(self.out, scan.id)
        if not any(same_file(path, own) for own in scan.paths):
            with writing(path):  # an earlier run's: what is written now does not belong to it
                path.unlink(missing_ok=True)
        write_results(
            self.out,
            scan,
            result.labels,
            self.extra.dicom,
            self.predictor.bundle.recipe.name,
            self.extra.uid_seed,
        )
        if self.extra.slicer:
            write_segmentation(segmentation_path(self.out, scan), result.labels, self.organs)
        if self.extra.stages:
            stage_outputs.write(self.out, scan, found.image.grid, self.predictor.bundle.recipe, result)
        if self.extra.probabilities:
            probability_maps.write(
                self.out,
                scan,
                found.image.grid,
                self.predictor.bundle.recipe,
                result,
                self.extra.probabilities,
            )
        # Last: if it exists, everything has been written.
        write_labels(path, result.labels, like=scan.paths[0])
        write = time.perf_counter() - began
        monitor.end()
        seconds = found.seconds | {"write": write, "total": found.total + write}
        return Segmented(
            scan.id,
            path,
            found.image,
            replace(result, stages={}, atlas=None),
            seconds,
            monitor.usage,
            scan,
            found.sha256,
        )


def _digest(scan: ScanInput) -> str:
    """The digest of a scan's files; empty if a file cannot be read, which reading its voxels will report."""
    try:
        return digests.of_scan(scan)
    except OSError:
        return ""


def tried(case: str, file: Path, work: Callable[[], T]) -> T | Failed:
    """Do the work for one scan. Any error, even a bug of ours, is a failure of that scan only, as the next
    ones may succeed. Errors that would affect all scans, as no result can be written, are raised.

    Args:
        file: named if the error itself names none.
    """
    try:
        return work()
    except OutputError:
        raise
    except ZoomSegError as error:
        short = isinstance(error, MemoryLimitError) and error.needed <= total_ram()
        return Failed(case, printable(str(error)), short)
    except Exception as error:
        reason = printable(f"{file}: {why(error)}")
        return Failed(case, reason, out_of_memory(error), unexpected=True)


def _in_background(work: Callable[[], T]) -> Future[T]:
    """Do work in a thread that is abandoned when the process ends; Python would wait for threads of an
    executor."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised when the result is requested
            future.set_exception(error)

    threading.Thread(target=run, name="zoomseg-read", daemon=True).start()
    return future


def result_path(out: Path, scan: ScanInput) -> Path:
    """The path of a scan's label map."""
    return out / result_name(scan.id)


def result_name(case: str) -> str:
    """The file name of a case's label map."""
    return f"{case}.nii.gz"


def segmentation_path(out: Path, scan: ScanInput) -> Path:
    """The path of a scan's segmentation for 3D Slicer: in a separate folder, as its suffix would make it a
    case of its own among the label maps."""
    return out / "slicer" / f"{scan.id}.seg.nrrd"
