"""The client: distributes scans to the workers, one at a time each, and gathers the results."""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import dask
from distributed import Client, Future, KilledWorker, LocalCluster

from zoomseg.cluster.shipping import ShippedScan, model_files
from zoomseg.cluster.worker import ClusterJob, Preparation, Reply, segment_scan
from zoomseg.core.errors import ScanError, ZoomSegError
from zoomseg.inference.batch import Failed
from zoomseg.inference.journal import Journal, Run
from zoomseg.inference.outputs import failure, relative_paths
from zoomseg.io.files import reason_of
from zoomseg.io.scans import ScanInput

CRASHES = 3
"""A scan that ended this many workers while it was computed alone is not tried again."""

CONNECT_SECONDS = 30
FILE_POLL_SECONDS = 0.1
"""Interval at which the scheduler's file is looked for."""

POLL_INTERVAL_SECONDS = 1.0
"""Interval at which the workers are counted."""

_CONFIG = {
    "distributed.scheduler.allowed-failures": CRASHES - 1,  # of a scheduler started here
    "distributed.deploy.lost-worker-timeout": "1 hour",  # within which a worker started here is restarted
    "distributed.admin.large-graph-warning-threshold": "16 GiB",  # shipped scans are large
    "distributed.worker.profile.enabled": False,  # of a worker started here: it keeps samples for an hour
}


_LEAVE_SIGNALS = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""Run by workers started here: a terminal interrupts them, too, but this process ends them."""

_SCHEDULER_GONE = (OSError, CancelledError)
"""Exceptions of a call to a scheduler that has ended."""

LOST = "the scheduler was lost; results written so far are kept; --resume continues"


class ClusterError(ZoomSegError):
    """The cluster cannot be reached, was lost, or cannot run ZoomSeg."""


class ClusterObserver(Protocol):
    """Called during the computation, always in the thread that waits for the scans."""

    def leave_out(self, cases: Sequence[str]) -> None:
        """The results of these cases already exist."""

    def on_reply(self, reply: Reply) -> None:
        """A scan was processed."""

    def count(self, workers: int) -> None:
        """The current number of workers."""


@contextmanager
def connected(address: str, threads: int) -> Iterator[Client]:
    """A client of a scheduler, given by its address, by the JSON file that it wrote (``--scheduler-file``),
    or as ``local:N`` for N workers that are started here, each with ``threads`` threads.

    Raises:
        ClusterError: there is no answer.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # the caller reports the error
    with dask.config.set(_CONFIG):
        workers = local_workers(address)
        if workers is not None:
            with started(workers, threads) as cluster, Client(cluster) as client:
                yield client
            return
        given = {"scheduler_file": address} if _names_file(address) else {"address": address}
        if "scheduler_file" in given:
            _wait_for_file(address)
        try:
            client = Client(**given, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise ClusterError(f"no scheduler answers at {address} ({reason_of(error)})") from error
        with client:
            yield client


def _names_file(address: str) -> bool:
    """Whether an address is that of a scheduler's file, which may not exist yet."""
    return "://" not in address and ("/" in address or address.endswith(".json") or Path(address).is_file())


def _wait_for_file(address: str) -> None:
    """Wait until a scheduler that is being started has written its file.

    Raises:
        ClusterError: it did not in ``CONNECT_SECONDS``.
    """
    end = time.monotonic() + CONNECT_SECONDS
    while not Path(address).is_file():
        if time.monotonic() > end:
            reason = f"no such file within {CONNECT_SECONDS} s; start it with --scheduler-file {address}"
            raise ClusterError(f"no scheduler answers at {address} ({reason})")
        time.sleep(FILE_POLL_SECONDS)


@contextmanager
def started(workers: int, threads: int) -> Iterator[LocalCluster]:
    """A scheduler in this process, and worker processes that are restarted when they die."""
    with (
        dask.config.set(_CONFIG),
        LocalCluster(
            workers,
            threads_per_worker=threads,
            processes=True,
            memory_limit=0,  # we have limits: Dask would kill where smaller tiles suffice
            dashboard_address="127.0.0.1:0",
            silence_logs=logging.CRITICAL,
            preload=_LEAVE_SIGNALS,
        ) as cluster,
    ):
        yield cluster


def local_workers(address: str) -> int | None:
    """N of ``local:N``; None for other addresses.

    Raises:
        ClusterError: N is not a number of workers.
    """
    kind, _, number = address.partition(":")
    if kind != "local":
        return None
    if not (number.isascii() and number.isdigit() and int(number) > 0):
        raise ClusterError(f"--cluster {address}: how many workers? Give local:4, say")
    return int(number)


def segment_on_cluster(
    client: Client,
    scans: Sequence[ScanInput],
    job: ClusterJob,
    folders: Iterable[Path],
    failed_run: Run,
    observer: ClusterObserver,
) -> tuple[Failed, ...]:
    """Segment scans on the workers of a cluster; returns the failed ones. Workers may join and leave.

    Args:
        folders: of the models.
        failed_run: the run in the journal for scans on which no worker could report.

    Raises:
        ClusterError: the scheduler was lost, or workers cannot run ZoomSeg.
        OutputError: a worker, or this process, cannot write a result.
        ModelError: a worker cannot load the model.
    """
    out = Path(job.out)
    models = tuple(model_files(folder) for folder in folders) if job.ship else ()
    preparation = Preparation(job, models)
    try:
        client.register_plugin(preparation)
        try:
            return _Work(client, job, deque(scans), observer, out, failed_run).run()
        finally:
            with suppress(*_SCHEDULER_GONE):  # there is nothing left to unregister
                if client.status == "running":
                    client.unregister_worker_plugin(preparation.name)
    except _SCHEDULER_GONE as error:
        raise ClusterError(LOST) from error


@dataclass(eq=False)
class _Work:
    client: Client
    job: ClusterJob
    waiting: deque[ScanInput]
    observer: ClusterObserver
    out: Path
    failed_run: Run
    running: dict[Future[Reply], ScanInput] = field(default_factory=dict)
    ended: queue.SimpleQueue[Future[Reply]] = field(default_factory=queue.SimpleQueue)
    failed: list[Failed] = field(default_factory=list)
    journals: dict[str, Journal] = field(default_factory=dict)
    """By run: for results sent by workers, and for scans on which no worker reported."""
    suspects: deque[ScanInput] = field(default_factory=deque)
    """Scans that were assigned when workers died, computed alone one after the other: another one may have
    ended these workers, as Dask moves the tasks of a dead worker to the others."""
    workers: int = 0
    looked: float = -POLL_INTERVAL_SECONDS

    def run(self) -> tuple[Failed, ...]:
        try:
            while self.waiting or self.running or self.suspects:
                self._look()
                self._give()
                self._take()
            return tuple(self.failed)
        finally:
            with suppress(*_SCHEDULER_GONE):
                if self._connected:
                    self.client.cancel(list(self.running), force=True)
            for one in self.journals.values():
                one.close()

    @property
    def _connected(self) -> bool:
        return bool(self.client.status == "running")

    def _look(self) -> None:
        """Count the workers."""
        if time.monotonic() - self.looked < POLL_INTERVAL_SECONDS:
            return
        self._require_scheduler()
        self.workers = len(self.client.nthreads())
        self.looked = time.monotonic()
        self.observer.count(self.workers)

    def _require_scheduler(self) -> None:
        if not self._connected:
            raise ClusterError(LOST)

    def _give(self) -> None:
        """Submit at most as many scans as there are workers, so that each has one; or a single one, if it is
        suspected."""
        while self.waiting and not self.suspects and len(self.running) < self.workers:
            self._submit(self.waiting.popleft(), "")
        if (
            self.suspects
            and not self.running
            and self.workers
            and not self._submit(self.suspects[0], "-alone")
        ):
            self.suspects.popleft()

    def _submit(self, scan: ScanInput, how: str) -> bool:
        """Submit a scan; False if it has failed, as its files cannot be read any more."""
        try:
            given = ShippedScan.of(scan) if self.job.ship else scan
        except ScanError as error:
            self._fail(Failed(scan.id, str(error)))
            return False
        key = f"zoomseg-{self.job.id}-{scan.id}{how}"
        future = self.client.submit(segment_scan, self.job, given, key=key, pure=False)
        self.running[future] = scan
        future.add_done_callback(self.ended.put)
        return True

    def _take(self) -> None:
        """Collect finished scans, after waiting a moment for them."""
        try:
            future = self.ended.get(timeout=POLL_INTERVAL_SECONDS)
        except queue.Empty:
            return
        scan = self.running.pop(future)
        alone = bool(self.suspects) and self.suspects[0] is scan
        if alone:
            self.suspects.popleft()
        if future.status == "cancelled":
            raise ClusterError(LOST)
        try:
            reply: Reply = future.result()
        except KilledWorker as error:
            if alone:
                self._fail(Failed(scan.id, crashed(error.allowed_failures + 1)))
            else:
                self.suspects.append(scan)
            return
        except (ZoomSegError, CancelledError):
            raise
        except Exception as error:
            self._require_scheduler()
            raise ClusterError(
                f"workers cannot process scans ({reason_of(error)}); they need this ZoomSeg, "
                "installed with its extra 'cluster', and the same version of dask"
            ) from error
        if reply.shipped is not None:
            run, entry, files = reply.shipped
            files.write(self.out)
            if entry.done:  # the worker had the scan in a temporary folder
                place = {"scan": relative_paths(self.out, scan.paths)}
                entry = entry.model_copy(update={"account": entry.account | place})
            self._journal(run).append(entry)
        self._receive(reply)

    def _fail(self, failed: Failed) -> None:
        """Record a scan on which no worker reported."""
        self._journal(self.failed_run).append(failure(failed))
        self._receive(Reply(failed.case, failed.reason, (), 0.0))

    def _receive(self, reply: Reply) -> None:
        if reply.error is not None:
            self.failed.append(Failed(reply.case, reply.error))
        self.observer.on_reply(reply)

    def _journal(self, run: Run) -> Journal:
        return self.journals.setdefault(run.model_dump_json(), Journal(self.out, run))


def crashed(times: int) -> str:
    """The reason why a scan is not tried again."""
    return (
        f"crashed {times} workers that computed it, and is not given to another one; their logs say more "
        "(too little memory, most often)"
    )
