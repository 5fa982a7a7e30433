"""`zoomseg serve` from models to a listening server, and the server that `zoomseg view` needs."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from zoomseg.core.errors import ZoomSegError
from zoomseg.core.interrupts import InterruptedWorkError, on_interrupt
from zoomseg.io import bundle
from zoomseg.serve.access import App, access, needs_token
from zoomseg.serve.app import ModelView, Service, create_app
from zoomseg.serve.corrections import Corrections
from zoomseg.serve.job_runner import Runner
from zoomseg.serve.jobs import Jobs
from zoomseg.serve.worker import ProcessWorker

TOKEN_VARIABLE = "ZOOMSEG_TOKEN"
MIN_TOKEN = 16
"""Minimum number of characters; shorter tokens can be guessed."""

STOPPING = "stopping; the current scan is interrupted; waiting scans are kept"
STOPPED = "stopped; scans that wait are segmented after the next start"
HEAD_SECONDS = 30.0
"""Maximum time that a connection may be open without a complete head of a request."""
STOP_SECONDS = 3
"""Maximum time for completing current requests when the server stops."""


def default_folder() -> Path:
    """The default folder for a server's jobs: in the user's state folder."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "zoomseg" / "serve"


def served_models(names: Sequence[str]) -> tuple[dict[str, Path], dict[str, ModelView]]:
    """Folders of models, and their descriptions, by the names that clients use: those of their folders.

    Raises:
        ModelError: one cannot be read.
        ZoomSegError: two have the same name.
    """
    folders: dict[str, Path] = {}
    views: dict[str, ModelView] = {}
    for given in names:
        folder = bundle.find(given).resolve()
        if folder.name in folders:
            raise ZoomSegError(f"two models are called '{folder.name}'; rename the folder of one")
        trained = bundle.load(folder)
        folders[folder.name] = folder
        views[folder.name] = ModelView(
            name=folder.name,
            recipe=trained.recipe.name,
            organs=list(trained.schema.names),
            stages=[stage.name for stage in trained.recipe.stages],
            channels=list(trained.channel_names),
            groups={name: list(organs) for name, organs in trained.schema.groups.items()},
        )
    return folders, views


def token_for(host: str, names: tuple[str, ...], environment: Mapping[str, str]) -> str | None:
    """The token that clients need: the environment's, a new one if other machines can reach the server, or
    None.

    Raises:
        ZoomSegError: the environment's is too short.
    """
    given = environment.get(TOKEN_VARIABLE)
    if given:
        if len(given) < MIN_TOKEN or not given.isascii() or not given.isprintable():
            raise ZoomSegError(
                f"{TOKEN_VARIABLE} must have at least {MIN_TOKEN} characters, all of plain ASCII"
            )
        return given
    return secrets.token_urlsafe(32) if needs_token(host, names) else None


def listening(host: str, port: int) -> socket.socket:
    """A listening socket; port 0: any free one.

    Raises:
        ZoomSegError: the address is in use, or not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise ZoomSegError(f"cannot listen at {host}, port {port} ({reason}); give another") from error


def address(sock: socket.socket, token: str | None) -> str:
    """The address to be opened in a browser."""
    host, port = sock.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}/" + (f"?{urlencode({'token': token})}" if token else "")


class _Connection(H11Protocol):
    """A connection that is closed if no request arrives: uvicorn would keep it open as long as the client
    does, and new connections would fail at the process's limit of open files."""

    _unasked: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._unasked is not None:
            self._unasked.cancel()

    def _watch(self) -> None:
        """Wait until a head is complete: during the response, other limits apply."""
        asked = self.cycle is not None and not self.cycle.response_complete
        if asked and self._unasked is not None:
            self._unasked.cancel()
            self._unasked = None
        elif not asked and self._unasked is None:
            self._unasked = self.loop.call_later(HEAD_SECONDS, self.transport.close)


class _Server(uvicorn.Server):
    """Leaves signals to ``core.interrupts``; uvicorn would raise them again at the end."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def configured(app: App) -> uvicorn.Config:
    """The configuration of requests and responses. Addresses are not logged, as one may contain the token."""
    return uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http=_Connection,
        timeout_graceful_shutdown=STOP_SECONDS,
    )


def run(app: App, sock: socket.socket, stopping: str, stopped: str) -> None:
    """Serve until the process is interrupted, and report that.

    Raises:
        InterruptedWorkError: it was interrupted.
    """
    server = _Server(configured(app))

    def stop() -> None:
        server.should_exit = True

    with on_interrupt(stopping, stop):
        server.run([sock])
    if server.should_exit:
        raise InterruptedWorkError(stopped)


def serve(
    models: Sequence[str],
    sock: socket.socket,
    names: tuple[str, ...],
    token: str | None,
    folder: Path,
    device: str,
    waiting: int,
    max_upload: int,
    on_open: Callable[[], None],
) -> None:
    """Serve models until the process is interrupted.

    Args:
        on_open: called when this server has locked the folder.
    """
    folders, views = served_models(models)
    jobs = Jobs(folder, waiting)
    on_open()
    runner = Runner(jobs, folders, lambda: ProcessWorker(device, models=folders.values()))
    host = sock.getsockname()[0]
    service = Service(jobs, Corrections(folder), runner, views, max_upload)
    app = create_app(service, access(host, names, token))
    runner.start()
    try:
        run(app, sock, STOPPING, STOPPED)
    finally:
        runner.stop()
        jobs.close()
