"""Connections that send nothing, or not all of a message, delay no other."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from helpers.certificates import certificates, openssl
from helpers.nodes import association, running, settings, until
from zoomseg.node.receiver import client_context
from zoomseg.node.run import Node
from zoomseg.node.settings import Tls

SOON = 30.0
"""In seconds; half the time for which a node waits for a silent connection."""


def connected(node: Node) -> socket.socket:
    """A connection without a request."""
    return socket.create_connection(("127.0.0.1", node.receiver.port))


@openssl
def test_with_tls_a_silent_connection_keeps_no_other_waiting_nor_the_end(tmp_path: Path) -> None:
    mine = certificates(tmp_path / "mine")
    with running(settings(tmp_path, tls=mine), dry_run=True) as node, connected(node):
        options = {"tls_args": (client_context(Tls.model_validate(mine)), "localhost")}
        with association(node, [], **options) as found:
            assert found.send_c_echo().Status == 0
        began = time.monotonic()
        node.receiver.stop()
        assert time.monotonic() - began < SOON


@openssl
def test_with_tls_a_silent_connection_is_closed(tmp_path: Path) -> None:
    limits = {"idle_seconds": 0.5, "free_bytes": 0}
    found = settings(tmp_path, tls=certificates(tmp_path / "mine"), limits=limits)
    with running(found, dry_run=True) as node, connected(node) as silent:
        silent.settimeout(SOON)
        assert silent.recv(1) == b""


@pytest.mark.parametrize("begin", [b"", b"\x01", b"\x01\x00\x00\x00\x01\x00half"])
def test_half_a_message_does_not_hold_up_the_end(tmp_path: Path, begin: bytes) -> None:
    limits = {"idle_seconds": 1, "free_bytes": 0}
    with running(settings(tmp_path, limits=limits), dry_run=True) as node, connected(node) as silent:
        silent.sendall(begin)
        with association(node, []) as found:
            assert found.send_c_echo().Status == 0
        began = time.monotonic()
        node.receiver.stop()
        assert time.monotonic() - began < SOON


def test_connections_without_a_request_take_no_place_of_peers(tmp_path: Path) -> None:
    limits = {"associations": 1, "free_bytes": 0}
    with running(settings(tmp_path, limits=limits), dry_run=True) as node, connected(node), connected(node):
        until(lambda: len(node.receiver._ae.active_associations) == 2)
        with association(node, []) as found:
            assert found.is_established
