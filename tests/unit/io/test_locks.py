"""A lock has one holder, who is named, and ends with its process."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from zoomseg.core.errors import OutputError
from zoomseg.io.locks import locked, waiting_for

HOLD = """
import sys, time
from pathlib import Path
from zoomseg.io.locks import locked, waiting_for
held = locked(Path(sys.argv[1]), "")
print("held", flush=True)
time.sleep(60)
"""


def test_the_second_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    with locked(tmp_path / "lock", "is in use"):
        who = rf"is in use \(process {os.getpid()} on {re.escape(socket.gethostname())}, since \d{{4}}-.*\)$"
        for _ in range(2):  # a refusal does not remove the holder's name
            with pytest.raises(OutputError, match=re.escape(f"{tmp_path}: ") + who):
                locked(tmp_path / "lock", "is in use")
    locked(tmp_path / "lock", "is in use").close()


def test_what_a_killed_process_leaves_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", HOLD, file], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            with pytest.raises(OutputError, match=f"process {holder.pid} on"):
                locked(file, "is in use")
        finally:
            holder.kill()
    assert file.is_file()
    with locked(file, "is in use"):
        assert file.read_text().startswith(f"process {os.getpid()} on ")


def test_a_file_system_without_locks_is_used_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: object, how: int) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path / "lock", "is in use"), locked(tmp_path / "lock", "is in use"):
        assert (tmp_path / "lock").is_file()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        locked(tmp_path / "none" / "lock", "is in use")


@pytest.mark.parametrize("target", ["victim.txt", "gone.txt"])
def test_a_link_is_not_followed(tmp_path: Path, target: str) -> None:
    """In a folder from somebody else, it may lead to any file of the user."""
    (tmp_path / "victim.txt").write_text("important")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(Path("..") / target)
    with pytest.raises(OutputError, match="a link, which may lead outside of its folder"):
        locked(tmp_path / "run" / ".lock", "is in use")
    assert (tmp_path / "victim.txt").read_text() == "important"
    assert not (tmp_path / "gone.txt").exists()


def test_what_is_no_file_is_no_lock(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "lock")
    with pytest.raises(OutputError, match="not a file"):
        locked(tmp_path / "lock", "is in use")


def test_a_folder_that_cannot_be_listed_is_used_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with waiting_for(tmp_path):
            held = True
    assert held


WAIT = """
import sys
import time
from pathlib import Path
from zoomseg.io.locks import waiting_for
folder = Path(sys.argv[1])
print("begun", flush=True)
with waiting_for(folder):
    print((folder / "counter").read_text(), flush=True)
"""


def test_a_second_process_waits_for_the_folder_and_no_file_is_left(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("before")
    with waiting_for(tmp_path):
        other = subprocess.Popen([sys.executable, "-c", WAIT, tmp_path], stdout=subprocess.PIPE, text=True)
        assert other.stdout is not None
        assert other.stdout.readline() == "begun\n"
        time.sleep(0.5)
        counter.write_text("after")
    with other:
        assert other.stdout.readline() == "after\n"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]
