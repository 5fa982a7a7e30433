"""``zoomseg view``: two files, one address."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from helpers.tiny_dataset import tiny_case
from zoomseg.cli.main import main
from zoomseg.io.scans import write_image, write_labels
from zoomseg.serve import server


@pytest.mark.parametrize("browser", [True, False])
def test_the_address_is_printed_and_opened_if_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], browser: bool
) -> None:
    write_image(tmp_path / "a.nii.gz", tiny_case(0)[0])
    write_labels(tmp_path / "b.nrrd", tiny_case(0)[1])
    opened: list[str] = []
    served, left = threading.Event(), threading.Event()
    titles: list[str] = []

    def run(app: object, sock: object, stopping: str, stopped: str) -> None:
        with TestClient(app, base_url="http://127.0.0.1") as client:  # type: ignore[arg-type]
            titles.append(client.get("/view.json").json()["title"])
            assert client.get("/labels.nii.gz").status_code == 200
        served.set()
        assert not browser or left.wait(20)

    def open_(address: str) -> None:
        assert served.wait(20)  # as a text browser: it ends after it was served
        opened.append(address)
        left.set()

    monkeypatch.setattr(webbrowser, "open", open_)
    monkeypatch.setattr(server, "run", run)
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "view",
                str(tmp_path / "a.nii.gz"),
                str(tmp_path / "b.nrrd"),
                *([] if browser else ["--no-browser"]),
            ]
        )
    assert stop.value.code in (0, None)
    assert titles == ["a.nii.gz, b.nrrd"]
    address = capsys.readouterr().out.split()[1]
    assert address.startswith("http://127.0.0.1:")
    assert opened == ([address] if browser else [])


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["view", str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")])
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
