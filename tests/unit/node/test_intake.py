"""Completion of studies, and the ids of their jobs."""

from __future__ import annotations

import errno
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom.dataset import Dataset

from helpers.nodes import series, settings
from zoomseg.core.errors import OutputError
from zoomseg.node import intake as module
from zoomseg.node.intake import Intake, RuleModel, seed_of
from zoomseg.node.jobs import NodeJobs, SeriesState
from zoomseg.node.settings import NodeSettings
from zoomseg.node.store import Store, read_instance

MODELS = "fingerprint"
SECRET = "Secret^Name"


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(module, "time", found)
    return found


class Parts:
    """An intake without its thread; quiet after 30 s, or 2 s after a release."""

    def __init__(self, folder: Path, **rule: object) -> None:
        times = {"quiet_seconds": 30, "released_seconds": 2}
        self.settings: NodeSettings = settings(folder, complete=times, rules=[rule])
        self.jobs = NodeJobs(folder / "node")
        self.store = Store(folder / "node" / "received", 0)
        model = RuleModel("tiny", MODELS)
        self.intake = Intake(self.settings, self.store, self.jobs, {self.settings.rules[0].model: model})

    def take(self, image: Dataset, association: str) -> None:
        file = io.BytesIO()
        image.save_as(file, enforce_file_format=True)
        self.intake.take(read_instance(file.getvalue()), file.getvalue(), association)

    def count(self) -> int:
        """The number of jobs, after checking for complete studies."""
        self.intake.complete()
        return len(self.jobs.all())


@pytest.fixture
def parts(tmp_path: Path, clock: Clock) -> Iterator[Parts]:
    found = Parts(tmp_path)
    yield found
    found.jobs.close()


def test_a_released_study_is_complete_soon(parts: Parts, clock: Clock) -> None:
    for image in series()[:4]:
        parts.take(image, "a")
    clock.now += 29
    assert parts.count() == 0
    parts.intake.ended("a", released=True)
    parts.intake.ended("a", released=False)  # the connection closes after the release
    assert parts.count() == 1
    assert parts.jobs.all()[0].slices == 4


def test_a_study_that_several_associations_bring_waits_for_all(parts: Parts, clock: Clock) -> None:
    images = series()
    parts.take(images[0], "a")
    parts.take(images[1], "b")
    parts.intake.ended("a", released=True)
    clock.now += 10
    assert parts.count() == 0
    parts.intake.ended("b", released=True)
    assert parts.count() == 1


def test_a_study_whose_association_broke_waits_for_the_rest(parts: Parts, clock: Clock) -> None:
    images = series()
    parts.take(images[0], "a")
    parts.take(images[1], "a")
    parts.intake.ended("a", released=False)
    clock.now += 29
    assert parts.count() == 0
    clock.now += 1
    assert parts.count() == 1


def test_after_a_break_only_what_began_later_completes_a_study(parts: Parts, clock: Clock) -> None:
    images = series()
    parts.take(images[0], "a")
    parts.take(images[1], "b")
    parts.intake.ended("a", released=False)
    parts.intake.ended("b", released=True)
    clock.now += 29
    assert parts.count() == 0
    parts.take(images[2], "c")
    parts.intake.ended("c", released=True)
    clock.now += 2
    assert parts.count() == 1


def test_the_series_with_the_most_images_may_follow_in_an_association_of_its_own(
    tmp_path: Path, clock: Clock
) -> None:
    """Archives that route series send each as soon as it is stable."""
    parts = Parts(tmp_path, one_per_study=True)
    small, large = series(1)[:3], series(2)[:6]
    for association, images in (("a", small), ("b", large)):
        for image in images:
            parts.take(image, association)
        parts.intake.ended(association, released=True)
        clock.now += 29
        assert parts.count() == 0
    clock.now += 1
    assert parts.count() == 1
    assert parts.jobs.all()[0].series_uid == large[0].SeriesInstanceUID
    parts.jobs.close()


def test_of_a_study_one_series_is_taken_also_if_it_arrives_again_with_another(
    tmp_path: Path, clock: Clock
) -> None:
    parts = Parts(tmp_path, one_per_study=True)
    small, large = series(1)[:3], series(2)[:6]
    for images in (small, [*small, *large]):
        for image in images:
            parts.take(image, "a")
        parts.intake.ended("a", released=True)
        clock.now += 30
        assert parts.count() == 1
    why = {one.series_uid: one.why for one in parts.jobs.last_series()}
    assert why[large[0].SeriesInstanceUID] == "rule 'all' takes one series of a study, and took another"
    parts.jobs.close()


def test_studies_are_complete_each_by_itself(parts: Parts, clock: Clock) -> None:
    for study in ("1.2.1", "1.2.2"):
        for image in series(study=study)[:3]:
            parts.take(image, study)
    parts.intake.ended("1.2.1", released=True)
    clock.now += 3
    assert parts.count() == 1
    assert parts.jobs.all()[0].study_uid == "1.2.1"


def test_what_cannot_be_decided_is_tried_again(
    parts: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image in series()[:3]:
        parts.take(image, "a")
    parts.intake.ended("a", released=True)
    clock.now += 3

    def full(*arguments: object) -> None:
        raise OutputError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(parts.store, "link", full)
        assert parts.count() == 0
    clock.now += 3
    assert parts.count() == 1
    assert parts.jobs.last_series()[0].state is SeriesState.TAKEN


def test_an_unexpected_error_of_one_study_stops_no_other(
    parts: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for study in ("1.2.1", "1.2.2"):
        for image in series(study=study)[:3]:
            parts.take(image, study)
        parts.intake.ended(study, released=True)
    clock.now += 3
    decide = parts.intake._decide

    def fail(study_uid: str, keys: set[str]) -> None:
        if study_uid == "1.2.1":
            raise ValueError(SECRET)
        decide(study_uid, keys)

    with monkeypatch.context() as patch:
        patch.setattr(parts.intake, "_decide", fail)
        assert parts.count() == 1
    assert "ValueError" in caplog.text
    assert "Secret" not in caplog.text
    clock.now += 3
    assert parts.count() == 2


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()])
def test_a_series_that_cannot_be_read_for_a_moment_is_decided_later(
    parts: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for image in series()[:3]:
        parts.take(image, "a")
    parts.intake.ended("a", released=True)
    clock.now += 3

    def fail(path: Path) -> bytes:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        assert parts.count() == 0
    clock.now += 3
    assert parts.count() == 1
    assert parts.jobs.all()[0].slices == 3


def test_damaged_files_hold_up_no_other_file_and_no_other_series(parts: Parts, clock: Clock) -> None:
    for image in [*series(1)[:3], *series(2)[:3]]:
        parts.take(image, "a")
    parts.intake.ended("a", released=True)
    one, two = parts.store.series()
    for file in [*parts.store.files(one), parts.store.files(two)[0]]:
        file.write_bytes(b"damaged")
    clock.now += 3
    assert parts.count() == 1
    assert parts.jobs.all()[0].series == two
    damaged = parts.jobs.series(one)
    assert damaged is not None
    assert (damaged.state, damaged.why) == (SeriesState.LEFT, "none of its stored files is whole")


def test_a_series_that_the_next_node_cannot_read_at_first_is_decided_later(
    parts: Parts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image in series()[:3]:
        parts.take(image, "a")
    parts.intake._open.clear()

    def fail(path: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        parts.intake._recover()
    clock.now += 31
    assert parts.count() == 1


def test_what_an_earlier_node_had_not_decided_is_decided(parts: Parts, clock: Clock, tmp_path: Path) -> None:
    """Including a node that was killed before it recorded the series."""
    for image in series()[:3]:
        parts.take(image, "a")
    parts.jobs.forget_series(parts.store.series()[0])
    parts.jobs.close()
    again = Parts(tmp_path)
    again.intake._recover()
    assert [one.state for one in again.jobs.last_series()] == [SeriesState.RECEIVING]
    clock.now += 31
    assert again.count() == 1
    again.jobs.close()


@pytest.mark.parametrize(
    "change", [{"StudyInstanceUID": "1.2.4"}, {"PatientID": "p2"}, {"PixelSpacing": [2, 2]}]
)
def test_a_corrected_series_is_another_job(parts: Parts, clock: Clock, change: dict[str, object]) -> None:
    """Sent again after its images have been deleted, or to another study."""
    for corrected in (False, True, True):
        for image in series()[:3]:
            for keyword, value in change.items() if corrected else ():
                setattr(image, keyword, value)
            parts.take(image, "a")
        parts.intake.ended("a", released=True)
        clock.now += 3
        assert parts.count() == 1 + corrected
        for key in parts.store.series():
            parts.store.remove(key)
    assert len({job.seed for job in parts.jobs.all()}) == 2


def test_a_seed_stands_for_images_model_and_settings(tmp_path: Path) -> None:
    rule = settings(tmp_path).rules[0]
    seeds = [
        seed_of("1.2", ["a", "b"], rule, "model"),
        seed_of("1.2", ["a"], rule, "model"),
        seed_of("1.3", ["a", "b"], rule, "model"),
        seed_of("1.2", ["a", "b"], rule, "other"),
        seed_of("1.2", ["a", "b"], rule.model_copy(update={"organs": ("liver",)}), "model"),
    ]
    assert len(set(seeds)) == 5
    moved = rule.model_copy(update={"name": "renamed", "send_to": ("x",), "min_slices": 3})
    assert seed_of("1.2", ["a", "b"], moved, "model") == seeds[0]
