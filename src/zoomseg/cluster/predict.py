"""Prediction of a batch on a cluster, from the scans to the gathered results of all workers."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from zoomseg.backends.cpu import usable_threads
from zoomseg.cluster import client
from zoomseg.cluster.client import ClusterObserver
from zoomseg.cluster.worker import ClusterJob
from zoomseg.core.memory import free_ram
from zoomseg.inference import journal
from zoomseg.inference.batch import NO_EXTRA_OUTPUTS, ExtraOutputs
from zoomseg.inference.gather import Gathered, gather, missing
from zoomseg.inference.journal import STARTED_FORMAT
from zoomseg.inference.load import DEFAULT_SETTINGS, PredictionSettings, apply_settings
from zoomseg.inference.outputs import RequestedOutputs, header
from zoomseg.io import bundle, digests
from zoomseg.io.bundle import Bundle
from zoomseg.io.scans import ScanInput

SHARED_OUT = 0.9
"""Share of the free memory that all workers started here may use together."""


@dataclass(frozen=True)
class Request:
    """The settings of a segmentation; models and device as in ``inference.load.load_predictor``.

    ``ship``: models, scans and results are sent over the network, for workers without access to the folders.
    ``resume``: scans with complete results in the folder are skipped.
    """

    models: tuple[str | Path, ...]
    organs: tuple[str, ...] | str | None = None
    probabilities: tuple[str, ...] | str = ()
    """Organs whose probability maps are written; as for ``organs``, their names, or ``all``."""
    extra: ExtraOutputs = NO_EXTRA_OUTPUTS
    device: str = "auto"
    settings: PredictionSettings = DEFAULT_SETTINGS
    ship: bool = False
    resume: bool = False


@dataclass(frozen=True)
class ClusterOutcome:
    """``left_out`` scans were complete before; ``found`` is the current content of the folder. Scans are
    ``missing`` if workers reported them, but wrote to another folder."""

    left_out: int
    failed: int
    missing: int
    found: Gathered


def predict(
    scans: Sequence[ScanInput],
    out: Path,
    address: str,
    request: Request,
    observer: ClusterObserver,
    notes: Sequence[str] = (),
) -> ClusterOutcome:
    """Segment scans, given by absolute paths, on the workers of a Dask cluster into ``out``.

    Args:
        address: as in ``cluster.client.connected``.

    Raises:
        ClusterError: no scheduler answers, it was lost, or its workers cannot run ZoomSeg.
        ModelError: no such model, or a damaged one.
        OutputError: ``out`` cannot be written, here or by a worker.
        LabelError, RecipeError, ScanError: as ``inference.outputs.segment_to_folder``.
    """
    out = out.absolute()
    names = [part for model in request.models for part in bundle.models_in(model)]
    models = [bundle.load(name) for name in names]
    models = [apply_settings(model, request.settings) for model in models]
    wanted = _wanted(models[0], request)
    wanted.prepare(scans, out)
    ids = [scan.id for scan in scans]
    asked = journal.request(out, ids)
    settings = replace(request.settings, max_ram=_room(address, request.settings.max_ram))
    job = _job(out, replace(request, settings=settings), names, wanted, asked, notes)
    where = {"device": request.device, "precision": "", "backend": settings.backend}
    run_keys = {**header(models[0], job.models, where, wanted.organs, notes), "started": job.started}
    run = journal.describe(digests.of_models(models), wanted.recipe, run_keys, asked, settings.any_scan)
    whole = journal.complete_results(out, scans, run, wanted.recipe, wanted.extra) if request.resume else {}
    observer.leave_out(tuple(whole))
    left = [scan for scan in scans if scan.id not in whole]
    folders = [bundle.find(name) for name in names]
    del models  # the workers load the networks
    try:
        with client.connected(address, _threads(address)) as connection:
            failed = client.segment_on_cluster(connection, left, job, folders, run, observer)
    finally:
        entries = journal.read(out)
        found = gather(out, ids) if entries else Gathered(0, (), 0, ())
    return ClusterOutcome(len(whole), len(failed), missing(out, ids, run, entries), found)


def _wanted(model: Bundle, request: Request) -> RequestedOutputs:
    select = model.schema.select
    organs = None if request.organs is None else select(request.organs)
    extra = replace(request.extra, probabilities=select(request.probabilities))
    return RequestedOutputs.of(model, organs, extra)


def _job(
    out: Path,
    request: Request,
    names: Sequence[str | Path],
    wanted: RequestedOutputs,
    scans: str,
    notes: Sequence[str],
) -> ClusterJob:
    return ClusterJob(
        id=secrets.token_hex(4),
        models=tuple(_everywhere(name) for name in names),
        out=str(out),
        organs=wanted.organs,
        extra=wanted.extra,
        device=request.device,
        settings=request.settings,
        scans=scans,
        notes=tuple(notes),
        started=time.strftime(STARTED_FORMAT, time.gmtime()),
        ship=request.ship,
    )


def _everywhere(model: str | Path) -> str:
    """The absolute path of a model's folder; for an included model its name, as its path differs between
    machines."""
    path = Path(model)
    return str(path.absolute()) if path.exists() else str(model)


def _room(address: str, max_ram: int | Literal["free"]) -> int | Literal["free"]:
    """Memory limit of each worker. Those of one machine must share its free memory."""
    workers = client.local_workers(address)
    if workers is None or workers == 1 or max_ram != "free":
        return max_ram
    return int(SHARED_OUT * free_ram() / workers)


def _threads(address: str) -> int:
    """Number of threads of each worker that is started here."""
    cores = usable_threads() or os.cpu_count() or 1
    return max(1, cores // (client.local_workers(address) or 1))
