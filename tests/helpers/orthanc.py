"""Orthanc, for tests with a real archive; if it is not installed, they are skipped with a message."""

from __future__ import annotations

import io
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pydicom
import pytest
from pydicom.dataset import Dataset

ROOT = Path(__file__).parents[2]
PROGRAM = shutil.which("Orthanc")
DICOMWEB = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")

needed = pytest.mark.skipif(PROGRAM is None, reason="Orthanc is not there: apt-get install orthanc")
web_needed = pytest.mark.skipif(
    PROGRAM is None or not DICOMWEB.exists(),
    reason="Orthanc's DICOMweb is not there: apt-get install orthanc orthanc-dicomweb",
)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@dataclass
class Orthanc:
    """A running Orthanc."""

    client: httpx.Client
    dicom_port: int

    @property
    def web(self) -> str:
        """Address of its DICOMweb service."""
        return f"{self.client.base_url}dicom-web"

    def upload(self, objects: list[Dataset]) -> None:
        for one in objects:
            file = io.BytesIO()
            one.save_as(file, enforce_file_format=True)
            assert self.client.post("/instances", content=file.getvalue()).json()["Status"] == "Success"

    def objects(self, study_uid: str) -> list[Dataset]:
        """All its objects of a study."""
        query = {"Level": "Instance", "Query": {"StudyInstanceUID": study_uid}}
        found = self.client.post("/tools/find", json=query).json()
        files = (self.client.get(f"/instances/{one}/file").content for one in found)
        return [pydicom.dcmread(io.BytesIO(file)) for file in files]

    def modalities(self, study_uid: str) -> set[str]:
        query = {"Level": "Series", "Expand": True, "Query": {"StudyInstanceUID": study_uid}}
        found = self.client.post("/tools/find", json=query).json()
        return {one["MainDicomTags"]["Modality"] for one in found}


@contextmanager
def orthanc(folder: Path, node_port: int, route: bool) -> Iterator[Orthanc]:
    """Orthanc that knows a node, and forwards series to it on request."""
    http, dicom = free_port(), free_port()
    folder.mkdir()
    told = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": http,
        "DicomPort": dicom,
        "DicomAet": "ORTHANC",
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "StableAge": 1,
        "OverwriteInstances": True,
        "DicomModalities": {"zoomseg": ["ZOOMSEG", "127.0.0.1", node_port]},
        "LuaScripts": [str(ROOT / "deploy" / "route.lua")] if route else [],
        "Plugins": [str(DICOMWEB)] if DICOMWEB.exists() else [],
    }
    (folder / "orthanc.json").write_text(json.dumps(told))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(PROGRAM), str(folder / "orthanc.json")], stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{http}/", timeout=60) as client:
            _await(client, process, folder / "log")
            yield Orthanc(client, dicom)
    finally:
        process.terminate()
        process.wait(30)


def _await(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            client.get("/system").raise_for_status()
            return
        except httpx.HTTPError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())
