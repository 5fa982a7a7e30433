"""The node's listening socket: connections of strangers, and those that send nothing, or not all of a
message, delay no other."""

# mypy: allow-untyped-calls

from __future__ import annotations

import socket
import ssl
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import pynetdicom
from pynetdicom.transport import ThreadedAssociationServer


@dataclass(frozen=True)
class ConnectionPolicy:
    """Who may connect. Each open connection takes two threads, before it is known what it wants."""

    is_peer: Callable[[str], bool]
    """Whether an address is that of a peer."""
    max_per_address: int
    """Open connections of one address: if one machine opens too many, those of others still find room."""
    max_connections: int
    """Open connections."""
    on_refused: Callable[[str, str], None]
    """Told of an address that is turned away, and why."""


class _Server(ThreadedAssociationServer):
    """Closes connections that may not be, before a thread is started for them. Makes each connection's TLS
    handshake in the connection's own thread, and waits for its data at most for the network timeout.
    pynetdicom makes handshakes in the thread that accepts connections, and waits for ever."""

    daemon_threads = True
    """The end does not wait for handshakes."""
    policy: ConnectionPolicy

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Called by the thread that accepts connections."""
        address = str(client_address[0])
        # A health check of this machine only looks whether the port is open.
        own = address == str(request.getsockname()[0])
        why = "" if own else self._why_not(address)
        if why:
            self.policy.on_refused(address, why)
            return False
        self._connections[request] = address
        return True

    def _why_not(self, address: str) -> str:
        """The reason to turn an address away; '' if there is none."""
        if not self.policy.is_peer(address):
            return "no peer has this address"
        addresses = [its for one, its in list(self._connections.items()) if one.fileno() >= 0]
        if (
            len(addresses) >= self.policy.max_connections
            or addresses.count(address) >= self.policy.max_per_address
        ):
            return "too many connections"
        return ""

    @cached_property
    def _connections(self) -> weakref.WeakKeyDictionary[Any, str]:
        """Sockets and their addresses, until they are closed."""
        return weakref.WeakKeyDictionary()

    def get_request(self) -> tuple[Any, Any]:
        """Called by the thread that accepts connections."""
        connection, address = cast("socket.socket", self.socket).accept()
        connection.settimeout(self.ae.network_timeout)
        if self.ssl_context is not None:
            connection = self.ssl_context.wrap_socket(
                connection, server_side=True, do_handshake_on_connect=False
            )
        return connection, address

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Called in the connection's thread."""
        ready = _is_ready(request)
        if ready and cast("socket.socket", self.socket).fileno() >= 0:  # it may have been stopped meanwhile
            super().finish_request(request, client_address)
        else:
            self.shutdown_request(request)


def _is_ready(connection: Any) -> bool:
    """Whether a connection needs no TLS handshake, or it succeeds."""
    try:
        if isinstance(connection, ssl.SSLSocket):
            connection.do_handshake()
    except OSError:
        return False
    return True


def listen(
    ae: pynetdicom.AE,
    place: tuple[str, int],
    context: ssl.SSLContext | None,
    handlers: Sequence[Any],
    policy: ConnectionPolicy,
) -> ThreadedAssociationServer:
    """A server that accepts connections until ``ae.shutdown``; as ``AE.start_server``.

    Raises:
        OSError: the address is in use, or not this machine's.
    """
    server = ae.make_server(place, ssl_context=context, evt_handlers=list(handlers), server_class=_Server)
    cast("_Server", server).policy = policy
    threading.Thread(target=server.serve_forever, name="zoomseg-receiver", daemon=True).start()
    ae._servers.append(server)  # by which shutdown finds it
    return server
