"""The DICOM node, measured from outside: delay of results, losses when it is killed, growth of memory.

    python benchmarks/node.py large SERIES [--slices 300] [--scan SCAN.nii.gz] [-m abdomen-ct]
    python benchmarks/node.py many SERIES [--studies 200] [--kills 10] [-m abdomen-ct]

`large`: SERIES (the folder of a CT series), extended to the given number of slices, is sent to a node in a
separate process, twice, as two studies: for the first one, the node loads the model. A short series is
repeated, so that every slice shows all its organs, as no patient's does; `--scan` sends the voxels of a real
scan instead (`predict/scan.py` makes one of 300 slices), with the headers of SERIES. Prints the seconds from
the response to the last image until the last result has reached an archive on this machine (Orthanc if it is
installed, otherwise one that only counts objects), and the share of the job's steps in them. `many`: small
studies (every fourth pixel of SERIES) are sent one after the other, while the node is killed (SIGKILL) and
restarted. Prints the number of lost studies and of results that arrived under two UIDs, and the memory of
node and worker.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import psutil
import pydicom
import pynetdicom
import yaml
from pydicom.dataset import Dataset
from pydicom.uid import (
    Comprehensive3DSRStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RTStructureSetStorage,
    SegmentationStorage,
)
from pynetdicom import evt

KINDS = (SegmentationStorage, RTStructureSetStorage, Comprehensive3DSRStorage)
PATIENCE = 600.0
"""Seconds after which a missing result counts as lost."""


class Archive:
    """Receives results; if a port of Orthanc is given, forwards each result to it before responding."""

    def __init__(self, orthanc_port: int | None = None) -> None:
        self.uids: dict[str, list[str]] = defaultdict(list)
        """SOP instance UIDs of the results of each study, in the order of arrival."""
        self.last = 0.0
        self._orthanc = orthanc_port
        self._ae = pynetdicom.AE("ARCHIVE")
        for kind in KINDS:
            self._ae.add_supported_context(kind, [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
        server = self._ae.start_server(
            ("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
        )
        assert server is not None
        assert server.socket is not None
        self.port: int = server.socket.getsockname()[1]

    def _store(self, event: evt.Event) -> int:
        if self._orthanc is not None:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self._orthanc}/instances", data=event.encoded_dataset(), method="POST"
            )
            urllib.request.urlopen(request, timeout=60).read()
        dataset = event.dataset
        self.uids[dataset.StudyInstanceUID].append(dataset.SOPInstanceUID)
        self.last = time.monotonic()
        return 0

    def complete(self, study: str) -> bool:
        return len(set(self.uids[study])) >= len(KINDS)

    def close(self) -> None:
        self._ae.shutdown()


class Node:
    """`zoomseg node` in a separate process, which can be killed and restarted."""

    def __init__(self, folder: Path, model: str, archive_port: int) -> None:
        self._file = folder / "node.yaml"
        settings = {
            "host": "127.0.0.1",
            "port": _free_port(),
            "folder": str(folder / "node"),
            "device": "cpu",
            "peers": [{"ae_title": "SENDER", "addresses": ["127.0.0.1"]}],
            "limits": {"free_bytes": "100MB"},
            "complete": {"quiet_seconds": 10, "released_seconds": 1},
            "retry": {"first_seconds": 1, "longest_seconds": 5},
            "page": {"port": _free_port()},
            "destinations": {"archive": {"ae_title": "ARCHIVE", "host": "127.0.0.1", "port": archive_port}},
            "rules": [
                {"name": "all", "modality": "CT", "min_slices": 2, "model": model, "send_to": ["archive"]}
            ],
        }
        self._file.write_text(yaml.safe_dump(settings))
        self.port: int = settings["port"]  # type: ignore[assignment]
        self.folder = folder / "node"
        self._page: int = settings["page"]["port"]  # type: ignore[index]
        self._log = (folder / "log").open("ab")
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        command = [sys.executable, "-u", "-m", "zoomseg", "node", str(self._file)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._log, text=True)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("Receiving"):
                return
        raise SystemExit("the node did not start; see its log")

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def memory_mb(self) -> float:
        """Memory of node and worker."""
        assert self._process is not None
        node = psutil.Process(self._process.pid)
        return sum(one.memory_info().rss for one in (node, *node.children(recursive=True))) / 1e6

    def status(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._page}/status.json", timeout=60) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def orthanc(folder: Path) -> Iterator[int | None]:
    """The HTTP port of a running Orthanc; None if Orthanc is not installed."""
    import shutil

    if shutil.which("Orthanc") is None:
        yield None
        return
    port = _free_port()
    told = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "index"),
        "HttpPort": port,
        "DicomPort": _free_port(),
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
    }
    (folder / "orthanc.json").write_text(json.dumps(told))
    process = subprocess.Popen(
        ["Orthanc", str(folder / "orthanc.json")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _until(lambda: _answers(port))
        yield port
    finally:
        process.terminate()
        process.wait(60)


def _answers(port: int) -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/system", timeout=5).read()
        return True
    except OSError:
        return False


def _until(what: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if what():
            return True
        time.sleep(0.05)
    return False


# --- images ---------------------------------------------------------------------------------------


def read_series(folder: Path) -> list[Dataset]:
    """The slices of a series, uncompressed, sorted by position along z."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.glob("*.dcm"))]
    for one in slices:
        if one.file_meta.TransferSyntaxUID.is_compressed:
            one.decompress(generate_instance_uid=False)
    return sorted(slices, key=lambda one: float(one.ImagePositionPatient[2]))


def slices_of(scan: Path, like: Dataset) -> list[Dataset]:
    """The slices of an axial CT in NIfTI, in Hounsfield units, with the header of a slice of another series,
    sorted by position along z."""
    image = nibabel.as_closest_canonical(nibabel.load(scan))  # type: ignore[no-untyped-call]
    voxels = np.asanyarray(image.dataobj).astype(np.int16)
    to_lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
    spacing = np.linalg.norm(to_lps[:3, :3], axis=0)
    header = copy.deepcopy(like)
    header.Rows, header.Columns = voxels.shape[1], voxels.shape[0]
    header.PixelSpacing = [float(spacing[1]), float(spacing[0])]
    header.ImageOrientationPatient = [
        float(cosine) for axis in (0, 1) for cosine in to_lps[:3, axis] / spacing[axis]
    ]
    header.SliceThickness = float(spacing[2])
    header.RescaleSlope, header.RescaleIntercept = 1, 0
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
    made = []
    for k in range(voxels.shape[2]):
        one = copy.deepcopy(header)
        one.ImagePositionPatient = [float(mm) for mm in to_lps[:3, 2] * k + to_lps[:3, 3]]
        one.PixelData = voxels[:, :, k].T.tobytes()
        made.append(one)
    return made


def study(slices: Sequence[Dataset], uid: str, count: int, every: int = 1) -> list[Dataset]:
    """A study of ``count`` slices: the given ones, repeated in alternating direction, reduced to every
    ``every``-th pixel of each row and column."""
    step = float(slices[1].ImagePositionPatient[2]) - float(slices[0].ImagePositionPatient[2])
    there_and_back = [*range(len(slices)), *reversed(range(len(slices)))]
    made = []
    for k in range(count):
        one = copy.deepcopy(slices[there_and_back[k % len(there_and_back)]])
        x, y, _ = one.ImagePositionPatient
        one.ImagePositionPatient = [x, y, float(slices[0].ImagePositionPatient[2]) + k * step]
        if every > 1:
            pixels = one.pixel_array[::every, ::every]
            one.Rows, one.Columns = pixels.shape
            one.PixelData = pixels.tobytes()
            one.PixelSpacing = [float(mm) * every for mm in one.PixelSpacing]
        one.SOPClassUID, one.Modality = CTImageStorage, "CT"  # missing in badly anonymised files
        one.file_meta.MediaStorageSOPClassUID = CTImageStorage
        one.PatientID, one.PatientName = f"P{uid[-6:]}", "Benchmark"
        one.StudyInstanceUID, one.SeriesInstanceUID = uid, f"{uid}.1"
        one.FrameOfReferenceUID = f"{uid}.2"
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{uid}.1.{k + 1}"
        one.InstanceNumber = k + 1
        made.append(one)
    return made


def send(port: int, images: Sequence[Dataset]) -> bool:
    """Send all images by C-STORE; False unless all succeed, for example because the node was killed."""
    ae = pynetdicom.AE("SENDER")
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = 30
    ae.add_requested_context(images[0].SOPClassUID, images[0].file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title="ZOOMSEG")
    if not association.is_established:
        return False
    try:
        return all(association.send_c_store(one).get("Status") == 0 for one in images)
    except (RuntimeError, ValueError):  # the association was lost
        return False
    finally:
        association.release()


# --- measurements ---------------------------------------------------------------------------------


def large(slices: Sequence[Dataset], count: int, model: str, folder: Path) -> dict[str, Any]:
    """Seconds from the last image to the last result, and seconds of the job's steps, of two studies."""
    (folder / "orthanc").mkdir()
    with orthanc(folder / "orthanc") as port:
        archive = Archive(port)
        node = Node(folder, model, archive.port)
        found: dict[str, Any] = {"slices": count, "archive": "Orthanc" if port else "counting only"}
        try:
            node.start()
            for number, name in enumerate(("first", "second"), start=1):
                images = study(slices, f"1.2.826.0.1.3680043.8.498.{number}", count)
                found[name] = _seconds_of(images, node, archive)
            found["memory_mb"] = round(node.memory_mb())
            return found
        finally:
            node.close()
            archive.close()


def _seconds_of(images: Sequence[Dataset], node: Node, archive: Archive) -> dict[str, Any]:
    began = time.monotonic()
    assert send(node.port, images), "an image was refused"
    sent = time.monotonic()
    if not _until(lambda: archive.complete(images[0].StudyInstanceUID)):
        raise SystemExit(f"no results: {node.status()['last_jobs']}")
    job = node.status()["last_jobs"][0]
    run = json.loads((node.folder / "jobs" / job["id"] / "out" / "run.json").read_text())
    steps = run["cases"]["result"]["seconds"]
    beside = ("read", "waited", "write", "summary", "report", "total")
    network = sum(seconds for step, seconds in steps.items() if step not in beside)
    whole = archive.last - sent
    return {
        "seconds_to_receive": round(sent - began, 2),
        "seconds_to_results": round(whole, 2),
        "seconds_of_segmentation": round(network, 2),
        "seconds_of_all_else": round(whole - network, 2),
        "seconds_of_steps": steps,
    }


def many(
    slices: Sequence[Dataset], studies: int, kills: int, model: str, folder: Path, seed: int = 0
) -> dict[str, Any]:
    """Losses and repetitions among small studies while the node is killed ``kills`` times."""
    archive = Archive()
    node = Node(folder, model, archive.port)
    chance = random.Random(seed)
    uids = [f"1.2.826.0.1.3680043.8.498.2.{n + 1}" for n in range(studies)]
    kill_in = set(chance.sample(range(studies), kills))
    memory: list[float] = []
    again = 0
    try:
        node.start()
        for number, uid in enumerate(uids):
            images = study(slices, uid, len(slices), every=4)
            killer = None
            if number in kill_in:  # while it receives, segments or sends
                killer = threading.Timer(chance.uniform(0, 2), node.kill)
                killer.start()
            while not send(node.port, images):
                again += 1
                if again > 10 * (kills + 1):
                    raise SystemExit("the node does not take the images; see its page")
                if killer is not None:
                    killer.join()
                    killer = None
                    node.start()
                time.sleep(0.2)
            if killer is not None:
                killer.join()
                node.start()
            _until(lambda: sum(map(archive.complete, uids[: number + 1])) >= number - 1)  # noqa: B023
            memory.append(node.memory_mb())
        _until(lambda: all(map(archive.complete, uids)))
        time.sleep(3)  # for results that might arrive twice
        jobs = node.status()["jobs"]
    finally:
        node.close()
        archive.close()
    settled = memory[len(memory) // 4 :]
    return {
        "studies": studies,
        "kills": kills,
        "sends_repeated": again,
        "lost": sum(not archive.complete(uid) for uid in uids),
        "with_other_uids": sum(len(set(archive.uids[uid])) > len(KINDS) for uid in uids),
        "results_sent_again": sum(len(found) - len(set(found)) for found in archive.uids.values()),
        "jobs": {state: count for state, count in jobs.items() if count},
        "memory_mb_after_a_quarter": round(settled[0]),
        "memory_mb_highest_after": round(max(settled)),
        "memory_mb_at_the_end": round(settled[-1]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["large", "many"])
    parser.add_argument("series", type=Path)
    parser.add_argument("-m", "--model", default="abdomen-ct")
    parser.add_argument("--slices", type=int, default=300)
    parser.add_argument("--scan", type=Path)
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--kills", type=int, default=10)
    asked = parser.parse_args()
    slices = read_series(asked.series)
    if asked.scan is not None:
        slices = slices_of(asked.scan, slices[0])
    with tempfile.TemporaryDirectory(prefix="zoomseg-node-") as folder:
        if asked.what == "large":
            found = large(slices, asked.slices, asked.model, Path(folder))
        else:
            found = many(slices, asked.studies, asked.kills, asked.model, Path(folder))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
