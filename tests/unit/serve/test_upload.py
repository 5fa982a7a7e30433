"""A request's body as a file. Limits and refusals are tested with the routes, in ``test_app``."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request

from helpers.servers import noise
from zoomseg.core.errors import OutputError, ScanError
from zoomseg.serve import upload
from zoomseg.serve.upload import PIECE_BYTES, TooSlowError, in_threads, receive


def request(*messages: dict[str, Any]) -> Request:
    left = list(messages)

    async def next_message() -> dict[str, Any]:
        return left.pop(0)

    receive_messages: Callable[[], Awaitable[dict[str, Any]]] = next_message
    return Request({"type": "http", "headers": []}, receive_messages)


def body(content: bytes, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


def test_pieces_are_put_together_in_order(tmp_path: Path) -> None:
    content = noise(2 * PIECE_BYTES + 17)
    pieces = [content[i : i + 1_000_003] for i in range(0, len(content), 1_000_003)]
    messages = [body(piece, piece is not pieces[-1]) for piece in pieces]
    asyncio.run(receive(request(*messages), tmp_path / "scan.nii", 10**9))
    assert (tmp_path / "scan.nii").read_bytes() == content


def test_an_upload_that_is_broken_off_is_no_scan(tmp_path: Path) -> None:
    broken = request(body(b"half", True), {"type": "http.disconnect"})
    with pytest.raises(ScanError, match="broken off"):
        asyncio.run(receive(broken, tmp_path / "scan.nii", 10**9))


@pytest.mark.parametrize("every_s", [0.02, None], ids=["drops", "silence"])
def test_a_client_that_does_not_send_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_s: float | None
) -> None:
    monkeypatch.setattr(upload, "SILENT_SECONDS", 0.2)

    async def next_message() -> dict[str, Any]:
        if every_s is None:
            await asyncio.Event().wait()
        await asyncio.sleep(every_s or 0)
        return body(b"x", True)

    async def wait_for_it() -> None:
        slow = Request({"type": "http", "headers": []}, next_message)
        await asyncio.wait_for(receive(slow, tmp_path / "scan.nii", 10**9), 20)

    with pytest.raises(TooSlowError, match=r"the upload does not come \(\d+ bytes came in 1 s\)"):
        asyncio.run(wait_for_it())


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "scan.nii").write_bytes(b"first")
    with pytest.raises(OutputError, match=r"scan\.nii: cannot be written"):
        asyncio.run(receive(request(body(b"second", False)), tmp_path / "scan.nii", 10**9))
    assert (tmp_path / "scan.nii").read_bytes() == b"first"


@pytest.mark.parametrize("fails", [False, True])
def test_a_context_begins_and_ends_in_other_threads(fails: bool) -> None:
    threads: list[int] = []

    @contextmanager
    def blocking() -> Iterator[str]:
        threads.append(threading.get_ident())
        try:
            yield "entered"
        finally:
            threads.append(threading.get_ident())

    async def use() -> None:
        async with in_threads(blocking()) as found:
            assert found == "entered"
            if fails:
                raise KeyError("inside")

    with pytest.raises(KeyError, match="inside") if fails else nullcontext():
        asyncio.run(use())
    assert len(threads) == 2
    assert threading.get_ident() not in threads


def test_a_cancelled_request_ends_the_context() -> None:
    ended: list[str] = []

    @contextmanager
    def blocking() -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            ended.append(type(error).__name__)
            raise

    async def wait() -> None:
        async with in_threads(blocking()):
            await asyncio.Event().wait()

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert ended == ["CancelledError"]
