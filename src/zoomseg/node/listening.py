"""The node's listening socket: connections that send nothing, or not all of a message, delay no other."""

# mypy: allow-untyped-calls

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence
from typing import Any, cast

import pynetdicom
from pynetdicom.transport import ThreadedAssociationServer


class _Server(ThreadedAssociationServer):
    """Makes each connection's TLS handshake in the connection's own thread, and waits for its data at most
    for the network timeout. pynetdicom makes handshakes in the thread that accepts connections, and waits for
    ever."""

    daemon_threads = True
    """The end does not wait for handshakes."""

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
) -> ThreadedAssociationServer:
    """A server that accepts connections until ``ae.shutdown``; as ``AE.start_server``.

    Raises:
        OSError: the address is in use, or not this machine's.
    """
    server = ae.make_server(place, ssl_context=context, evt_handlers=list(handlers), server_class=_Server)
    threading.Thread(target=server.serve_forever, name="zoomseg-receiver", daemon=True).start()
    ae._servers.append(server)  # by which shutdown finds it
    return server
