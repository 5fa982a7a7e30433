"""Delivery of a job's results to their destinations: C-STORE or STOW-RS, repeated until they are accepted.

Each destination has a separate thread: one that does not answer does not delay the others.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pydicom
import pynetdicom
import requests
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.session_utils import create_session_from_user_pass
from pydicom.dataset import Dataset
from pydicom.filereader import read_file_meta_info
from pydicom.uid import UID

from zoomseg.core.errors import ZoomSegError
from zoomseg.node.jobs import LOG, SEE_PAGE, NodeJobs
from zoomseg.node.receiver import client_context
from zoomseg.node.settings import Destination, DimseDestination, NodeSettings, WebDestination
from zoomseg.node.store import quiet
from zoomseg.serve.background import ran
from zoomseg.serve.job_queue import State

POLL_INTERVAL_SECONDS = 0.5
"""Interval at which a sender checks for results to send again; new results are sent immediately."""
CONNECT_SECONDS = 10
"""Maximum time for a destination to answer."""

# Files are sent as they are: decoding and encoding a large SEG would take seconds.
pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True


DUPLICATE, AZURE_DUPLICATE = 0x0111, 45070
"""Status or failure reason of an object that is already stored (PS3.7 C.5.7), and that of Azure's service."""

Context = tuple[str, str]
"""An SOP class and a transfer syntax."""

OnTaken = Callable[[Path], object]
"""Called with each file that a destination has accepted."""


class NotSentError(Exception):
    """A destination did not accept an object; the message states the reason, and nothing about a patient."""


class Sender:
    """Sends the results of segmented jobs."""

    def __init__(self, settings: NodeSettings, jobs: NodeJobs) -> None:
        self._settings = settings
        self._jobs = jobs
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(
                target=self._run, args=(name, destination), name=f"zoomseg-to-{name}", daemon=True
            )
            for name, destination in settings.destinations.items()
        ]

    def start(self) -> None:
        """Start with the waiting deliveries."""
        self._jobs.give_up_unknown(self._settings.destinations)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Stop after the current transfer."""
        self._stopping.set()
        self._jobs.wake()
        for thread in self._threads:
            thread.join()

    def _run(self, name: str, destination: Destination) -> None:
        def send_or_wait() -> None:
            if not self.send_next(name, destination):
                self._jobs.await_delivery(name, POLL_INTERVAL_SECONDS, self._stopping.is_set)

        while not self._stopping.is_set():
            if not ran(send_or_wait, LOG.error):
                self._stopping.wait(POLL_INTERVAL_SECONDS)

    def send_next(self, name: str, destination: Destination) -> bool:
        """Send the results of the oldest job that is due at a destination; returns False if there is none."""
        job = self._jobs.next_delivery(name)
        if job is None:
            return False
        files = {path: output for output, path in self._jobs.unsent(job, name).items()}
        gone = [file.name for file in files if not file.is_file()]
        if gone:  # sent again, the series is segmented again
            self._jobs.end(
                job.id, State.FAILED, f"its results are gone: {', '.join(gone)}; send the series again"
            )
            LOG.error("job %s: failed; %s", job.id, SEE_PAGE)
            return True
        taken: list[Path] = []
        error = attempted(lambda: send(list(files), destination, self._settings, taken.append))
        if len(taken) == len(files):
            error = None  # whatever came afterwards
        outputs = [files[file] for file in taken]
        now = self._jobs.delivered(job.id, name, error, self._settings.retry, outputs)
        LOG.info("job %s: to %s: %s", job.id, name, error or "sent")
        if now is not None and now.state is State.FINISHED:
            LOG.info("job %s: finished", job.id)
        return True


def attempted(work: Callable[[], None]) -> str | None:
    """None on success; otherwise the reason of the failure, in one line without anything of a patient."""
    try:
        work()
    except (NotSentError, ZoomSegError) as error:
        return str(error)
    except Exception as error:  # an answer may contain anything
        return f"unexpected {type(error).__name__}"
    return None


def send(files: Sequence[Path], destination: Destination, settings: NodeSettings, on_taken: OnTaken) -> None:
    """Send all files, also after one that is refused. An object that the destination has already is accepted:
    its UID stands for its content.

    Raises:
        NotSentError: one was not accepted.
    """
    match destination:
        case DimseDestination():
            store_dimse(files, destination, settings, on_taken)
        case WebDestination():
            store_web(files, destination, settings, on_taken)


def read(file: Path) -> Dataset:
    """An object to be sent."""
    with quiet():
        return pydicom.dcmread(file)


# --- DIMSE ----------------------------------------------------------------------------------------


def associate(
    destination: DimseDestination,
    settings: NodeSettings,
    contexts: Iterable[Context],
    answer_seconds: float | None = None,
) -> pynetdicom.association.Association:
    """An association with a destination.

    Args:
        contexts: the presentation contexts that are requested.
        answer_seconds: maximum time for the response to a request; ``limits.idle_seconds`` by default.

    Raises:
        NotSentError: it cannot be established.
        ZoomSegError: a certificate cannot be used.
    """
    ae = pynetdicom.AE(settings.ae_title)
    ae.connection_timeout = ae.acse_timeout = CONNECT_SECONDS
    ae.network_timeout = settings.limits.idle_seconds
    ae.dimse_timeout = answer_seconds or settings.limits.idle_seconds
    for sop_class, syntax in sorted(set(contexts)):
        ae.add_requested_context(sop_class, syntax)
    tls = settings.tls if destination.tls else None
    try:
        association = ae.associate(
            destination.host,
            destination.port,
            ae_title=destination.ae_title,
            tls_args=None if tls is None else (client_context(tls), destination.host),
        )
    except OSError as error:
        message = f"its host {destination.host} cannot be resolved or reached ({error.strerror})"
        raise NotSentError(message) from error
    if association.is_established:
        return association
    if association.rejected_contexts:
        raise _without_kinds(
            UID(context.abstract_syntax or "").name for context in association.rejected_contexts
        )
    if association.is_rejected:
        raise NotSentError("it rejects the association; does it know this node's AE title and address?")
    raise NotSentError("it cannot be reached, or does not answer")


def _without_kinds(names: Iterable[str]) -> NotSentError:
    return NotSentError(f"it does not take objects of the kind {' or '.join(sorted(set(names)))}")


def store_dimse(
    files: Sequence[Path], destination: DimseDestination, settings: NodeSettings, on_taken: OnTaken
) -> None:
    """C-STORE."""
    kinds = {file: read_file_meta_info(file) for file in files}
    contexts = [(kind.MediaStorageSOPClassUID, kind.TransferSyntaxUID) for kind in kinds.values()]
    association = associate(destination, settings, contexts)
    refusals: list[str] = []
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        for file, kind in kinds.items():
            sop_class = kind.MediaStorageSOPClassUID
            if sop_class not in accepted:
                refusals.append(str(_without_kinds([sop_class.name])))
                continue
            status = association.send_c_store(file)
            if "Status" not in status:
                raise NotSentError("the association ended before it answered")
            # 0xBxxx are warnings: stored, with something changed (PS3.4 Table B.2-1).
            if status.Status in (0, DUPLICATE) or status.Status >> 12 == 0xB:
                on_taken(file)
            else:
                refusals.append(f"it refuses {sop_class.name} with status 0x{status.Status:04X}")
    finally:
        association.release()
    if refusals:
        raise NotSentError("; ".join(refusals))


# --- DICOMweb -------------------------------------------------------------------------------------


def web_client(destination: WebDestination, answer_seconds: float) -> DICOMwebClient:
    """A client of a DICOMweb service.

    Args:
        answer_seconds: maximum time without any data of a response.

    Raises:
        NotSentError: its password is not in the environment.
    """
    session = requests.Session()
    if destination.user is not None:
        password = os.environ.get(destination.password_variable or "")
        if not password:
            raise NotSentError(f"the environment variable {destination.password_variable} holds no password")
        session = create_session_from_user_pass(destination.user, password)
    timeout = (CONNECT_SECONDS, answer_seconds)
    client = DICOMwebClient(destination.url, session=session, timeout=timeout)
    client.set_http_retry_params(retry=False)
    return client


def store_web(
    files: Sequence[Path], destination: WebDestination, settings: NodeSettings, on_taken: OnTaken
) -> None:
    """STOW-RS."""
    client = web_client(destination, settings.limits.idle_seconds)
    objects = {file: read(file) for file in files}
    try:
        answer, is_success = client.store_instances(list(objects.values())), True
    except requests.HTTPError as error:
        answer, is_success = _refusals(error.response), False
    except requests.RequestException as error:
        raise NotSentError(f"it cannot be reached, or does not answer ({type(error).__name__})") from error
    uids = {one.SOPInstanceUID for one in objects.values()}
    items = [
        (item.get("ReferencedSOPInstanceUID"), item.get("FailureReason"))
        for item in answer.get("FailedSOPSequence") or ()
    ]
    stored = {uid for uid, reason in items if uid in uids and reason in (DUPLICATE, AZURE_DUPLICATE)}
    refused = [uid for uid, _ in items if uid not in stored]
    if is_success and uids.issuperset(refused):  # otherwise it does not say which
        stored |= uids.difference(refused)
    for file, one in objects.items():
        if one.SOPInstanceUID in stored:
            on_taken(file)
    if stored < uids:
        raise NotSentError(f"it refuses {len(refused)} of {len(files)} objects")


def _refusals(response: requests.Response) -> Dataset:
    """The answer of a service that stored no object, if it names the objects (PS3.18 10.5.3).

    Raises:
        NotSentError: it does not.
    """
    try:
        answer = Dataset.from_json(response.json())
        if answer.FailedSOPSequence:
            return answer
    except Exception:  # an answer may contain anything
        pass
    raise NotSentError(f"it answers with status {response.status_code}")
