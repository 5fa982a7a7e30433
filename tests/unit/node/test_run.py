"""A complete node: results of received images are returned exactly once, even after failures."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from helpers.nodes import (
    HereWorker,
    archive,
    association,
    ended,
    finished,
    push,
    running,
    series,
    settings,
    until,
)
from helpers.orthanc import free_port
from helpers.untrained_models import untrained_bundle
from zoomseg.core.errors import OutputError, ZoomSegError
from zoomseg.inference import batch
from zoomseg.io import bundle
from zoomseg.node import jobs as node_jobs
from zoomseg.node import run
from zoomseg.node.jobs import NO_DESTINATION, SeriesState
from zoomseg.node.run import Node, found_models
from zoomseg.node.settings import SettingsError
from zoomseg.serve.job_queue import State


def states(node: Node) -> dict[str, SeriesState]:
    return {one.series_uid: one.state for one in node.jobs.last_series()}


def decided(node: Node, count: int) -> dict[str, SeriesState]:
    """The states of the series, after this many have been decided."""

    def all_decided() -> dict[str, SeriesState]:
        found = states(node)
        return found if len(found) == count and SeriesState.RECEIVING not in found.values() else {}

    found: dict[str, SeriesState] = until(all_decided)
    return found


def failing_once(work: Callable[..., Any]) -> Callable[..., Any]:
    def failing(*arguments: object) -> Any:
        if failing.left.pop() if failing.left else False:  # type: ignore[attr-defined]
            raise ValueError("unexpected")
        return work(*arguments)

    failing.left = [True]  # type: ignore[attr-defined]
    return failing


def test_a_series_comes_back_as_seg_rtstruct_and_report(tmp_path: Path) -> None:
    images = series()
    with archive() as there, running(settings(tmp_path, there)) as node:
        assert set(push(node, images)) == {0}
        (job,) = finished(node)
        assert there.modalities() == ["RTSTRUCT", "SEG", "SR"]
        for one in there.objects:
            assert one.StudyInstanceUID == images[0].StudyInstanceUID
            assert one.PatientName == "Doe^Jane"
        assert [organ.name for organ in job.found if organ.volume_ml] != []
        assert job.deliveries[0].attempts == 1
        assert node.receiver.counts["stored"] == len(images)


def test_what_arrives_twice_is_done_once(tmp_path: Path) -> None:
    images = series()
    with archive() as there:
        with running(settings(tmp_path, there)) as node:
            push(node, images)
            finished(node)
            push(node, images)
            decided(node, 1)
            finished(node)
        with running(settings(tmp_path, there)) as node:  # nor after a restart
            push(node, images)
            decided(node, 1)
            finished(node)
        assert there.attempts == 3


def test_a_rerun_has_the_same_uids_and_another_model_or_organ_has_others(tmp_path: Path) -> None:
    images, uids = series(), []
    for folder, rule in (("a", {}), ("b", {}), ("c", {"organs": ["left kidney"]})):
        with archive() as there, running(settings(tmp_path / folder, there, rules=[rule])) as node:
            push(node, images)
            finished(node)
            uids.append({(one.SeriesInstanceUID, one.SOPInstanceUID) for one in there.objects})
    assert len(uids[0]) == 3
    assert uids[0] == uids[1]
    assert not uids[0] & uids[2]


def test_results_that_come_back_make_no_job(tmp_path: Path) -> None:
    """Neither with their own SOP class, nor with that of images."""
    with archive() as there, running(settings(tmp_path, there)) as node:
        push(node, series())
        finished(node)
        seg = next(one for one in there.objects if one.Modality == "SEG")
        with association(node, [seg]) as found:
            assert seg.SOPClassUID not in [context.abstract_syntax for context in found.accepted_contexts]
            with pytest.raises(ValueError, match="No presentation context"):
                found.send_c_store(seg)
        time.sleep(0.5)
        assert len(node.jobs.all()) == 1


def test_of_a_study_the_rules_choose_and_the_rest_is_named(tmp_path: Path) -> None:
    rule = {"one_per_study": True, "min_slices": 3}
    large, small, scout, mr = series(1), series(2, slices=9), series(3, slices=2), series(4, Modality="MR")
    with archive() as there, running(settings(tmp_path, there, rules=[rule])) as node:
        push(node, [*large, *small, *scout, *mr])
        (job,) = finished(node)
        assert job.series_uid == large[0].SeriesInstanceUID
        why = {one.series_uid[-1]: one.why for one in node.jobs.last_series()}
        assert why == {
            "1": "rule 'all'",
            "2": "rule 'all' takes one series of a study, and took another",
            "3": "no rule fits (all: 2 slices, fewer than 3)",
            "4": "no rule fits (all: not CT)",
        }
        assert there.modalities() == ["RTSTRUCT", "SEG", "SR"]


def test_a_series_is_complete_when_it_is_quiet_even_if_nobody_released(tmp_path: Path) -> None:
    images = series()
    with running(settings(tmp_path)) as node:
        push(node, images[:5], release=False)  # aborted: the rest follows
        time.sleep(0.7)
        assert states(node) == {images[0].SeriesInstanceUID: SeriesState.RECEIVING}
        push(node, images[5:])
        (job,) = finished(node)
        assert job.slices == len(images)


def test_half_a_series_is_done_again_when_the_rest_comes(tmp_path: Path) -> None:
    images = series()
    with archive() as there, running(settings(tmp_path, there)) as node:
        push(node, images[:-4])
        ended(node)
        push(node, images[-4:])
        first, second = finished(node, 2)
        assert (first.slices, second.slices) == (len(images) - 4, len(images))
        assert len({one.SOPInstanceUID for one in there.objects}) == 6
        assert first.series == second.series


def test_half_a_series_with_gaps_is_refused_by_name_and_kept(tmp_path: Path) -> None:
    images = series()
    with running(settings(tmp_path)) as node:
        push(node, images[:3] + images[-3:])
        (job,) = ended(node)
        assert job.state is State.FAILED
        assert "missing" in str(job.error)
        assert len(node.store.files(job.series)) == 6
        push(node, images[3:-3])
        assert [job.state for job in ended(node, 2)] == [State.FAILED, State.FINISHED]


def test_two_series_under_one_uid_are_refused_by_name_and_kept(tmp_path: Path) -> None:
    images, others = series(1), series(2, PatientID="p2", SeriesInstanceUID="1.2.3.1")
    with running(settings(tmp_path)) as node:
        assert set(push(node, images + others)) == {0}
        (job,) = ended(node)
        assert job.state is State.FAILED
        assert "2 series" in str(job.error)
        assert len(node.store.files(job.series)) == len(images) + len(others)


def test_a_failed_job_begins_again_when_its_series_is_sent_again(tmp_path: Path) -> None:
    images = series()
    broken = settings(tmp_path, rules=[{"min_slices": 2}])
    with running(broken) as node:
        push(node, images[:3] + images[-3:])
        assert ended(node)[0].state is State.FAILED
        push(node, images[:3] + images[-3:])
        until(lambda: len(node.runner._worker.tasks) == 2)  # type: ignore[union-attr]
        assert ended(node)[0].state is State.FAILED


def test_a_full_disk_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_jobs, "INITIAL_BACKOFF_SECONDS", 0.2)
    left, write_labels = [True], batch.write_labels

    def full_once(*arguments: Any, **options: Any) -> None:
        if left.pop() if left else False:
            raise OutputError("No space left on device")
        write_labels(*arguments, **options)

    monkeypatch.setattr(batch, "write_labels", full_once)
    with archive() as there, running(settings(tmp_path, there)) as node:
        push(node, series())
        (job,) = finished(node)
        assert (job.starts, there.modalities()) == (1, ["RTSTRUCT", "SEG", "SR"])


def test_a_stopped_node_goes_on_where_it_was(tmp_path: Path) -> None:
    """Received but not complete; queued; segmented but not sent."""
    one, two, three = series(1, "1.2.4"), series(1, "1.2.5"), series(1, "1.2.6")
    with archive() as there:
        found = settings(tmp_path, there)
        slow = found.model_copy(
            update={"complete": found.complete.model_copy(update={"released_seconds": 60})}
        )
        with running(slow) as node:
            push(node, one)
        down = found.destinations["archive"].model_copy(update={"port": free_port()})
        with running(found.model_copy(update={"destinations": {"archive": down}})) as node:
            push(node, two)
            until(lambda: len(node.jobs.in_state(State.SENDING)) == 2)
            node.runner.stop()
            push(node, three)
            until(lambda: node.jobs.in_state(State.QUEUED))
        assert there.objects == []
        with running(found) as node:
            assert {job.study_uid for job in finished(node, 3)} == {"1.2.4", "1.2.5", "1.2.6"}
        assert there.attempts == 9


def test_results_for_a_destination_that_was_renamed_are_not_kept_for_ever(tmp_path: Path) -> None:
    """Of a job that waits to be sent, and of one that waits to be segmented."""
    with archive(lambda dataset: 0xA700) as there:
        found = settings(tmp_path, there)
        with running(found) as node:
            push(node, series(1, "1.2.4"))
            until(lambda: node.jobs.in_state(State.SENDING))
            node.runner.stop()
            push(node, series(1, "1.2.5"))
            until(lambda: node.jobs.in_state(State.QUEUED))
        renamed = found.rules[0].model_copy(update={"send_to": ("new",)})
        places = {"new": found.destinations["archive"]}
        with running(found.model_copy(update={"destinations": places, "rules": (renamed,)})) as node:
            for job in ended(node, 2):
                assert job.state is State.FAILED
                assert job.error == f"its results could not be sent (archive: {NO_DESTINATION})"
            node.clear(time.time() + 10**7)
            assert node.store.series() == []


def test_a_job_that_ends_the_node_each_time_is_given_up(tmp_path: Path) -> None:
    found = settings(tmp_path)
    with running(found) as node:
        node.runner.stop()
        push(node, series())
        job = until(node.jobs.all)[0]
    for _ in range(9):
        node = Node(found, start_worker=HereWorker)
        assert node.jobs.take(0) is not None
        node.jobs.close()  # as if killed
    node = Node(found, start_worker=HereWorker)
    assert node.jobs.take(0) is not None
    node.jobs.close()
    node = Node(found, start_worker=HereWorker)
    given_up = node.jobs.find(job.id)
    assert given_up is not None
    assert (given_up.state, "10 starts" in str(given_up.error)) == (State.FAILED, True)
    node.jobs.close()


def test_a_dry_run_says_what_would_be_done_and_the_next_run_does_it(tmp_path: Path) -> None:
    with archive() as there:
        with running(settings(tmp_path, there), dry_run=True) as node:
            push(node, series())
            decided(node, 1)
            assert [(one.state, one.why) for one in node.jobs.last_series()] == [("dry run", "rule 'all'")]
            assert node.jobs.all() == []
        with running(settings(tmp_path, there)) as node:
            finished(node)
        assert there.attempts == 3


def test_what_is_done_is_deleted_after_its_time(tmp_path: Path) -> None:
    with archive() as there, running(settings(tmp_path, there, keep_hours=1)) as node:
        push(node, [*series(1), *series(2, slices=2, Modality="MR")])
        (job,) = finished(node)
        node.clear(time.time())
        assert node.jobs.results(job)
        assert len(node.store.series()) == 2
        node.clear(time.time() + 3601)
        assert not node.jobs.folder(job.id).exists()
        assert node.store.series() == []
        assert node.jobs.last_series() == []
        push(node, series(1))  # and it is remembered permanently
        decided(node, 1)
        assert finished(node) == [job]
        assert there.attempts == 3


def test_a_thread_of_a_node_goes_on_after_an_unexpected_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "CLEAR_INTERVAL_SECONDS", 0.01)
    with archive() as there:
        node = Node(settings(tmp_path, there), start_worker=HereWorker)
        for part, name in ((node.intake, "complete"), (node.intake, "clear"), (node.jobs, "next_delivery")):
            monkeypatch.setattr(part, name, failing_once(getattr(part, name)))
        node.start()
        try:
            push(node, series())
            finished(node)
            until(lambda: not node.intake.clear.left)  # type: ignore[attr-defined]
            assert node._clearing.is_alive()
        finally:
            node.stop()


def test_what_is_not_done_is_kept(tmp_path: Path) -> None:
    with archive(lambda dataset: 0xA700) as there, running(settings(tmp_path, there)) as node:
        push(node, series())
        (job,) = until(lambda: node.jobs.in_state(State.SENDING))
        node.clear(time.time() + 10**7)
        assert len(node.jobs.results(job)) == 3
        assert len(node.store.series()) == 1


def test_logs_and_errors_hold_nothing_of_a_patient(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Names, numbers, dates, descriptions, UIDs: of good images, of bad ones, and in pydicom's warnings."""
    secret: dict[str, Any] = {
        "PatientName": "Secret^Name",
        "PatientID": "SECRET-ID",
        "PatientBirthDate": "19010203",
        "AccessionNumber": "SECRET-ACCESSION",
        "SeriesDescription": "secret words",
        "StudyDescription": "secret words",
        "InstitutionName": "Secret Hospital",
    }
    good, gap, torn = (series(n, f"1.2.777.{n}", **secret) for n in (1, 2, 3))
    for image in (*good, *gap):
        image["PatientBirthDate"]._value = "secret, no date"
    torn[0].PixelData = torn[0].PixelData[:10]
    caplog.set_level(logging.DEBUG)
    with archive(lambda dataset: 0xA700) as there, running(settings(tmp_path, there)) as node:
        push(node, good)
        push(node, gap[:3] + gap[-3:])
        push(node, torn)
        until(lambda: there.attempts >= 2)
        until(lambda: node.jobs.in_state(State.FAILED))
        view = str((node.jobs.all(), node.jobs.last_series(), list(node.receiver.refusals)))
    ours = [record.getMessage() for record in caplog.records if record.name == "zoomseg.node"]
    assert len(ours) > 5
    said = "\n".join([*ours, *capfd.readouterr()])
    assert [word for word in ("ecret", "ECRET", "19010203", "1.2.777") if word in said] == []
    assert "series 2: " in view
    assert [word for word in ("ecret", "ECRET", "19010203") if word in view] == []


def test_models_and_organs_are_checked_before_anything_is_opened(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="knows no 'spleen'"):
        found_models(settings(tmp_path, rules=[{"organs": ["spleen"]}]))
    with pytest.raises(ZoomSegError, match="no model folder"):
        found_models(settings(tmp_path, rules=[{"model": "nothing"}]))
    folders, models = found_models(settings(tmp_path))
    assert list(folders) == ["tiny"]
    assert len(next(iter(models.values())).fingerprint) == 64


def test_a_fingerprint_stands_for_what_a_model_predicts(tmp_path: Path) -> None:
    """Atlases count, graphs and files that a training left do not."""
    found = settings(tmp_path)
    folder = Path(found.rules[0].model)

    def fingerprint() -> str:
        (model,) = found_models(found)[1].values()
        return model.fingerprint

    plain = fingerprint()
    bundle.store_graphs(folder, {"coarse": bundle.NetworkGraph(b"graph", 1, 1)})
    (folder / "weights" / "stray.safetensors").write_bytes(b"")
    assert fingerprint() == plain
    (folder / "atlases").mkdir()
    both = []
    for sha256 in ("a", "b"):
        (folder / "atlases" / "atlases.json").write_text(sha256)
        both.append(fingerprint())
    assert len({plain, *both}) == 3
    bundle.save(untrained_bundle(1), folder)
    assert fingerprint() not in (plain, *both)


def test_two_nodes_do_not_share_a_folder(tmp_path: Path) -> None:
    with running(settings(tmp_path)), pytest.raises(OutputError, match="another node"):
        Node(settings(tmp_path))


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    with running(settings(tmp_path)) as node:
        other = Node(settings(tmp_path / "other", port=node.receiver.port))
        with pytest.raises(ZoomSegError, match=f"port {node.receiver.port}"):
            other.start()


def test_volumes_are_those_of_the_voxels_that_are_sent(tmp_path: Path) -> None:
    with archive() as there, running(settings(tmp_path, there)) as node:
        push(node, series())
        (job,) = finished(node)
        seg: Dataset = next(one for one in there.objects if one.Modality == "SEG")
        report = next(one for one in there.objects if one.Modality == "SR")
        per_voxel_ml = 0.5 * 0.75 * 2 / 1000
        voxels = np.unpackbits(np.frombuffer(seg.PixelData, np.uint8)).sum()
        volume = sum(organ.volume_ml or 0 for organ in job.found)
        assert volume == pytest.approx(voxels * per_voxel_ml, abs=0.002)
        assert seg.SOPInstanceUID in str(report)
