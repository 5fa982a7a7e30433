"""``zoomseg serve``: wrong use, in one line. ``tests/unit/serve`` tests the server itself."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from zoomseg.cli.main import main


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
