"""Many scans: one that fails is reported, the others are processed; reading, computing and writing
overlap."""

from __future__ import annotations

import re
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case
from helpers.untrained_models import predictor, valid_bundle
from zoomseg.core.case import Case
from zoomseg.core.errors import MemoryLimitError, OutputError, ScanError
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.inference import batch
from zoomseg.inference.batch import Failed, Segmented, result_path, segment_batch
from zoomseg.inference.memory_limits import MemoryLimits
from zoomseg.inference.predictor import Predictor
from zoomseg.inference.resource_usage import ResourceUsage
from zoomseg.io.scans import ScanInput, read_label_values, read_scan, write_image, write_labels
from zoomseg.pipeline.cascade import Prediction
from zoomseg.pipeline.sliding_window import TileProgress

PATIENCE = 120.0
"""Timeout in seconds after which steps do not overlap as they should."""


@pytest.fixture
def scans(tmp_path: Path) -> tuple[ScanInput, ...]:
    for seed in (1, 3):
        write_image(tmp_path / f"case_{seed}.nii.gz", tiny_case(seed)[0])
    (tmp_path / "case_2.nii.gz").write_bytes(b"not a scan")
    return tuple(ScanInput(f"case_{n}", (tmp_path / f"case_{n}.nii.gz",)) for n in (1, 2, 3))


def outcomes(
    scans: tuple[ScanInput, ...], out: Path, model: Predictor, ahead: bool = True
) -> list[Segmented | Failed]:
    told: list[Segmented | Failed] = []
    segment_batch(scans, out, model, told.append, ahead=ahead)
    return told


def test_good_bad_good(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    one, two, three = outcomes(scans, out, predictor())
    assert isinstance(one, Segmented)
    assert isinstance(two, Failed)
    assert isinstance(three, Segmented)
    assert two.case == "case_2"
    assert "case_2.nii.gz" in two.reason
    assert not two.unexpected
    for done in (one, three):
        assert done.path == result_path(out, ScanInput(done.case, ()))
        values, grid = read_label_values(done.path)
        assert grid.same_as(done.image.grid)
        decoded = done.result.schema.decode(done.result.labels.data)
        assert (values == decoded).all()
        parts = [s for step, s in done.seconds.items() if step != "total"]
        assert done.seconds["total"] >= sum(parts) - done.seconds["waited"]
        mean_ram_mb = done.usage.ram_area_mb_s / done.seconds["total"]
        assert 10 < mean_ram_mb < 2 * done.usage.peak_ram_mb  # the computation, and little more
        assert (done.usage.peak_vram_mb, done.usage.vram_area_mb_s) == (0, 0)
    assert not (out / "case_2.nii.gz").exists()


def test_whatever_a_reader_throws_fails_that_scan_alone(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(scan: ScanInput, channels_last: bool) -> Volume:
        if scan.id == "case_1":
            raise ValueError("w2 should be positive")
        return read_scan(scan, channels_last)

    monkeypatch.setattr(batch, "read_scan", read)
    one, _, three = outcomes(scans, tmp_path, predictor())
    assert isinstance(one, Failed)
    assert re.search(r"case_1\.nii\.gz: unexpected ValueError .*\(w2 should be positive\)", one.reason)
    assert one.unexpected
    assert isinstance(three, Segmented)


@pytest.mark.parametrize("extra", [batch.NO_EXTRA_OUTPUTS, batch.ExtraOutputs(slicer=True)])
def test_a_name_too_long_for_a_result_fails_that_scan_alone_unread(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: batch.ExtraOutputs
) -> None:
    """248 letters and ``.nii.gz`` are 255 bytes, which every file system takes; ``.seg.nrrd`` is longer."""
    read: list[str] = []
    monkeypatch.setattr(
        batch, "read_scan", lambda s, channels_last: read.append(s.id) or read_scan(s, channels_last)
    )
    named = [ScanInput("a" * n, scans[0].paths) for n in (248, 249)]
    told: list[Segmented | Failed] = []
    segment_batch(named, tmp_path, predictor(), told.append, extra=extra)
    good = [outcome.case for outcome in told if isinstance(outcome, Segmented)]
    assert good == ([] if extra.slicer else ["a" * 248]) == read
    for outcome in told:
        if isinstance(outcome, Failed):
            assert "too many for its folder; rename the scan" in outcome.reason
    assert sorted(p.name for p in tmp_path.glob("a*")) == [f"{name}.nii.gz" for name in good]


def test_a_mistake_in_writing_fails_that_scan_alone(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, labels: LabelMap, like: Path) -> None:
        if path.name == "case_1.nii.gz":
            raise KeyError("anything")
        write_labels(path, labels, like)

    monkeypatch.setattr(batch, "write_labels", write)
    out = tmp_path / "out"
    out.mkdir()
    one, _, three = outcomes(scans, out, predictor())
    assert isinstance(one, Failed)
    assert "unexpected KeyError" in one.reason
    assert isinstance(three, Segmented)


def test_a_label_map_is_there_only_where_all_else_is(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        raise ScanError("slices of two patients")

    monkeypatch.setattr(batch, "write_results", refuse)
    out = tmp_path / "out"
    out.mkdir()
    (out / "case_1.nii.gz").write_bytes(b"of an earlier run")
    assert all(isinstance(outcome, Failed) for outcome in outcomes(scans, out, predictor()))
    assert list(out.iterdir()) == []


def test_whatever_goes_wrong_in_computing_fails_that_scan_alone(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory")

    model = predictor()
    monkeypatch.setattr(model, "predict", too_large)
    (outcome,) = outcomes(scans[:1], tmp_path, model)
    assert isinstance(outcome, Failed)
    assert "does not fit in memory" in outcome.reason

    def bug(*_: object, **__: object) -> None:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(model, "predict", bug)
    (outcome,) = outcomes(scans[:1], tmp_path, model)
    assert isinstance(outcome, Failed)
    place = r"unexpected RuntimeError at inference/batch\.py:\d+ \(shapes differ\); please report it"
    assert re.search(place, outcome.reason)


def test_a_place_that_cannot_be_written_ends_the_batch(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(batch, "write_labels", full)
    with pytest.raises(OutputError, match="no room"):
        outcomes(scans, tmp_path, predictor())


@pytest.fixture
def turns() -> Iterator[None]:
    """Switch threads every 0.1 ms. By default it is every 5 ms, and a thread that computes in small steps
    would wait that long for the interpreter before each step."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("turns")
def test_headers_are_judged_while_a_network_with_valid_padding_computes(
    scans: tuple[ScanInput, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeatedly, until the previous scan is computed: neither may disturb the other."""
    model = valid_bundle()
    alone = Predictor(model, CPU)
    expected = [r.flops for r in alone.predict(read_scan(scans[0]), keep=False).records]
    made = Predictor(model, CPU, limits=MemoryLimits(CPU, "free"))
    judge, compute, computed = made.admit, made.predict, threading.Semaphore(1)  # none before the first

    def admit(*given: Any, keep: bool) -> None:
        ends = time.monotonic() + PATIENCE
        while True:
            made._costs["coarse"]._alive.clear()
            judge(*given, keep=keep)
            if computed.acquire(blocking=False):
                return
            assert time.monotonic() < ends

    def predict(*given: Any, **options: Any) -> Prediction:
        try:
            return compute(*given, **options)
        finally:
            computed.release()

    monkeypatch.setattr(made, "admit", admit)
    monkeypatch.setattr(made, "predict", predict)
    out = tmp_path / "out"
    out.mkdir()
    told = outcomes((scans[0],) * 4, out, made)
    assert [outcome.reason for outcome in told if isinstance(outcome, Failed)] == []
    found = [[r.flops for r in outcome.result.records] for outcome in told if isinstance(outcome, Segmented)]
    assert found == [expected] * 4


# --- overlap: readers, networks and writers that wait for each other ------------------------------


class Works:
    """Replaces reading, predicting and writing; ``log`` lists starts and ends in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model = predictor()
        self.log: list[str] = []
        self.images: weakref.WeakSet[Volume] = weakref.WeakSet()
        self.alive: list[int] = []
        self._happened = threading.Condition()
        self.on_read: Callable[[int], None] = lambda n: None
        self.on_predict: Callable[[int], None] = lambda n: None
        self.on_write: Callable[[int], None] = lambda n: None
        monkeypatch.setattr(batch, "read_scan", lambda scan, **options: self.read(scan.paths, **options))
        monkeypatch.setattr(batch, "write_labels", self.write)
        monkeypatch.setattr(self.model, "predict", self.predict)

    def run(self, count: int, ahead: bool = True) -> list[Segmented | Failed]:
        scans = tuple(ScanInput(str(n), (Path(str(n)),)) for n in range(count))
        told: list[Segmented | Failed] = []

        def on_result(outcome: Segmented | Failed) -> None:
            self.say(f"result {outcome.case}")
            told.append(outcome)

        segment_batch(scans, Path("out"), self.model, on_result, ahead=ahead)
        return told

    def say(self, text: str) -> None:
        with self._happened:
            self.log.append(text)
            self._happened.notify_all()

    def await_(self, text: str) -> None:
        with self._happened:
            assert self._happened.wait_for(lambda: text in self.log, PATIENCE), f"no '{text}' in {self.log}"

    def read(self, paths: tuple[Path, ...], channels_last: bool) -> Case:
        n = int(paths[0].name)
        self.say(f"read {n}")
        image = tiny_case(n)[0]
        self.images.add(image)
        self.on_read(n)
        self.say(f"read {n} done")
        return Case(paths[0].name, image)

    def predict(
        self, case: Case, *_: object, wait_for_others: Callable[[], None], **__: object
    ) -> Prediction:
        self.alone = wait_for_others
        self.say(f"predict {case.id}")
        self.on_predict(int(case.id))
        self.alive.append(len(self.images))
        grid = case.image.grid
        labels = LabelMap(torch.zeros(grid.shape, dtype=torch.uint8).numpy(), grid, SCHEMA)
        return Prediction(case.id, labels, {}, {}, (), {"prepare": 0.0})

    def write(self, path: Path, labels: LabelMap, like: Path) -> None:
        self.say(f"write {like.name}")
        self.on_write(int(like.name))
        self.say(f"write {like.name} done")


@pytest.fixture
def works(monkeypatch: pytest.MonkeyPatch) -> Works:
    return Works(monkeypatch)


def test_the_next_is_read_and_the_last_written_while_one_is_computed(works: Works) -> None:
    """Each of the three waits until the others have started: without overlap this would hang."""

    def predict(n: int) -> None:
        if n < 3:
            works.await_(f"read {n + 1} done")
        assert f"read {n + 2}" not in works.log  # one scan ahead, not two
        if n > 0:
            works.await_(f"write {n - 1}")

    works.on_predict = predict
    works.on_write = lambda n: works.await_(f"predict {n + 1}") if n < 3 else None
    told = works.run(4)
    assert [(type(t), t.case) for t in told] == [(Segmented, str(n)) for n in range(4)]
    assert works.log.index("result 0") < works.log.index("predict 2")  # at most one finished scan is held


def test_one_after_the_other_if_asked(works: Works) -> None:
    told = works.run(3, ahead=False)
    steps = ("read {}", "read {} done", "predict {}", "write {}", "write {} done", "result {}")
    assert works.log == [step.format(n) for n in range(3) for step in steps]
    assert [t.case for t in told] == ["0", "1", "2"]


@pytest.mark.parametrize(("ahead", "most"), [(True, 3), (False, 1)])
def test_scans_in_memory(works: Works, ahead: bool, most: int) -> None:
    """Outcomes are released as soon as they are reported."""

    def predict(n: int) -> None:
        if ahead and n < 5:
            works.await_(f"read {n + 1} done")

    works.on_predict = predict
    if ahead:
        works.on_write = lambda n: works.await_(f"predict {n + 1}") if n < 5 else None
    scans = tuple(ScanInput(str(n), (Path(str(n)),)) for n in range(6))
    segment_batch(scans, Path("out"), works.model, lambda _: None, ahead=ahead)
    assert len(works.alive) == 6
    assert max(works.alive) <= most
    assert len(works.images) == 0


def test_what_is_measured_is_measured_alone_and_reading_overlaps_again(works: Works) -> None:
    """The second scan is measured while the third is to be read and the first to be written; both are
    awaited. The others measure nothing, and the next ones are read meanwhile."""

    def read(n: int) -> None:
        if n == 2:
            works.await_("measure")
            time.sleep(0.1)

    def predict(n: int) -> None:
        if n == 1:
            works.say("measure")
            works.alone()
            works.say("measured")
        elif n < 3:
            works.await_(f"read {n + 1} done")

    def write(n: int) -> None:
        if n == 0:
            works.await_("measure")
            time.sleep(0.1)

    works.on_read, works.on_predict, works.on_write = read, predict, write
    told = works.run(4)
    assert [t.case for t in told if isinstance(t, Segmented)] == ["0", "1", "2", "3"]
    at = works.log.index
    assert at("measure") < min(at("read 2 done"), at("result 0"))
    assert max(at("read 2 done"), at("result 0")) < at("measured")


def test_a_measurement_does_not_tell_what_went_wrong_with_others(works: Works) -> None:
    """It waits until they have failed; the scan that is being computed is still completed."""

    def read(n: int) -> None:
        if n == 1:
            raise ScanError("read 1 failed")

    works.on_read, works.on_predict = read, lambda n: works.alone()
    told = works.run(3)
    assert [t.reason if isinstance(t, Failed) else t.case for t in told] == ["0", "read 1 failed", "2"]


@pytest.mark.parametrize("times", [1, 2])
def test_a_scan_that_did_not_fit_beside_the_one_before_is_read_again_alone(works: Works, times: int) -> None:
    """Once: if it does not fit alone either, it has failed. The next is read after that."""
    refused: list[str] = []

    def read(n: int) -> None:
        if n == 1 and len(refused) < times:
            refused.append("too large")
            raise MemoryLimitError("too large", 1)

    works.on_read = read
    works.on_predict = lambda n: works.await_("read 1") if n == 0 else None
    works.on_write = lambda n: time.sleep(0.1)
    told = works.run(3)
    found = [t.reason if isinstance(t, Failed) else t.case for t in told]
    assert found == ["0", "1" if times == 1 else "too large", "2"]
    again = len(works.log) - 1 - works.log[::-1].index("read 1")
    assert works.log.count("read 1") == 2
    assert works.log.index("result 0") < again < works.log.index("read 2")


@pytest.mark.parametrize("times", [1, 2])
def test_a_scan_that_did_not_fit_beside_the_next_is_computed_again_alone(works: Works, times: int) -> None:
    """Once; the next one, which is dropped, is read again after that."""
    refused: list[int] = []

    def predict(n: int) -> None:
        if n == 0 and len(refused) < times:
            works.await_("read 1 done")
            refused.append(len(works.images))
            raise MemoryLimitError("too large", 1)

    works.on_predict = predict
    told = works.run(3)
    found = [t.reason if isinstance(t, Failed) else t.case for t in told]
    assert found == ["0" if times == 1 else "too large", "1", "2"]
    assert works.log.count("predict 0") == 2
    assert works.log.count("read 1") == 2
    again = len(works.log) - 1 - works.log[::-1].index("read 1")
    assert again > len(works.log) - 1 - works.log[::-1].index("predict 0")
    if times == 2:
        assert refused == [2, 1]  # scans in memory


def test_a_scan_that_is_alone_is_computed_once(works: Works) -> None:
    def predict(n: int) -> None:
        raise MemoryLimitError("too large", 1)

    works.on_predict = predict
    assert [type(t) for t in works.run(1)] == [Failed]
    assert works.log.count("predict 0") == 1


def test_what_does_not_fit_alone_is_read_once(works: Works) -> None:
    def read(n: int) -> None:
        raise MemoryLimitError("too large", 1)

    works.on_read = read
    assert [type(t) for t in works.run(1)] == [Failed]
    assert works.log.count("read 0") == 1
    assert [type(t) for t in works.run(2, ahead=False)] == [Failed, Failed]
    assert works.log.count("read 1") == 1


def test_seconds_of_reading_and_those_waited_for_it(works: Works) -> None:
    works.on_read = lambda n: time.sleep(0.2)
    works.on_predict = lambda n: works.await_("read 1 done")
    one, two = works.run(2)
    assert isinstance(one, Segmented)
    assert isinstance(two, Segmented)
    assert one.seconds["waited"] > 0.1  # nothing to overlap with
    assert two.seconds["waited"] < 0.1
    assert two.seconds["read"] >= 0.2
    assert list(one.seconds) == ["read", "waited", "prepare", "write", "total"]
    parts = one.seconds["read"] + one.seconds["prepare"] + one.seconds["write"]
    assert one.seconds["total"] >= parts


def test_failures_belong_to_their_scans(works: Works) -> None:
    def fail(step: str, at: int) -> Callable[[int], None]:
        def check(n: int) -> None:
            if n == at:
                raise ScanError(f"{step} {n} failed")

        return check

    works.on_read, works.on_predict, works.on_write = fail("read", 0), fail("predict", 2), fail("write", 3)
    told = works.run(5)
    assert [t.reason if isinstance(t, Failed) else t.case for t in told] == [
        "read 0 failed",
        "1",
        "predict 2 failed",
        "write 3 failed",
        "4",
    ]


def test_no_room_for_one_result_ends_the_batch(works: Works) -> None:
    def full(n: int) -> None:
        raise OutputError("no room")

    works.on_write = full
    with pytest.raises(OutputError, match="no room"):
        works.run(4)
    assert "write 1" not in works.log
    assert "predict 2" not in works.log


def test_an_interruption_keeps_what_is_being_written_and_stops(works: Works) -> None:
    stopped = threading.Event()

    def predict(n: int) -> None:
        if n == 1:
            works.await_("read 2")
            works.await_("write 0")
            works.say("interrupted")
            raise KeyboardInterrupt

    def read(n: int) -> None:
        if n == 2:
            stopped.wait(PATIENCE)

    works.on_predict, works.on_read = predict, read
    works.on_write = lambda n: works.await_("interrupted")
    with pytest.raises(KeyboardInterrupt):
        works.run(4)
    assert works.log[-3:] == ["interrupted", "write 0 done", "result 0"]  # scan 2 is still being read
    stopped.set()


def test_scans_are_metered_in_turn_the_last_with_its_writing(
    works: Works, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Overlapping monitors would count memory twice, and reset each other's peaks."""

    class Meter:
        usage = ResourceUsage(0, 0, 0, 0, 0, 0)

        def __init__(self, place: torch.device) -> None:
            self.ended = False

        def __enter__(self) -> Meter:
            works.say("begin")
            return self

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            self.end()

        def end(self) -> None:
            if not self.ended:
                works.say("end")
            self.ended = True

    monkeypatch.setattr(batch, "ResourceMonitor", Meter)
    works.on_write = lambda n: works.await_(f"predict {n + 1}") if n < 2 else None
    works.run(3)
    assert [step for step in works.log if step in ("begin", "end")] == ["begin", "end"] * 3
    assert works.log[-3:] == ["write 2 done", "end", "result 2"]
    works.log.clear()
    works.on_write = lambda n: None
    works.run(2, ahead=False)
    assert works.log.index("end") > works.log.index("write 0 done")


def test_progress_names_the_scan(scans: tuple[ScanInput, ...], tmp_path: Path) -> None:
    told: list[tuple[str, TileProgress]] = []
    outcomes: list[Segmented | Failed] = []
    tell = lambda case, progress: told.append((case, progress))  # noqa: E731
    segment_batch(scans, tmp_path, predictor(), outcomes.append, on_progress=tell)
    assert told[0][0] == "case_1"
    assert {case for case, _ in told} == {"case_1", "case_3"}
    (last,) = [o.result.records[-1] for o in outcomes if isinstance(o, Segmented) and o.case == "case_3"]
    assert told[-1] == ("case_3", TileProgress(last.stage, last.tiles, last.tiles))
