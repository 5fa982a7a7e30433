"""DICOM nodes on localhost with a tiny model, senders, and archives that receive their results."""

from __future__ import annotations

import copy
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pynetdicom
from pydicom.dataset import Dataset
from pydicom.uid import UID, ImplicitVRLittleEndian
from pynetdicom import evt
from pynetdicom.sop_class import (
    Comprehensive3DSRStorage,
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
    Verification,
)

from helpers.dicom_series import stack
from helpers.tiny_dataset import tiny_case
from helpers.untrained_models import predictor, untrained_bundle
from zoomseg.core.errors import ZoomSegError
from zoomseg.io import bundle
from zoomseg.node.jobs import NodeJob
from zoomseg.node.run import Node
from zoomseg.node.segmentation import segment_series
from zoomseg.node.settings import NodeSettings
from zoomseg.serve.job_queue import State, Step
from zoomseg.serve.worker import Task, TaskFailure, TemporaryError, WorkerDiedError

SENDER = "SENDER"
SECONDS = 180.0
"""Timeout of a test, long enough for a machine under load."""

Reply = Callable[[Dataset], int]


def series(number: int = 1, study: str = "1.2.3", slices: int | None = None, **tags: Any) -> list[Dataset]:
    """A small CT series in which the tiny model finds something; objects have their own UIDs."""
    values = tiny_case(9)[0].data[0].round().astype(np.int16).transpose(2, 1, 0)
    uid = f"{study}.{number}"
    given = {"SeriesInstanceUID": uid, "StudyInstanceUID": study, "SeriesNumber": number} | tags
    objects = stack(values[:slices] + 1024, **given)
    for k, one in enumerate(objects):
        one.SOPInstanceUID = f"{uid}.{k}"
        one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
        one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    return objects


def settings(folder: Path, archive: Archive | None = None, **changes: Any) -> NodeSettings:
    """Settings of a node that accepts everything from this machine and sends it to an archive."""
    model = folder / "model" / "tiny"
    if not model.exists():
        bundle.save(untrained_bundle(), model)
    rule = {"name": "all", "modality": "CT", "min_slices": 2, "model": str(model)}
    given: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": 0,
        "folder": folder / "node",
        "device": "cpu",
        "peers": [{"ae_title": SENDER, "addresses": ["127.0.0.1"]}],
        # On a machine under load, seconds may pass between two objects of one association.
        "complete": {"quiet_seconds": 4, "released_seconds": 0.2},
        "limits": {"free_bytes": 0},
        "retry": {"first_seconds": 0.2, "longest_seconds": 0.4},
        "page": {"port": 0},
        "rules": [rule],
    }
    if archive is not None:
        place = {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": archive.port}
        given["destinations"] = {"archive": place}
        rule["send_to"] = ["archive"]
    rules = changes.pop("rules", [{}])
    return NodeSettings.model_validate({**given, **changes, "rules": [{**rule, **one} for one in rules]})


class HereWorker:
    """Segments in this process, with the tiny model."""

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self.killed = threading.Event()

    def run(self, task: Task, on_step: Callable[[Step], None]) -> TaskFailure | None:
        self.tasks.append(task)
        if self.killed.is_set():
            raise WorkerDiedError("killed")
        try:
            segment_series(task, predictor(), on_step)
        except ZoomSegError as error:
            return TaskFailure(str(error), may_pass=isinstance(error, TemporaryError))
        return None

    def kill(self) -> None:
        self.killed.set()


@contextmanager
def running(found: NodeSettings, dry_run: bool = False) -> Iterator[Node]:
    """A node that runs until the end of the test."""
    node = Node(found, dry_run, HereWorker)
    node.start()
    try:
        yield node
    finally:
        node.stop()


@contextmanager
def association(
    node: Node, objects: Sequence[Dataset], title: str = SENDER, called: str = "ZOOMSEG", **options: Any
) -> Iterator[pynetdicom.association.Association]:
    """An association for objects, with their transfer syntaxes; aborted at the end if it is still open."""
    ae = pynetdicom.AE(title)
    for sop_class, syntax in {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in objects}:
        ae.add_requested_context(sop_class, syntax)
    ae.add_requested_context(Verification)
    found = ae.associate("127.0.0.1", node.receiver.port, ae_title=called, **options)
    if found.is_established:  # otherwise every object waits for a delayed acknowledgement
        found.dul.socket.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        yield found
    finally:
        if found.is_established:
            found.abort()


def push(node: Node, objects: Sequence[Dataset], release: bool = True, **options: Any) -> list[int]:
    """Send objects in one association; returns the status of each."""
    with association(node, objects, **options) as found:
        assert found.is_established
        answers = [found.send_c_store(one).Status for one in objects]
        if release:
            found.release()
    return answers


def until(what: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """Call a function until it returns a true value; returns that value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = what()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} seconds")


def ended(node: Node, count: int = 1) -> list[NodeJob]:
    """Wait until this many jobs of a node have ended; returns them."""

    def all_ended() -> list[NodeJob]:
        jobs = node.jobs.all()
        return jobs if len(jobs) >= count and all(job.state.is_end for job in jobs) else []

    found: list[NodeJob] = until(all_ended)
    assert len(found) == count, found
    return found


def finished(node: Node, count: int = 1) -> list[NodeJob]:
    """The same as ``ended``, but requires that all jobs succeeded."""
    jobs = ended(node, count)
    assert [job.state for job in jobs] == [State.FINISHED] * count, [job.error for job in jobs]
    return jobs


class Archive:
    """Accepts objects, or returns a given status."""

    def __init__(self, reply: Reply | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.objects: list[Dataset] = []
        self.attempts = 0
        self._reply = reply
        ae = pynetdicom.AE("ARCHIVE")
        for kind in (
            SegmentationStorage,
            RTStructureSetStorage,
            Comprehensive3DSRStorage,
            SecondaryCaptureImageStorage,
        ):
            ae.add_supported_context(kind, [UID("1.2.840.10008.1.2.1"), ImplicitVRLittleEndian])
        self._server: Any = ae.start_server(
            ("127.0.0.1", 0),
            block=False,
            ssl_context=tls,
            evt_handlers=[(evt.EVT_C_STORE, self._store)],
        )
        self._ae = ae
        self.port: int = self._server.socket.getsockname()[1]

    def _store(self, event: evt.Event) -> int:
        self.attempts += 1
        dataset = copy.deepcopy(event.dataset)
        dataset.file_meta = event.file_meta
        status = 0 if self._reply is None else self._reply(dataset)
        if status == 0:
            self.objects.append(dataset)
        return status

    def modalities(self) -> list[str]:
        return sorted(one.Modality for one in self.objects)

    def close(self) -> None:
        self._ae.shutdown()


@contextmanager
def archive(reply: Reply | None = None, tls: ssl.SSLContext | None = None) -> Iterator[Archive]:
    """An archive that runs until the end of the test."""
    found = Archive(reply, tls)
    try:
        yield found
    finally:
        found.close()
