"""A request's body as a file: counted as it comes, never held in memory."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from anyio import to_thread
from starlette.requests import ClientDisconnect, Request

from zoomseg.core.errors import ScanError, ZoomSegError
from zoomseg.core.memory import spoken
from zoomseg.io.files import writing

PIECE_BYTES = 4 * 1024**2
"""Written at once, by a thread, so that a slow disk does not keep the server from answering."""


class TooLargeError(ZoomSegError):
    """More is uploaded than may be."""


async def receive(request: Request, path: Path, limit: int) -> None:
    """Write the body to ``path``.

    Raises:
        TooLargeError: it is longer than ``limit`` bytes, or says that it will be.
        ScanError: it is empty, or the client went away.
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


async def _copy(request: Request, file: BinaryIO, limit: int) -> int:
    received, pending = 0, bytearray()
    async for piece in request.stream():
        received += len(piece)
        if received > limit:
            raise _too_large(limit)
        pending += piece
        if len(pending) >= PIECE_BYTES:
            await to_thread.run_sync(file.write, bytes(pending))
            pending.clear()
    await to_thread.run_sync(file.write, bytes(pending))
    return received


def _too_large(limit: int) -> TooLargeError:
    return TooLargeError(f"larger than {spoken(limit)}, the most that this server takes; see --max-upload")
