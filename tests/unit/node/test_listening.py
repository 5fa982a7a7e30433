"""Connections that send nothing, or not all of a message, delay no other."""

from __future__ import annotations

import socket
import sys
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


def connected(node: Node, address: str = "127.0.0.1") -> socket.socket:
    """A connection without a request."""
    return socket.create_connection(("127.0.0.1", node.receiver.port), SOON, source_address=(address, 0))


def is_closed(connection: socket.socket) -> bool:
    """Whether the node closes a connection before anything is sent."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere 127.0.0.2 is not this machine's")


def echo(node: Node) -> int:
    with association(node, []) as found:
        assert found.is_established
        return int(found.send_c_echo().Status)


@linux
def test_a_connection_from_another_address_is_closed_before_a_thread_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(settings(tmp_path), dry_run=True) as node:
        server = node.receiver._server
        monkeypatch.setattr(server, "process_request", lambda *_: pytest.fail("a thread"))
        with connected(node, "127.0.0.2") as stranger:
            assert is_closed(stranger)
        monkeypatch.undo()
        assert [(one.sender, one.why) for one in node.receiver.refusals] == [
            ("127.0.0.2", "no peer has this address")
        ]
        strangers = [connected(node, "127.0.0.2") for _ in range(200)]
        assert echo(node) == 0
        assert all(is_closed(one) for one in strangers)
        assert node.receiver.counts["rejected"] == 201
        assert len(node.receiver.refusals) < 100  # one in a second
        for one in strangers:
            one.close()


def test_a_health_check_of_the_same_machine_is_not_listed(tmp_path: Path) -> None:
    """As that of the Dockerfile, twice a minute: it connects, and closes the connection."""
    peers = [{"ae_title": "SENDER", "addresses": ["192.0.2.1"]}]
    with running(settings(tmp_path, peers=peers), dry_run=True) as node:
        with connected(node) as check:
            until(lambda: len(node.receiver._server._connections) == 1)
            check.close()
        assert node.receiver.counts["rejected"] == 0
        assert not node.receiver.refusals


@linux
@openssl
def test_with_tls_a_connection_from_another_address_is_closed_without_a_handshake(tmp_path: Path) -> None:
    found = settings(tmp_path, tls=certificates(tmp_path / "mine"))
    with running(found, dry_run=True) as node, connected(node, "127.0.0.2") as stranger:
        assert is_closed(stranger)


@linux
def test_one_address_does_not_take_the_connections_of_others(tmp_path: Path) -> None:
    """NullObserver ones end after the time for idle connections, and make room."""
    peers = [{"ae_title": "SENDER", "addresses": ["127.0.0.0/8"]}]
    limits = {"associations": 2, "idle_seconds": 2, "free_bytes": 0}
    with running(settings(tmp_path, peers=peers, limits=limits), dry_run=True) as node:
        silent = [connected(node, "127.0.0.2") for _ in range(8)]
        with connected(node, "127.0.0.2") as more:
            assert is_closed(more)
        assert node.receiver.refusals[-1].why == "too many connections"
        assert echo(node) == 0
        assert all(is_closed(one) for one in silent)
        with connected(node, "127.0.0.2") as again:
            until(lambda: len(node.receiver._ae.active_associations) == 1)
            assert node.receiver.counts["rejected"] == 1
            again.close()


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
