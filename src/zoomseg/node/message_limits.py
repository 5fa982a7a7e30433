"""Limits on what an association holds in memory before the node can refuse it; pynetdicom has none."""

# mypy: allow-untyped-calls

from __future__ import annotations

from typing import Any

from pynetdicom import evt
from pynetdicom.pdu import P_DATA_TF

MAX_PDU_LENGTH = 1024**2
"""In bytes. The node announces 16 kB, but a connection may send any length, also before it is known from whom
it comes."""

_COMMAND, _LAST = 0b01, 0b10
"""Bits of a fragment's first byte (PS3.8 E.2)."""


def limit_pdus(event: evt.Event) -> None:
    """End a connection that sends a PDU longer than ``MAX_PDU_LENGTH``. Called when it opens."""
    socket: Any = event.assoc.dul.socket
    receive = socket.recv

    def limited(count: int) -> bytearray:
        if count > MAX_PDU_LENGTH:
            raise OSError(f"a PDU of {count} bytes, {MAX_PDU_LENGTH} at most are read")
        found: bytearray = receive(count)
        return found

    socket.recv = limited


class ObjectLimit:
    """Discards the rest of an object that is larger than a limit: what remains is larger, too, by a fragment
    at most. Its sender is answered when it has sent the whole object, and can continue with the next one."""

    def __init__(self, most_bytes: int) -> None:
        self._most = most_bytes
        self._received: dict[int, int] = {}
        """Bytes of the current object, by association."""

    def count(self, event: evt.Event) -> None:
        """Called for every PDU."""
        if not isinstance(event.pdu, P_DATA_TF):
            return
        for item in event.pdu.presentation_data_value_items:
            data = item.presentation_data_value or b""
            if data and not data[0] & _COMMAND:
                received = self._received.get(id(event.assoc), 0)
                if received > self._most:
                    item.presentation_data_value = data[:1]
                self._received[id(event.assoc)] = 0 if data[0] & _LAST else received + len(data) - 1

    def forget(self, event: evt.Event) -> None:
        """Called when an association has ended."""
        self._received.pop(id(event.assoc), None)
