"""Transfer studies from an archive to the running node: by C-MOVE, or by QIDO-RS and WADO-RS.

By C-MOVE, an archive sends the requested studies to the node itself. Images received by DICOMweb are
forwarded to the node by C-STORE, so that there is a single way of reception.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import requests
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian
from pynetdicom.sop_class import StudyRootQueryRetrieveInformationModelMove  # type: ignore[attr-defined]

from zoomseg.io.dicom.uids import valid_uid
from zoomseg.io.files import read_file
from zoomseg.node.receiver import IMAGES
from zoomseg.node.sending import NotSentError, associate, attempted, web_client
from zoomseg.node.settings import (
    Destination,
    DimseDestination,
    Settings,
    SettingsError,
    WebDestination,
)

MODALITIES = ("CT", "MR")

ANSWER_SECONDS = 6 * 3600
"""Maximum time for the response to a C-MOVE: an archive need not report its progress (PS3.7 9.1.4), and may
read a study from tape."""

WILDCARDS = ("", "0.0.0.0", "::")
"""Addresses to listen on that stand for all of a machine's own."""

_WARNING = 0xB000
"""Some sub-operations failed (PS3.4 Table C.4-2)."""


@dataclass(frozen=True)
class Pulled:
    """The outcome for one study of a list: ``number`` from 1, as logs do not contain its name."""

    number: int
    images: int
    """Number of images that the node accepted."""
    left: int
    """Number of images not accepted, as they are the node's own results."""
    error: str | None = None


def read_studies(path: Path) -> list[str]:
    """Study Instance UIDs, one per line; lines that begin with ``#`` are comments.

    Raises:
        SettingsError: the file cannot be read, or contains something else.
    """
    try:
        lines = read_file(path).decode().splitlines()
    except (OSError, UnicodeError) as error:
        raise SettingsError(f"{path}: cannot be read as text") from error
    found = []
    for number, line in enumerate(lines, start=1):
        uid = line.strip()
        if uid and not uid.startswith("#"):
            if not valid_uid(uid):
                raise SettingsError(f"{path}: line {number} is no Study Instance UID")
            found.append(uid)
    return list(dict.fromkeys(found))


def pull(studies: Sequence[str], source: Destination, settings: Settings) -> Iterator[Pulled]:
    """Request studies for the node that runs with these settings; returns the outcome of each, in order."""
    for number, uid in enumerate(studies, start=1):
        counts = [0, 0]

        def work(uid: str = uid, counts: list[int] = counts) -> None:
            counts[:] = _moved(uid, source, settings)

        error = attempted(work)
        if error is None and counts[0] == 0:
            error = "it has no images of this study that the node takes"
        yield Pulled(number, counts[0], counts[1], error)


def _moved(study_uid: str, source: Destination, settings: Settings) -> tuple[int, int]:
    """The number of images accepted, and not."""
    match source:
        case DimseDestination():
            return move(study_uid, source, settings)
        case WebDestination():
            return retrieve(study_uid, source, settings)


def move(study_uid: str, source: DimseDestination, settings: Settings) -> tuple[int, int]:
    """C-MOVE of a study to the node; returns the number of images accepted, and not.

    Raises:
        NotSentError: the archive refuses.
    """
    model = StudyRootQueryRetrieveInformationModelMove
    association = associate(source, settings, [(model, ImplicitVRLittleEndian)], ANSWER_SECONDS)
    asked = Dataset()
    asked.QueryRetrieveLevel = "STUDY"
    asked.StudyInstanceUID = study_uid
    last = Dataset()
    try:
        for status, _ in association.send_c_move(asked, settings.ae_title, model):
            last = status
    finally:
        association.release()
    if "Status" not in last:
        raise NotSentError("the association ended before it answered")
    if last.Status not in (0, _WARNING):
        raise NotSentError(f"it refuses C-MOVE with status 0x{last.Status:04X}; does it know this node?")
    done = int(last.get("NumberOfCompletedSuboperations", 0)) + int(
        last.get("NumberOfWarningSuboperations", 0)
    )
    return done, int(last.get("NumberOfFailedSuboperations", 0))


def retrieve(study_uid: str, source: WebDestination, settings: Settings) -> tuple[int, int]:
    """Retrieve the CT and MR series of a study by QIDO-RS and WADO-RS, and forward them to the node; returns
    the number of images accepted, and not.

    Raises:
        NotSentError: the archive, or the node, refuses.
    """
    client = web_client(source)
    taken = left = 0
    try:
        for modality in MODALITIES:
            found = client.search_for_series(study_uid, search_filters={"Modality": modality})
            for series in found:
                uid = Dataset.from_json(series).SeriesInstanceUID
                images = list(client.iter_series(study_uid, uid))
                done = hand_on([one for one in images if one.SOPClassUID in IMAGES], settings)
                taken, left = taken + done, left + len(images) - done
    except requests.HTTPError as error:
        raise NotSentError(f"it answers with status {error.response.status_code}") from error
    except requests.RequestException as error:
        raise NotSentError(f"it cannot be reached, or does not answer ({type(error).__name__})") from error
    return taken, left


def hand_on(images: Sequence[Dataset], settings: Settings) -> int:
    """C-STORE of images to the node itself; returns the number accepted."""
    if not images:
        return 0
    host, address = settings.host, settings.host
    if host in WILDCARDS:
        host, address = "localhost", "127.0.0.1"
    node = DimseDestination(
        ae_title=settings.ae_title, host=host, port=settings.port, tls=settings.tls is not None
    )
    contexts = {(one.SOPClassUID, one.file_meta.TransferSyntaxUID) for one in images}
    try:
        association = associate(node, settings, contexts)
    except NotSentError as error:
        needed = f"it must run, and list {settings.ae_title} at {address} as a peer"
        raise NotSentError(f"the node itself, at {host}: {error} ({needed})") from error
    try:
        return sum(association.send_c_store(one).get("Status") == 0 for one in images)
    finally:
        association.release()
