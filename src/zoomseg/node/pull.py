"""Transfer studies from an archive to the running node: by C-MOVE, or by QIDO-RS and WADO-RS.

By C-MOVE, an archive sends the CT and MR series of the requested studies, which are found by C-FIND, to the
node itself. Images received by DICOMweb are
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
from pynetdicom.association import Association
from pynetdicom.sop_class import (  # type: ignore[attr-defined]
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from zoomseg.io.dicom.uids import valid_uid
from zoomseg.io.files import read_file
from zoomseg.node.receiver import IMAGES
from zoomseg.node.sending import NotSentError, associate, attempted, web_client
from zoomseg.node.settings import (
    Destination,
    DimseDestination,
    NodeSettings,
    SettingsError,
    WebDestination,
)

MODALITIES = ("CT", "MR")

ANSWER_SECONDS = 6 * 3600
"""Maximum time for the response to a C-MOVE or a WADO-RS request: an archive need not report its progress
(PS3.7 9.1.4), and may read a study from tape."""

WILDCARDS = ("", "0.0.0.0", "::")
"""Addresses to listen on that stand for all of a machine's own."""

Answer = tuple[Dataset, Dataset | None]
"""Status and identifier of a response."""

FIND = StudyRootQueryRetrieveInformationModelFind
MOVE = StudyRootQueryRetrieveInformationModelMove

_WARNING = 0xB000
"""Some sub-operations failed (PS3.4 Table C.4-2)."""


@dataclass(frozen=True)
class Pulled:
    """The outcome for one study of a list: ``number`` from 1, as logs do not contain its name."""

    number: int
    images: int
    """Number of images that the node accepted."""
    left: int
    """Number of objects in its CT and MR series that are no images, such as dose reports."""
    error: str | None = None
    counted: bool = True
    """Whether ``images`` is their number; otherwise the archive did not tell it for each series."""

    @property
    def summary(self) -> str:
        """What arrived, in words."""
        return f"{self.images} images" if self.counted else "sent; the archive does not tell how many images"


@dataclass(frozen=True)
class Transferred:
    """Numbers of objects: images that the node accepted, images that it refused, and other objects."""

    accepted: int = 0
    refused: int = 0
    foreign: int = 0
    counted: bool = True
    """Whether the archive reported them."""

    def __add__(self, other: Transferred) -> Transferred:
        return Transferred(
            self.accepted + other.accepted,
            self.refused + other.refused,
            self.foreign + other.foreign,
            self.counted and other.counted,
        )

    @property
    def error(self) -> str | None:
        """Why the study is not complete in the node; None if it is."""
        if self.refused:
            some = f"{self.refused} of {self.accepted + self.refused}" if self.counted else "some"
            return f"{some} images were not accepted; the node's page says why"
        arrived = self.accepted or not self.counted
        return None if arrived else "it has no images of this study that the node takes"


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


def pull(studies: Sequence[str], source: Destination, settings: NodeSettings) -> Iterator[Pulled]:
    """Request studies for the node that runs with these settings; returns the outcome of each, in order."""
    for number, uid in enumerate(studies, start=1):
        found = [Transferred()]

        def work(uid: str = uid, found: list[Transferred] = found) -> None:
            found[0] = _transferred(uid, source, settings)

        error = attempted(work)
        done = found[0]
        yield Pulled(number, done.accepted, done.foreign, error or done.error, done.counted)


def _transferred(study_uid: str, source: Destination, settings: NodeSettings) -> Transferred:
    match source:
        case DimseDestination():
            return move(study_uid, source, settings)
        case WebDestination():
            return retrieve(study_uid, source, settings)


# --- DIMSE ----------------------------------------------------------------------------------------


def move(study_uid: str, source: DimseDestination, settings: NodeSettings) -> Transferred:
    """C-MOVE of the CT and MR series of a study to the node; others, such as the node's own results, would
    count as failed.

    Raises:
        NotSentError: the archive refuses.
    """
    association = associate(
        source, settings, [(FIND, ImplicitVRLittleEndian), (MOVE, ImplicitVRLittleEndian)], ANSWER_SECONDS
    )
    try:
        for model, service in ((FIND, "C-FIND"), (MOVE, "C-MOVE")):
            if model not in {context.abstract_syntax for context in association.accepted_contexts}:
                raise NotSentError(f"it does not offer {service} to this node (study root)")
        done = Transferred()
        for series_uid in _find_series(association, study_uid):
            done += _move_series(association, study_uid, series_uid, settings.ae_title)
        return done
    finally:
        association.release()


def _find_series(association: Association, study_uid: str) -> list[str]:
    """The CT and MR series of a study."""
    asked = _identifier(study_uid, "")
    asked.Modality = ""
    answers = list(association.send_c_find(asked, FIND))
    _last_status(answers, "C-FIND", (0,))
    series = [one for _, one in answers if one is not None and one.get("Modality") in MODALITIES]
    return [str(one.SeriesInstanceUID) for one in series]


def _move_series(association: Association, study_uid: str, series_uid: str, ae_title: str) -> Transferred:
    answers = list(association.send_c_move(_identifier(study_uid, series_uid), ae_title, MOVE))
    last = _last_status(answers, "C-MOVE", (0, _WARNING))
    # The last response need not contain the numbers (PS3.7 Table 9.1-4); it says what became of the rest.
    counted = [status for status, _ in answers if "NumberOfCompletedSuboperations" in status]
    status = counted[-1] if counted else last
    rest = 0 if status is last else _number(status, "Remaining")
    accepted, refused = _number(status, "Completed") + _number(status, "Warning"), _number(status, "Failed")
    if last.Status == 0:
        return Transferred(accepted + rest, refused, counted=bool(counted))
    return Transferred(accepted, refused + rest if counted else 1, counted=bool(counted))


def _number(status: Dataset, of: str) -> int:
    return int(status.get(f"NumberOf{of}Suboperations") or 0)


def _identifier(study_uid: str, series_uid: str) -> Dataset:
    found = Dataset()
    found.QueryRetrieveLevel = "SERIES"
    found.StudyInstanceUID, found.SeriesInstanceUID = study_uid, series_uid
    return found


def _last_status(answers: Sequence[Answer], service: str, successes: Sequence[int]) -> Dataset:
    """The last response's status.

    Raises:
        NotSentError: it is none of these successes.
    """
    last = answers[-1][0] if answers else Dataset()
    if "Status" not in last:
        raise NotSentError("the association ended before it answered")
    if last.Status not in successes:
        raise NotSentError(
            f"it refuses {service} with status 0x{last.Status:04X}; check that it lists this node"
        )
    return last


# --- DICOMweb -------------------------------------------------------------------------------------


def retrieve(study_uid: str, source: WebDestination, settings: NodeSettings) -> Transferred:
    """Retrieve the CT and MR series of a study by QIDO-RS and WADO-RS, and forward their images to the node.

    Raises:
        NotSentError: the archive, or the node, refuses.
    """
    client, done = web_client(source, ANSWER_SECONDS), Transferred()
    try:
        for modality in MODALITIES:
            found = client.search_for_series(study_uid, search_filters={"Modality": modality})
            for series in found:
                # Other values, of which pydicom would log those that are not valid, are not decoded.
                uid = valid_uid(str(series["0020000E"]["Value"][0]))
                objects = list(client.iter_series(study_uid, uid))
                images = [one for one in objects if one.SOPClassUID in IMAGES]
                done += hand_on(images, settings) + Transferred(foreign=len(objects) - len(images))
    except requests.HTTPError as error:
        raise NotSentError(f"it answers with status {error.response.status_code}") from error
    except requests.RequestException as error:
        raise NotSentError(f"it cannot be reached, or does not answer ({type(error).__name__})") from error
    return done


def hand_on(images: Sequence[Dataset], settings: NodeSettings) -> Transferred:
    """C-STORE of images to the node itself.

    Raises:
        NotSentError: the node cannot be reached, or does not read a transfer syntax.
    """
    if not images:
        return Transferred()
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
        offered = {(one.abstract_syntax, one.transfer_syntax[0]) for one in association.accepted_contexts}
        if contexts - offered:
            sop_class, syntax = min(contexts - offered)
            raise NotSentError(f"the node does not take {sop_class.name} in {syntax.name}")
        accepted = sum(association.send_c_store(one).get("Status") == 0 for one in images)
        return Transferred(accepted, len(images) - accepted)
    finally:
        association.release()
