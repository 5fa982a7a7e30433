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

from zoomseg.core.errors import ZoomSegError
from zoomseg.node.jobs import LOG, SEE_PAGE, NodeJobs
from zoomseg.node.receiver import client_context
from zoomseg.node.settings import Destination, DimseDestination, Settings, WebDestination
from zoomseg.node.store import quiet
from zoomseg.serve.background import ran
from zoomseg.serve.job_queue import State

LOOK_EVERY_SECONDS = 0.5
"""Interval at which a sender checks for results to send again; new results are sent immediately."""
CONNECT_SECONDS = 10
"""Maximum time for a destination to answer."""

# Files are sent as they are: decoding and encoding a large SEG would take seconds.
pynetdicom._config.STORE_SEND_CHUNKED_DATASET = True


Context = tuple[str, str]
"""An SOP class and a transfer syntax."""


class NotSentError(Exception):
    """A destination did not accept an object; the message states the reason, and nothing about a patient."""


class Sender:
    """Sends the results of segmented jobs."""

    def __init__(self, settings: Settings, jobs: NodeJobs) -> None:
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
                self._jobs.await_delivery(name, LOOK_EVERY_SECONDS, self._stopping.is_set)

        while not self._stopping.is_set():
            if not ran(send_or_wait, LOG.error):
                self._stopping.wait(LOOK_EVERY_SECONDS)

    def send_next(self, name: str, destination: Destination) -> bool:
        """Send the results of the oldest job that is due at a destination; returns False if there is none."""
        job = self._jobs.next_delivery(name)
        if job is None:
            return False
        files = self._jobs.results(job)
        gone = [file.name for file in files if not file.is_file()]
        if gone:  # sent again, the series is segmented again
            self._jobs.end(
                job.id, State.FAILED, f"its results are gone: {', '.join(gone)}; send the series again"
            )
            LOG.error("job %s: failed; %s", job.id, SEE_PAGE)
            return True
        error = attempted(lambda: send(files, destination, self._settings))
        now = self._jobs.delivered(job.id, name, error, self._settings.retry)
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


def send(files: Sequence[Path], destination: Destination, settings: Settings) -> None:
    """Send all files.

    Raises:
        NotSentError: one was not accepted.
    """
    match destination:
        case DimseDestination():
            store_dimse(files, destination, settings)
        case WebDestination():
            store_web(files, destination)


def read(file: Path) -> Dataset:
    """An object to be sent."""
    with quiet():
        return pydicom.dcmread(file)


# --- DIMSE ----------------------------------------------------------------------------------------


def associate(
    destination: DimseDestination,
    settings: Settings,
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
    if association.is_rejected:
        raise NotSentError("it rejects the association; does it know this node's AE title and address?")
    raise NotSentError("it cannot be reached, or does not answer")


def store_dimse(files: Sequence[Path], destination: DimseDestination, settings: Settings) -> None:
    """C-STORE."""
    kinds = {file: read_file_meta_info(file) for file in files}
    contexts = [(kind.MediaStorageSOPClassUID, kind.TransferSyntaxUID) for kind in kinds.values()]
    association = associate(destination, settings, contexts)
    try:
        accepted = {context.abstract_syntax for context in association.accepted_contexts}
        for file, kind in kinds.items():
            sop_class = kind.MediaStorageSOPClassUID
            if sop_class not in accepted:
                raise NotSentError(f"it does not take objects of the kind {sop_class.name}")
            status = association.send_c_store(file)
            if "Status" not in status:
                raise NotSentError("the association ended before it answered")
            # 0xBxxx are warnings: stored, with something changed (PS3.4 Table B.2-1).
            if status.Status != 0 and status.Status >> 12 != 0xB:
                raise NotSentError(f"it refuses an object with status 0x{status.Status:04X}")
    finally:
        association.release()


# --- DICOMweb -------------------------------------------------------------------------------------


def web_client(destination: WebDestination) -> DICOMwebClient:
    """A client of a DICOMweb service.

    Raises:
        NotSentError: its password is not in the environment.
    """
    session = requests.Session()
    if destination.user is not None:
        password = os.environ.get(destination.password_variable or "")
        if not password:
            raise NotSentError(f"the environment variable {destination.password_variable} holds no password")
        session = create_session_from_user_pass(destination.user, password)
    client = DICOMwebClient(destination.url, session=session)
    client.set_http_retry_params(retry=False)
    return client


def store_web(files: Sequence[Path], destination: WebDestination) -> None:
    """STOW-RS."""
    client = web_client(destination)
    try:
        answer = client.store_instances([read(file) for file in files])
    except requests.HTTPError as error:
        raise NotSentError(f"it answers with status {error.response.status_code}") from error
    except requests.RequestException as error:
        raise NotSentError(f"it cannot be reached, or does not answer ({type(error).__name__})") from error
    refused = answer.get("FailedSOPSequence")
    if refused:
        raise NotSentError(f"it refuses {len(refused)} of {len(files)} objects")
