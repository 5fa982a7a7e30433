"""What an association can send into the memory of a node."""

from __future__ import annotations

import socket
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pynetdicom.pdu import A_RELEASE_RQ, P_DATA_TF
from pynetdicom.pdu_items import PresentationDataValueItem

from helpers.nodes import push, running, series, settings
from zoomseg.node.message_limits import MAX_PDU_LENGTH, ObjectLimit
from zoomseg.node.receiver import OUT_OF_RESOURCES

COMMAND, DATA, LAST_DATA = b"\x03", b"\x00", b"\x02"


def passed(limit: ObjectLimit, association: object, *fragments: bytes) -> list[int]:
    """The sizes of fragments of a PDU that are left, without their first bytes."""
    pdu = P_DATA_TF()
    for fragment in fragments:
        item = PresentationDataValueItem()
        item.presentation_data_value = fragment
        pdu.presentation_data_value_items.append(item)
    limit.count(SimpleNamespace(pdu=pdu, assoc=association))
    return [len(item.presentation_data_value or b"") - 1 for item in pdu.presentation_data_value_items]


def test_what_follows_the_limit_is_discarded_until_the_next_object() -> None:
    limit, one, other = ObjectLimit(100), object(), object()
    piece = bytes(60)
    assert passed(limit, one, COMMAND + bytes(500), DATA + piece, DATA + piece, DATA + piece) == [
        500,
        60,
        60,
        0,
    ]
    assert passed(limit, other, DATA + piece) == [60]  # each association has its own count
    assert passed(limit, one, LAST_DATA + piece, COMMAND + piece, LAST_DATA + piece) == [0, 60, 60]
    limit.count(SimpleNamespace(pdu=A_RELEASE_RQ(), assoc=one))
    for each in (one, other, one):
        limit.forget(SimpleNamespace(assoc=each))
    assert limit._received == {}


def test_of_an_object_that_is_too_large_little_is_held_and_the_next_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"object_bytes": 20_000, "free_bytes": 0}
    large, small = series()[:2]
    large.Rows = large.Columns = 1000
    large.PixelData = bytes(2 * 1000 * 1000)
    held: list[int] = []
    with running(settings(tmp_path, limits=limits), dry_run=True) as node:
        read = node.receiver._content

        def measure(event: Any) -> bytes:
            held.append(len(event.request.DataSet.getvalue()))
            return read(event)

        monkeypatch.setattr(node.receiver, "_content", measure)
        assert push(node, [large, small, large]) == [OUT_OF_RESOURCES, 0, OUT_OF_RESOURCES]
    assert max(held) < 20_000 + 2 * 16_384


def test_a_pdu_of_an_absurd_length_ends_the_connection(tmp_path: Path) -> None:
    with (
        running(settings(tmp_path), dry_run=True) as node,
        socket.create_connection(("127.0.0.1", node.receiver.port)) as sock,
    ):
        sock.settimeout(60)
        sock.sendall(struct.pack(">BBL", 0x01, 0, MAX_PDU_LENGTH + 1))  # the rest need not arrive
        assert sock.recv(1) == b""
