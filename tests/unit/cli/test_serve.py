"""``zoomseg serve``: wrong use, in one line. ``tests/unit/serve`` tests the server itself."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from zoomseg.cli.main import main
from zoomseg.serve import server


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["serve", "--device", "cpu", *arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = ("--folder", str(tmp_path))
    assert "'lots' is not an amount of memory" in refused(capsys, "--max-upload", "lots", *folder)
    missing = refused(capsys, "--port", "0", "-m", "no-such-model", *folder)
    assert missing.startswith("zoomseg: no model folder at no-such-model")
    assert missing.count("\n") == 1


def test_a_port_in_use_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert f"port {port}" in refused(capsys, "--port", port, "--folder", str(tmp_path))


def test_others_need_a_token_of_some_length(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ZOOMSEG_TOKEN", "short")
    assert "at least 16 characters" in refused(capsys, "--host", "0.0.0.0", "--folder", str(tmp_path))


def test_behind_a_reverse_proxy_a_token_is_needed_and_the_queue_has_its_length(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.delenv(server.TOKEN_VARIABLE, raising=False)
    monkeypatch.setattr(server, "serve", lambda *given: asked.append(given))
    for name in ((), ("--allow-host", "seg.example")):
        options = ("--device", "cpu", "--port", "0", "--queue", "3", "--folder", str(tmp_path))
        with pytest.raises(SystemExit) as stop:
            main(["serve", *options, *name])
        assert stop.value.code == 0
    here, proxied = ((names, token, waiting) for _, _, names, token, _, _, waiting, _, _ in asked)
    assert here == ((), None, 3)
    names, token, waiting = proxied
    assert (names, waiting) == (("seg.example",), 3)
    assert len(token) >= 40
