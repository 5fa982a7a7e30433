"""The HTTP interface: jobs, their results, and the page. ``/openapi.json`` describes it."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from zoomseg.core.errors import DatasetError, OutputError, ScanError, ZoomSegError
from zoomseg.inference.batch import segmentation_path
from zoomseg.io.scans import ScanInput
from zoomseg.serve.access import Access, Guard
from zoomseg.serve.job_queue import State
from zoomseg.serve.job_runner import Runner
from zoomseg.serve.jobs import SUFFIXES, Job, Jobs, QueueFullError
from zoomseg.serve.organs import Organ, organs_of_result
from zoomseg.serve.pages import add_pages
from zoomseg.serve.upload import PIECE_BYTES, TooLargeError, TooSlowError, receive
from zoomseg.serve.worker import READING

RETRY_SECONDS = 30
"""When a client whose upload was refused by a full queue may ask again."""


@dataclass(frozen=True)
class Result:
    """One kind of result: its name in the address, and what it is."""

    name: str
    media_type: str
    about: str


RESULTS = (
    Result("labels.nii.gz", "application/gzip", "The label map, on the scan's own grid."),
    Result("scan.nii.gz", "application/gzip", "The scan, as NIfTI."),
    Result("seg.nrrd", "application/octet-stream", "The same for 3D Slicer, with names and colours."),
    Result("summary.csv", "text/csv", "Volume, intensity, confidence and flags of every organ."),
    Result("run.json", "application/json", "Seconds by step, tiles, memory; label names and values."),
    Result("seg.dcm", "application/dicom", "DICOM SEG, if the scan came as DICOM."),
    Result("rtstruct.dcm", "application/dicom", "DICOM RTSTRUCT, if the scan came as DICOM."),
)


class ModelView(BaseModel):
    """A model that can be asked for."""

    name: str
    recipe: str
    organs: list[str]
    stages: list[str]
    channels: list[str]


class JobView(BaseModel):
    """A job. ``progress`` is the share of the current ``stage`` that is done; ``stages`` are all of them in
    order; ``results`` the names of what can be fetched at ``/jobs/{id}/<name>``; ``notes`` what the user
    should know of how the scan was read, how unlike the training scans it is, what was taken out."""

    id: str
    name: str
    model: str
    state: State
    stage: str | None
    stages: list[str]
    progress: float
    ahead: int
    created: float
    seconds: float
    error: str | None
    results: list[str]
    notes: list[str]


class Problem(BaseModel):
    """What was wrong, in one line."""

    detail: str


@dataclass(frozen=True, eq=False)
class Service:
    """What the routes work on."""

    jobs: Jobs
    runner: Runner[Job]
    models: Mapping[str, ModelView]
    """By name; the first is meant where none is named."""
    max_upload: int
    """Bytes."""

    def job(self, job_id: str) -> Job:
        """The job of this id.

        Raises:
            HTTPException: 404.
        """
        found = self.jobs.find(job_id)
        if found is None:
            raise HTTPException(404, "no such job")
        return found

    def view(self, job: Job) -> JobView:
        """A job as it is told."""
        model = self.models.get(job.model)
        step = self.jobs.step(job.id)
        return JobView(
            id=job.id,
            name=job.name,
            model=job.model,
            state=job.state,
            stage=step.stage if step else None,
            stages=[READING, *(model.stages if model else ())],
            progress=step.done / step.total if step and step.total else 0.0,
            ahead=self.jobs.ahead_of(job) if job.state is State.QUEUED else 0,
            created=job.created,
            seconds=round(job.seconds, 1),
            error=job.error,
            results=[r.name for r in RESULTS if self.result(job, r.name).is_file()]
            if job.state is State.FINISHED
            else [],
            notes=list(job.notes),
        )

    def result(self, job: Job, name: str) -> Path:
        """Where a result is, if there is one."""
        out = self.jobs.out(job)
        match name:
            case "summary.csv" | "run.json":
                return out / name
            case "scan.nii.gz":
                return self.jobs.scan(job) if job.suffix == ".nii.gz" else out / name
            case "labels.nii.gz":
                return out / f"{job.id}.nii.gz"
            case "seg.nrrd":
                return segmentation_path(out, ScanInput(job.id, ()))
            case _:
                return out / f"{job.id}.{name}"


def create_app(service: Service, access: Access) -> Guard:
    """The application, with the guard around it."""
    app = FastAPI(
        title="ZoomSeg",
        version=importlib.metadata.version("zoomseg"),
        summary="Coarse-to-fine organ segmentation of CT and MR. Research software, not for diagnosis.",
        # The pages that FastAPI has for these load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    _add_models(app, service)
    _add_jobs(app, service)
    _add_results(app, service)
    add_pages(app, "index.html")
    app.add_exception_handler(ZoomSegError, _explain)
    return Guard(app, access)


def _explain(request: Request, error: Exception) -> JSONResponse:
    match error:
        case TooLargeError():
            return JSONResponse({"detail": str(error)}, 413, {"connection": "close"})
        case TooSlowError():
            return JSONResponse({"detail": str(error)}, 408, {"connection": "close"})
        case QueueFullError():
            return JSONResponse({"detail": str(error)}, 503, {"retry-after": str(RETRY_SECONDS)})
        case ScanError():
            return JSONResponse({"detail": str(error)}, 415)
        case OutputError():
            print(f"zoomseg: {error}", file=sys.stderr, flush=True)
            return JSONResponse({"detail": "the server's disk refuses it"}, 507)
        case _:  # what it says is the server's own business, paths and all
            print(f"zoomseg: {error}", file=sys.stderr, flush=True)
            return JSONResponse({"detail": "the server could not do this; see its output"}, 500)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/models")
    def models() -> list[ModelView]:
        """The models that can be asked for; the first is meant where none is named."""
        return list(service.models.values())

    @app.get("/limits")
    def limits() -> dict[str, Any]:
        """What may be uploaded."""
        return {"max_upload_bytes": service.max_upload, "suffixes": SUFFIXES}


def _add_jobs(app: FastAPI, service: Service) -> None:
    body = {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.post(
        "/jobs",
        status_code=201,
        responses=_problems(404, 408, 413, 415, 503, 507),
        openapi_extra={"requestBody": body},
    )
    async def create(
        request: Request,
        name: Annotated[str, Query(max_length=1000, description="File name; its ending says the format.")],
        model: Annotated[str | None, Query(description="A name of /models; the first if left out.")] = None,
    ) -> JobView:
        """Segment a scan. The body is the file itself: NIfTI, NRRD, MHA, or a zip of a DICOM series."""
        chosen = next(iter(service.models)) if model is None else model
        if chosen not in service.models:
            raise HTTPException(404, f"no model '{chosen}'; there are: {', '.join(service.models)}")
        with service.jobs.arriving(name, chosen) as (job, path):
            await receive(request, path, service.max_upload)
        return service.view(job)

    @app.get("/jobs")
    def all_jobs() -> list[JobView]:
        """All jobs, oldest first."""
        return [service.view(job) for job in service.jobs.all()]

    @app.get("/jobs/{job_id}", responses=_problems(404))
    def one_job(job_id: str) -> JobView:
        """How far a job is."""
        return service.view(service.job(job_id))

    @app.delete("/jobs/{job_id}", status_code=204, responses=_problems(404))
    def cancel(job_id: str) -> None:
        """Cancel a job that waits or runs; delete one that has ended, with its scan and results."""
        job = service.job(job_id)
        if not service.runner.cancel(job.id):
            service.jobs.remove(job.id)


def _add_results(app: FastAPI, service: Service) -> None:
    @app.get("/jobs/{job_id}/organs", responses=_problems(404, 409))
    def organs(job_id: str) -> list[Organ]:
        """The organs of a finished job: value in the label map, colour, volume, confidence, flags."""
        job = _finished(service, job_id)
        try:
            return organs_of_result(service.jobs.out(job), job.id)
        except DatasetError as error:
            raise HTTPException(404, "this job's results are gone, or damaged") from error

    for result in RESULTS:
        _add_result(app, service, result)


def _add_result(app: FastAPI, service: Service, result: Result) -> None:
    def fetch(job_id: str) -> StreamingResponse:
        job = _finished(service, job_id)
        path = service.result(job, result.name)
        try:
            file = path.open("rb")  # from here on it may be deleted
        except OSError as error:
            raise HTTPException(404, f"this job has no {result.name}") from error
        filename = f"{job.name[: -len(job.suffix)] or 'scan'}.{result.name}"
        headers = {
            "cache-control": "private, no-cache",
            "content-disposition": f"attachment; filename*=utf-8''{quote(filename, safe='')}",
            "content-length": str(os.fstat(file.fileno()).st_size),
        }
        return StreamingResponse(_pieces(file), media_type=result.media_type, headers=headers)

    app.add_api_route(
        f"/jobs/{{job_id}}/{result.name}",
        fetch,
        methods=["GET"],
        name=result.name,
        description=result.about,
        response_class=StreamingResponse,
        responses={200: {"content": {result.media_type: {}}}, **_problems(404, 409)},
    )


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _finished(service: Service, job_id: str) -> Job:
    job = service.job(job_id)
    if job.state is not State.FINISHED:
        raise HTTPException(409, f"the job is {job.state}; there are results when it is finished")
    return job
