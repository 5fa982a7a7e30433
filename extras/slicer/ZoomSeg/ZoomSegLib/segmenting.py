"""Segment a scan with an installed ``zoomseg``: by its command on this machine, or by a ``zoomseg serve``.

Only Python's standard library is used, as 3D Slicer's own Python has little else, and nothing of 3D Slicer,
so that it can be tested without. Both ways have the same four methods: ``poll``, ``cancel``, ``status`` and
``segmentation``.
"""

# Copyright the ZoomSeg developers. SPDX-License-Identifier: Apache-2.0

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCAN = "scan.nii.gz"
"""The name that a volume is saved by; the command names its results after it."""
CASE = "scan"
TIMEOUT_S = 30.0
"""For an answer of the server."""
PIECE_BYTES = 1 << 20
_LONGEST = 2000
"""Bytes of a refusal that are read."""


class SegmentationError(Exception):
    """Why there is no segmentation, in one line for the user."""


def find_command() -> str | None:
    """Where the command is, if it is on the path."""
    return shutil.which("zoomseg")


def predict_command(
    executable: str, scan: Path, out: Path, model: str = "", organs: Sequence[str] = ()
) -> list[str]:
    """The words of ``zoomseg predict``."""
    words = [executable, "predict", str(scan), "-o", str(out), "--seg-nrrd"]
    if model:
        words += ["-m", model]
    if organs:
        words += ["--organs", ",".join(organs)]
    return words


class LocalRun:
    """``zoomseg predict`` as a process of its own."""

    def __init__(
        self,
        executable: str,
        folder: Path,
        model: str = "",
        organs: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            folder: holds ``SCAN``; results and messages go there.
            environment: of the process; 3D Slicer's own has a Python that is not zoomseg's.

        Raises:
            SegmentationError: there is no such command.
        """
        self._out, self._messages = folder / "out", folder / "messages.txt"
        words = predict_command(executable, folder / SCAN, self._out, model, organs)
        try:
            with self._messages.open("wb") as messages:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=messages,
                    stderr=subprocess.STDOUT,
                    env=None if environment is None else dict(environment),
                )
        except OSError as error:
            raise SegmentationError(f"{executable}: cannot be started ({error.strerror})") from error

    def poll(self) -> bool:
        """Whether it is done.

        Raises:
            SegmentationError: it failed; the command's own last line.
        """
        code = self._process.poll()
        if code:
            raise SegmentationError(self._last_line() or f"zoomseg ended with exit code {code}")
        return code == 0

    def status(self) -> str:
        """What it says at the moment."""
        return self._last_line() or "starting"

    def cancel(self) -> None:
        """End it, if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait()

    def segmentation(self) -> Path:
        """The ``.seg.nrrd``, once it is done."""
        return self._out / "slicer" / f"{CASE}.seg.nrrd"

    def _last_line(self) -> str:
        lines = self._messages.read_text(encoding="utf-8", errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Server:
    """A ``zoomseg serve``, by its REST interface."""

    def __init__(self, address: str, token: str = "") -> None:
        """
        Raises:
            SegmentationError: no address of a web server.
        """
        found = urllib.parse.urlsplit(address)
        if found.scheme not in ("http", "https") or not found.hostname:
            raise SegmentationError(f"'{address}': give an address such as http://127.0.0.1:8000")
        self._base = f"{found.scheme}://{found.netloc}{found.path.rstrip('/')}"
        self._token = token

    def models(self) -> list[str]:
        """The names of its models; the first is used where none is named."""
        return [str(model["name"]) for model in self._json("GET", "/models")]

    def submit(self, scan: Path, model: str = "") -> str:
        """Send a scan; the id of its job."""
        query = {"name": SCAN, **({"model": model} if model else {})}
        with scan.open("rb") as content:
            length = scan.stat().st_size
            job = self._json("POST", f"/jobs?{urllib.parse.urlencode(query)}", content, length)
        return str(job["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """How far a job is."""
        found: dict[str, Any] = self._json("GET", f"/jobs/{_part(job_id)}")
        return found

    def fetch(self, job_id: str, name: str, path: Path) -> None:
        """Write a result of a finished job to a file."""
        with self._ask("GET", f"/jobs/{_part(job_id)}/{name}") as answer, path.open("wb") as file:
            shutil.copyfileobj(answer, file, PIECE_BYTES)

    def remove(self, job_id: str) -> None:
        """Cancel a job, or delete it with its scan and results if it has ended."""
        with self._ask("DELETE", f"/jobs/{_part(job_id)}"):
            pass

    def _json(self, method: str, path: str, content: Any = None, length: int = 0) -> Any:
        with self._ask(method, path, content, length) as answer:
            try:
                return json.load(answer)
            except ValueError as error:
                raise SegmentationError(f"{self._base} is no zoomseg serve") from error

    def _ask(self, method: str, path: str, content: Any = None, length: int = 0) -> Any:
        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        if content is not None:
            headers |= {"Content-Type": "application/octet-stream", "Content-Length": str(length)}
        request = urllib.request.Request(self._base + path, content, headers, method=method)
        try:
            return urllib.request.urlopen(request, timeout=TIMEOUT_S)
        except urllib.error.HTTPError as error:
            raise SegmentationError(f"{self._base}: {_detail(error)}") from error
        except OSError as error:
            raise SegmentationError(f"{self._base} does not answer ({error})") from error


class RemoteRun:
    """A job of a server. Its scan and results are deleted there once they are here."""

    def __init__(self, server: Server, folder: Path, model: str = "") -> None:
        """
        Args:
            folder: holds ``SCAN``; the result goes there.

        Raises:
            SegmentationError: the server refuses the scan.
        """
        self._server, self._path = server, folder / f"{CASE}.seg.nrrd"
        self._status = "sent"
        self._id = server.submit(folder / SCAN, model)

    def poll(self) -> bool:
        """Whether it is done; the result is then here.

        Raises:
            SegmentationError: the server could not segment the scan, or does not answer.
        """
        job = self._server.job(self._id)
        self._status = _spoken(job)
        state = job["state"]
        if state == "finished":
            self._server.fetch(self._id, "seg.nrrd", self._path)
            self._server.remove(self._id)
            return True
        if state not in ("queued", "running"):
            raise SegmentationError(job.get("error") or f"the job is {state}")
        return False

    def status(self) -> str:
        """How far it was when it was last asked."""
        return self._status

    def cancel(self) -> None:
        """Cancel the job."""
        self._server.remove(self._id)

    def segmentation(self) -> Path:
        """The ``.seg.nrrd``, once it is done."""
        return self._path


def _spoken(job: Mapping[str, Any]) -> str:
    if job["state"] == "queued":
        return f"waiting; {job['ahead']} before it"
    if job.get("stage"):
        return f"{job['stage']}: {100 * job['progress']:.0f} %"
    return str(job["state"])


def _part(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _detail(error: urllib.error.HTTPError) -> str:
    """What the server says: JSON with a line in ``detail``, or a line of text."""
    try:
        text = error.read(_LONGEST).decode("utf-8", errors="replace")
    except OSError:
        text = ""
    try:
        told = json.loads(text)["detail"]
    except (ValueError, KeyError, TypeError):
        told = text
    line = " ".join(told.split()) if isinstance(told, str) else ""
    return line or f"refused ({error.code})"
