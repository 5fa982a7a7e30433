"""``zoomseg node`` as a process: it prints its address, receives, and stops on request."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import yaml

from helpers.nodes import settings
from zoomseg.cli.main import main


def test_it_receives_and_stops_when_it_is_asked_to(tmp_path: Path) -> None:
    file = tmp_path / "node.yaml"
    file.write_text(yaml.safe_dump(settings(tmp_path).model_dump(mode="json")))
    command = [sys.executable, "-u", "-m", "zoomseg", "node", str(file), "--dry-run"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ExitStack() as leaving,
    ):
        leaving.callback(process.kill)  # otherwise the node would wait for it indefinitely
        assert process.stdout is not None
        found = re.match(r"Open (http://127\.0\.0\.1:\d+/)$", process.stdout.readline())
        assert found is not None
        assert "Receiving as ZOOMSEG on port " in process.stdout.readline()
        assert "dry run" in httpx.get(found[1], timeout=60).text
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the node has stopped" in errors


@pytest.mark.parametrize("text", ["rules: []", "{"])
def test_settings_that_are_wrong_are_said_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "node.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["node", str(tmp_path / "node.yaml")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (("--from", "pacs"), "--from is for --pull; give both"),
        (("--pull", "studies", "--dry-run"), "--dry-run is for a node, and --pull starts none; give one"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    capsys: pytest.CaptureFixture[str], given: tuple[str, ...], says: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["node", "node.yaml", *given])
    assert stop.value.code == 2
    assert says in " ".join(capsys.readouterr().err.split())


@pytest.mark.usefixtures("levels")
@pytest.mark.parametrize("source", [(), ("--from", "elsewhere")], ids=["none", "an unknown one"])
def test_studies_are_pulled_from_a_destination_of_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], source: tuple[str, ...]
) -> None:
    file, listed = tmp_path / "node.yaml", tmp_path / "studies"
    places = {"web": {"url": "http://127.0.0.1:1"}}
    file.write_text(yaml.safe_dump(settings(tmp_path, destinations=places).model_dump(mode="json")))
    listed.write_text("1.2.3\n")
    with pytest.raises(SystemExit) as stop:
        main(["node", str(file), "--pull", str(listed), *source])
    assert stop.value.code == 2
    assert "--from must name a destination: web" in capsys.readouterr().err


LIBRARIES = ("pydicom", "pynetdicom")


@pytest.fixture
def levels() -> Iterator[None]:
    before = [logging.getLogger(name).level for name in LIBRARIES]
    yield
    for name, level in zip(LIBRARIES, before, strict=True):
        logging.getLogger(name).setLevel(level)


def pull_in_vain(tmp_path: Path, studies: str) -> None:
    """Pull a list of studies from an archive that does not answer."""
    places = {"web": {"url": "http://127.0.0.1:1"}}
    file, listed = tmp_path / "node.yaml", tmp_path / "studies"
    file.write_text(yaml.safe_dump(settings(tmp_path, destinations=places).model_dump(mode="json")))
    listed.write_text(studies)
    with pytest.raises(SystemExit) as stop:
        main(["node", str(file), "--pull", str(listed), "--from", "web"])
    assert stop.value.code == 2


@pytest.mark.usefixtures("levels")
def test_libraries_that_log_values_of_headers_are_silent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pull_in_vain(tmp_path, "1.2.3\n")
    assert capsys.readouterr().out.startswith("study 1 of 1: it cannot be reached")
    for name in LIBRARIES:
        assert not logging.getLogger(name).isEnabledFor(logging.ERROR)


@pytest.mark.usefixtures("levels")
def test_a_list_without_studies_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pull_in_vain(tmp_path, "# none yet\n")
    assert "studies names no study; write one Study Instance UID per line" in capsys.readouterr().err
