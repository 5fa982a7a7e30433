"""Prediction on a cluster: throughput, overhead of Dask per scan, memory of the client, and fault tolerance.

    uv run python benchmarks/cluster.py throughput -o OUT [--scans 10000] [--workers 0 1 2]
    uv run python benchmarks/cluster.py overhead -o OUT [--scans 2000]
    uv run python benchmarks/cluster.py kills -o OUT [--scans 60] [--kills 20]
    sudo uv run python benchmarks/cluster.py hosts -o OUT --scans 500         # Linux, as root

`throughput` makes small scans (24 x 20 x 16 voxels) and segments them with an untrained model of two
stages, in one process (0 workers) and with local workers. `overhead` does the same with workers that compute
nothing, which leaves the time of Dask and the client. `kills` terminates random workers with SIGKILL. `hosts`
simulates two machines by network namespaces and disconnects one of them for a while, during which scans must
remain. Both compare the results with those of a single process, byte by byte. Prints rows of a Markdown
table.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

import psutil

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.clusters import RUN, Told, job_of, label_maps, tiny_model  # noqa: E402
from helpers.tiny_dataset import tiny_case  # noqa: E402
from zoomseg.cluster import client  # noqa: E402
from zoomseg.cluster.predict import Request, predict  # noqa: E402
from zoomseg.cluster.worker import ClusterJob, Reply  # noqa: E402
from zoomseg.inference.load import PredictionSettings, load_predictor  # noqa: E402
from zoomseg.inference.outputs import segment_to_folder  # noqa: E402
from zoomseg.io.scans import ScanInput, write_image  # noqa: E402

OPENVINO = PredictionSettings("openvino")
DIFFERENT = 16
"""Number of different scans; the others are links to these."""


def scans_in(folder: Path, count: int) -> list[ScanInput]:
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(DIFFERENT):
        if not (folder / f".seed-{seed}.nii.gz").exists():
            write_image(folder / f".seed-{seed}.nii.gz", tiny_case(seed)[0])
    found = []
    for number in range(count):
        path = folder / f"scan-{number:05d}.nii.gz"
        if not path.exists():
            path.hardlink_to(folder / f".seed-{number % DIFFERENT}.nii.gz")
        found.append(ScanInput(path.name.removesuffix(".nii.gz"), (path,)))
    return found


def request_of(model: Path, ship: bool = False, resume: bool = False) -> Request:
    return Request((model,), device="cpu", settings=OPENVINO, ship=ship, resume=resume)


class Timed(Told):
    """Records the time at which each scan was finished, and the memory of this process at that time."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[float] = []
        self.memory_mb: list[float] = []

    def on_reply(self, reply: Reply) -> None:
        if reply.error is not None:
            print(f"failed: {reply.case}: {reply.error}", file=sys.stderr)
        self.ends.append(time.perf_counter())
        self.memory_mb.append(psutil.Process().memory_info().rss / 2**20)

    def pace(self) -> float:
        """Scans per second, without the first tenth of the scans, which includes loading the model."""
        late = self.ends[len(self.ends) // 10 :]
        return (len(late) - 1) / (late[-1] - late[0])


def one_process(model: Path, scans: Sequence[ScanInput], out: Path) -> list[float]:
    ends: list[float] = []
    predictor = load_predictor([model], "cpu", OPENVINO)
    segment_to_folder(scans, out, predictor, on_result=lambda _: ends.append(time.perf_counter()))
    return ends


def throughput(options: argparse.Namespace, model: Path) -> None:
    scans = scans_in(options.out / "in", options.scans)
    print("| workers | scans | scans/s | client, MB after a tenth, half, all | gathering, s |")
    print("|---|---|---|---|---|")
    for workers in options.workers:
        out = options.out / f"out-{workers}"
        shutil.rmtree(out, ignore_errors=True)
        told = Timed()
        if workers == 0:
            told.ends = one_process(model, scans, out)
            told.memory_mb = [float("nan")] * len(scans)
        else:
            predict(scans, out, f"local:{workers}", request_of(model), told)
        gathering = time.perf_counter() - told.ends[-1]
        memory = [told.memory_mb[n] for n in (len(scans) // 10, len(scans) // 2, -1)]
        shown = ", ".join(f"{mb:.0f}" for mb in memory)
        print(
            f"| {workers or 'one process'} | {len(scans)} | {told.pace():.2f} | {shown} | {gathering:.1f} |",
            flush=True,
        )


def nothing(job: ClusterJob, scan: ScanInput) -> Reply:
    return Reply(scan.id, None, (), 0.0)


def overhead(options: argparse.Namespace, model: Path) -> None:
    scans = scans_in(options.out / "in", options.scans)
    print("| workers | scans | ms a scan | of these CPU of client and scheduler |\n|---|---|---|---|")
    with mock.patch.object(client, "segment_scan", nothing):
        for workers in (1, 2):
            told = Timed()
            with client.connected(f"local:{workers}", 1) as connection:
                began, cpu = time.perf_counter(), time.process_time()
                client.segment_on_cluster(connection, scans, job_of(options.out, model), [], RUN, told)
                took, used = time.perf_counter() - began, time.process_time() - cpu
            each = 1000 / len(scans)
            print(f"| {workers} | {len(scans)} | {took * each:.1f} | {used * each:.1f} |", flush=True)


def kills(options: argparse.Namespace, model: Path) -> None:
    scans = scans_in(options.out / "in", options.scans)
    out = options.out / "killed"
    shutil.rmtree(out, ignore_errors=True)
    killed: list[float] = []
    told = Timed()
    with _meanwhile(lambda: _kill_workers(options.kills, killed, told)):
        predict(scans, out, "local:2", request_of(model), told)
    again = Timed()
    if len(label_maps(out)) < len(scans):  # a scan is given up after three kills
        predict(scans, out, "local:2", request_of(model, resume=True), again)
    _compare(options, model, scans, out, f"{len(killed)} kills, {len(again.ends)} scans again")


def _kill_workers(count: int, killed: list[float], told: Timed) -> None:
    """Kill random workers at random times, but not before another scan has been finished."""
    rng = random.Random(0)
    done = 0
    while len(killed) < count:
        time.sleep(rng.uniform(0.1, 1.0))
        workers = [
            p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())
        ]
        if workers and len(told.ends) > done:
            done = len(told.ends)
            rng.choice(workers).kill()
            killed.append(time.perf_counter())


def hosts(options: argparse.Namespace, model: Path) -> None:
    """Predict on two network namespaces with a worker each; the link of the second is down for a while."""
    scans = scans_in(options.out / "in", options.scans)
    out, file = options.out / "hosts", options.out / "scheduler.json"
    for old in (out, file):
        shutil.rmtree(old, ignore_errors=True) if old.is_dir() else old.unlink(missing_ok=True)
    told, cut = Timed(), list[float]()
    quick = {"DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "15s", "DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL": "20s"}
    with _two_hosts() as (address, names):
        dask = [sys.executable, "-m", "dask"]
        environment = {**os.environ, **quick}
        parts = [[*dask, "scheduler", "--host", address, "--no-dashboard", "--scheduler-file", str(file)]]
        worker = [
            *dask,
            "worker",
            f"{address}:8786",
            "--nthreads",
            "1",
            "--memory-limit",
            "0",
            "--no-dashboard",
        ]
        parts += [["ip", "netns", "exec", name, *worker] for name in names]
        running = [
            subprocess.Popen(p, env=environment, stderr=subprocess.DEVNULL, cwd=options.out) for p in parts
        ]
        try:
            while not file.exists():
                time.sleep(0.1)
            with _meanwhile(lambda: _cut_off(names[1], told, cut, options.seconds)):
                predict(scans, out, str(file), request_of(model, ship=True), told)
            workers = {max(told.workers), min(told.workers[len(told.workers) // 4 :])}
        finally:
            for process in running:
                process.send_signal(signal.SIGTERM)
            for process in running:
                process.wait()
    _compare(
        options, model, scans, out, f"link down for {cut[1] - cut[0]:.0f} s, workers seen {sorted(workers)}"
    )


@contextmanager
def _two_hosts() -> Iterator[tuple[str, tuple[str, str]]]:
    names = ("zoomseg-a", "zoomseg-b")

    def ip(*arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True)

    ip("link", "add", "zoomseg0", "type", "bridge")
    try:
        ip("addr", "add", "10.77.0.1/24", "dev", "zoomseg0")
        ip("link", "set", "zoomseg0", "up")
        for number, name in enumerate(names, start=2):
            ip("netns", "add", name)
            ip("link", "add", f"{name}0", "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("link", "set", f"{name}0", "master", "zoomseg0", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield "10.77.0.1", names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False)
        ip("link", "del", "zoomseg0")


def _cut_off(name: str, told: Timed, cut: list[float], seconds: float) -> None:
    while len(told.ends) < 5:
        time.sleep(0.1)
    for state in ("down", "up"):
        subprocess.run(["ip", "link", "set", f"{name}0", state], check=True)
        cut.append(time.perf_counter())
        if state == "down":
            time.sleep(seconds)


@contextmanager
def _meanwhile(work: Callable[[], None]) -> Iterator[None]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield
    thread.join(5)


def _compare(
    options: argparse.Namespace, model: Path, scans: Sequence[ScanInput], out: Path, what: str
) -> None:
    one = options.out / "one"
    shutil.rmtree(one, ignore_errors=True)
    one_process(model, scans, one)
    same = label_maps(out) == label_maps(one) and all(
        (out / name).read_bytes() == (one / name).read_bytes() for name in ("summary.csv", "review.csv")
    )
    half = len(list(out.rglob("*.partial*")))
    print(f"| {what} | {len(scans)} scans | {'same bytes' if same else 'NOT the same'} | {half} half files |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("throughput", "overhead", "kills", "hosts"))
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--scans", type=int, default=60)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="seconds for which the second host is disconnected"
    )
    options = parser.parse_args()
    options.out = options.out.absolute()
    model = options.out / "model"
    if not (model / "model.json").exists():
        tiny_model(model)
    {"throughput": throughput, "overhead": overhead, "kills": kills, "hosts": hosts}[options.what](
        options, model
    )


if __name__ == "__main__":
    main()
