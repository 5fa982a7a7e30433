"""A request's body as a file: counted as it arrives, never held in memory."""

from __future__ import annotations

import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from anyio import CancelScope, fail_after, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from zoomseg.core.errors import ScanError, ZoomSegError
from zoomseg.core.memory import format_bytes
from zoomseg.io.files import parse_json, writing

PIECE_BYTES = 4 * 1024**2
"""Number of bytes written at once, by a thread, so that a slow disk does not block the server."""


SILENT_SECONDS = 30.0
"""Maximum time for which a client may send nothing."""

MIN_BYTES_PER_SECOND = 1000
"""Minimum average rate of an upload, after ``SILENT_SECONDS``: clients that send single bytes from time to
time are ended, too."""


Entered = TypeVar("Entered")


class TooSlowError(ZoomSegError):
    """The client sends nothing, or almost nothing."""


class TooLargeError(ZoomSegError):
    """The upload exceeds the limit."""


@asynccontextmanager
async def in_threads(blocking: AbstractContextManager[Entered]) -> AsyncIterator[Entered]:
    """A context whose beginning and end wait for the disk or for locks, outside of the event loop. It is also
    ended if the request is cancelled."""
    with CancelScope(shield=True):  # if it begins, it is to end
        entered = await to_thread.run_sync(blocking.__enter__)
    try:
        yield entered
    except BaseException as error:
        with CancelScope(shield=True):
            await to_thread.run_sync(blocking.__exit__, type(error), error, error.__traceback__)
        raise
    with CancelScope(shield=True):
        await to_thread.run_sync(blocking.__exit__, None, None, None)


async def receive(request: Request, path: Path, limit: int) -> None:
    """Write the body to ``path``, and flush it to the disk.

    Raises:
        TooLargeError: it is longer than ``limit`` bytes, or declares to be.
        TooSlowError: it does not arrive.
        ScanError: it is empty, or the client disconnected.
        OutputError: the disk refuses it.
    """
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    with writing(path), path.open("xb") as file:
        try:
            received = await _copy(request, file, limit)
        except ClientDisconnect as error:
            raise ScanError("the upload was broken off") from error
    if received == 0:
        raise ScanError("the upload is empty; the body of the request must be the scan's file")


async def receive_json(request: Request, limit: int) -> Any:
    """The body as JSON.

    Raises:
        TooLargeError: it is longer than ``limit`` bytes.
        TooSlowError: it does not arrive.
        HTTPException: 400, it is not JSON.
    """
    content = bytearray()
    try:
        async for piece in _in_time(request.stream()):
            content += piece
            if len(content) > limit:
                raise TooLargeError(f"larger than {format_bytes(limit)}, the most that is taken here")
        return parse_json(bytes(content))
    except ClientDisconnect as error:
        raise HTTPException(400, "the request was broken off") from error
    except ValueError as error:
        raise HTTPException(400, f"not JSON ({error})") from error


async def _copy(request: Request, file: BinaryIO, limit: int) -> int:
    received, pending = 0, bytearray()
    async for piece in _in_time(request.stream()):
        received += len(piece)
        if received > limit:
            raise _too_large(limit)
        pending += piece
        if len(pending) >= PIECE_BYTES:
            await to_thread.run_sync(file.write, bytes(pending))
            pending.clear()
    await to_thread.run_sync(file.write, bytes(pending))
    await to_thread.run_sync(_flush, file)
    return received


def _flush(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


async def _in_time(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The pieces of the body, as long as they arrive in time."""
    began, received = time.monotonic(), 0
    while True:
        left = began + SILENT_SECONDS + received / MIN_BYTES_PER_SECOND - time.monotonic()
        try:
            with fail_after(max(0.0, min(SILENT_SECONDS, left))):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError as error:
            so_far = f"{received} bytes came in {math.ceil(time.monotonic() - began)} s"
            raise TooSlowError(f"the upload does not come ({so_far}); send the whole file at once") from error
        received += len(piece)
        yield piece


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(
        f"larger than {format_bytes(limit)}, the most that this server takes; see --max-upload"
    )
