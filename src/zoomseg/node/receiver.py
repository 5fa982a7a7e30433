"""The node's DICOM service: C-ECHO and C-STORE of CT and MR, from the listed peers.

Every refusal is reported to the sender by DICOM's status for it, and listed with its reason for the status
page; nothing refused is stored.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import ssl
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass
from io import BytesIO
from typing import Any, cast

import pynetdicom
from pydicom import config as pydicom_config
from pydicom.dataset import Dataset
from pydicom.uid import (
    JPEG2000,
    CTImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    MRImageStorage,
    RLELossless,
)
from pynetdicom import evt
from pynetdicom.dimse_primitives import C_STORE
from pynetdicom.pdu_primitives import A_ASSOCIATE
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

from zoomseg.core.errors import OutputError, ScanError, ZoomSegError
from zoomseg.node.intake import Intake
from zoomseg.node.jobs import LOG
from zoomseg.node.listening import ConnectionPolicy, listen
from zoomseg.node.message_limits import ObjectLimit, limit_pdus
from zoomseg.node.settings import NodeSettings, Peer, Tls
from zoomseg.node.store import ConflictError, read_instance

IMAGES = (
    CTImageStorage,
    MRImageStorage,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
)
"""Accepted SOP classes. Objects created by a node are none of these: results returned by an archive are
refused with their presentation context, and create no job."""

SYNTAXES = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEGLosslessSV1,
    JPEGLossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    JPEG2000Lossless,
    JPEG2000,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEGBaseline8Bit,
    RLELossless,
)
"""Transfer syntaxes that ``io.dicom.read`` decodes."""

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
OTHER_SOP_CLASS = 0xA900
NOT_UNDERSTOOD = 0xC000
CONFLICT = 0xC001
"""A status from the range "cannot understand": C-STORE has no status for conflicts (PS3.4 Table B.2-1)."""

LISTED_REFUSALS = 200

CONNECTIONS_OF_ONE, CONNECTIONS = 4, 10
"""Open connections of one address, and of all, for each association that may be open: more than associations,
as those beyond their limit are answered."""

LISTED_INTERVAL_SECONDS = 1.0
"""Connections that are turned away, of which there may be any number, are listed no more often than this."""

_CALLED_UNKNOWN, _CALLING_UNKNOWN = (0x01, 0x01, 0x07), (0x01, 0x01, 0x03)
"""Rejected permanently, by the service user (PS3.8 9.3.4)."""
_TOO_MANY = (0x02, 0x03, 0x02)
"""Rejected for now, as a local limit is exceeded."""


@dataclass(frozen=True)
class Refusal:
    """A refusal; ``time`` in seconds since 1970."""

    time: float
    sender: str
    """AE title and address; of a connection that was closed at once only the latter."""
    why: str


class Receiver:
    """Listens for associations."""

    def __init__(self, settings: NodeSettings, intake: Intake) -> None:
        self._settings = settings
        self._intake = intake
        self.refusals: deque[Refusal] = deque(maxlen=LISTED_REFUSALS)
        self.counts: Counter[str] = Counter()
        """Number of events of each kind: ``stored``, ``known``, ``refused``, ``rejected``."""
        self._admitted: set[Any] = set()
        """Associations of listed peers."""
        self._guard = threading.Lock()
        self._listed = -LISTED_INTERVAL_SECONDS
        """Time at which a connection that was turned away was listed, by the monotonic clock."""
        self._ae = pynetdicom.AE(settings.ae_title)
        self._ae.maximum_associations = sys.maxsize  # it would also count connections of strangers
        self._ae.network_timeout = settings.limits.idle_seconds
        self._ae.dimse_timeout = settings.limits.idle_seconds
        self._ae.add_supported_context(Verification)
        for image in IMAGES:
            self._ae.add_supported_context(image, list(SYNTAXES))
        self._server: Any = None
        self._validation = pydicom_config.settings.reading_validation_mode

    def start(self) -> None:
        """Listen.

        Raises:
            ZoomSegError: the address is in use, or not this machine's; a certificate cannot be used.
        """
        # Storage must not depend on pydicom's validation of values, and its warnings contain values.
        self._validation = pydicom_config.settings.reading_validation_mode
        pydicom_config.settings.reading_validation_mode = pydicom_config.IGNORE
        limit = ObjectLimit(self._settings.limits.object_bytes)
        tls = self._settings.tls
        place = (self._settings.host, self._settings.port)
        associations = self._settings.limits.associations
        policy = ConnectionPolicy(
            lambda address: any(peer.is_at(address) for peer in self._settings.peers),
            CONNECTIONS_OF_ONE * associations,
            CONNECTIONS * associations,
            self._turned_away,
        )
        try:
            self._server = listen(
                self._ae,
                place,
                None if tls is None else server_context(tls),
                [
                    (evt.EVT_CONN_OPEN, limit_pdus),
                    (evt.EVT_PDU_RECV, limit.count),
                    (evt.EVT_CONN_CLOSE, limit.forget),
                    (evt.EVT_REQUESTED, self._requested),
                    (evt.EVT_C_ECHO, lambda event: SUCCESS),
                    (evt.EVT_C_STORE, self._store),
                    (evt.EVT_RELEASED, lambda event: self._ended(event, True)),
                    (evt.EVT_ABORTED, lambda event: self._ended(event, False)),
                    (evt.EVT_CONN_CLOSE, lambda event: self._ended(event, False)),
                ],
                policy,
            )
        except OSError as error:
            raise ZoomSegError(f"cannot listen at {place[0]}, port {place[1]} ({error.strerror})") from error

    @property
    def port(self) -> int:
        """The port on which it listens."""
        port: int = self._server.socket.getsockname()[1]
        return port

    def stop(self) -> None:
        """End all associations."""
        self._ae.shutdown()
        pydicom_config.settings.reading_validation_mode = self._validation

    # --- associations -----------------------------------------------------------------------------

    def _turned_away(self, address: str, why: str) -> None:
        """Count a connection that was closed at once; called by one thread."""
        now = time.monotonic()
        if now - self._listed >= LISTED_INTERVAL_SECONDS:
            self._listed = now
            self._refused("rejected", address, why)
        else:
            self.counts["rejected"] += 1

    def _requested(self, event: evt.Event) -> None:
        """Reject peers that are not listed, and more associations than allowed."""
        asked = cast("A_ASSOCIATE", event.assoc.requestor.primitive)
        title, address = str(asked.calling_ae_title).strip(), event.assoc.requestor.address
        if str(asked.called_ae_title).strip() != self._settings.ae_title:
            self._reject(event, title, address, _CALLED_UNKNOWN, "asked for another AE title")
        elif not any(_knows(peer, title, address) for peer in self._settings.peers):
            self._reject(event, title, address, _CALLING_UNKNOWN, "no peer of this AE title and address")
        elif not self._admits(event.assoc):
            self._reject(event, title, address, _TOO_MANY, "too many associations")

    def _admits(self, association: Any) -> bool:
        """Whether there is room for a listed peer's association, which is then counted."""
        with self._guard:
            self._admitted = {one for one in self._admitted if one.is_alive()}
            if len(self._admitted) >= self._settings.limits.associations:
                return False
            self._admitted.add(association)
            return True

    def _reject(
        self, event: evt.Event, title: str, address: str, reason: tuple[int, int, int], why: str
    ) -> None:
        self._refused("rejected", f"{title} at {address}", why)
        event.assoc.acse.send_reject(*reason)
        event.assoc.kill()

    def _refused(self, kind: str, sender: str, why: str) -> None:
        shown = "".join(c if c.isprintable() else "?" for c in sender)
        self.counts[kind] += 1
        self.refusals.append(Refusal(time.time(), shown, why))
        LOG.warning("%s from %s: %s", kind, shown, why)

    def _ended(self, event: evt.Event, released: bool) -> None:
        self._intake.ended(_association(event), released)

    # --- objects ----------------------------------------------------------------------------------

    def _store(self, event: evt.Event) -> int | Dataset:
        """Store an object; the returned status is sent when it is on the disk."""
        try:
            content = self._content(event)
            instance = read_instance(content)
            asked = _request(event)
            announced = (asked.AffectedSOPInstanceUID, asked.AffectedSOPClassUID)
            if (instance.sop_uid, instance.sop_class_uid) != announced:
                return self._refusal(event, OTHER_SOP_CLASS, "the object is not the one that was announced")
            arrival = self._intake.take(instance, content, _association(event))
        except OutputError as error:
            return self._refusal(event, OUT_OF_RESOURCES, _room(error))
        except ConflictError as error:
            return self._refusal(event, CONFLICT, str(error))
        except ScanError as error:
            return self._refusal(event, NOT_UNDERSTOOD, str(error))
        self.counts["stored" if arrival.value == "new" else "known"] += 1
        return SUCCESS

    def _content(self, event: evt.Event) -> bytes:
        """The object in the form of a file.

        Raises:
            OutputError: it exceeds the size limit.
        """
        size = len(cast("BytesIO", _request(event).DataSet).getbuffer())
        if size > self._settings.limits.object_bytes:
            raise OutputError(f"larger than {self._settings.limits.object_bytes} bytes (limits.object_bytes)")
        content: bytes = event.encoded_dataset()
        return content

    def _refusal(self, event: evt.Event, status: int, why: str) -> Dataset:
        self._refused("refused", _sender(event), why)
        answer = Dataset()
        answer.Status = status
        answer.ErrorComment = why[:64]
        return answer


def _request(event: evt.Event) -> C_STORE:
    return cast("C_STORE", event.request)


def _room(error: OutputError) -> str:
    """An error message without the path, which is internal to the node."""
    text = str(error)
    return text if text.startswith("larger") else "no room to store it, or the disk refuses it"


def _knows(peer: Peer, title: str, address: str) -> bool:
    return peer.ae_title == title and peer.is_at(address)


def _sender(event: evt.Event) -> str:
    return f"{event.assoc.requestor.ae_title} at {event.assoc.requestor.address}"


def _association(event: evt.Event) -> str:
    return str(id(event.assoc))


def server_context(tls: Tls) -> ssl.SSLContext:
    """TLS as in the Secure Transport Connection Profiles (PS3.15 B): both sides present certificates.

    Raises:
        ZoomSegError: a file cannot be used.
    """
    return _with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), tls)


def client_context(tls: Tls) -> ssl.SSLContext:
    """TLS for associations that the node opens; as ``server_context``."""
    return _with_files(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls)


def _with_files(context: ssl.SSLContext, tls: Tls) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(tls.certificate, tls.key)
        context.load_verify_locations(tls.authorities)
    except (OSError, ssl.SSLError) as error:
        raise ZoomSegError(f"tls: a certificate or key cannot be used ({error})") from error
    context.verify_mode = ssl.CERT_REQUIRED
    return context
