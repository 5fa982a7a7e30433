"""The HTTP interface: jobs, their results, and the page. ``/openapi.json`` describes it."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

from anyio import to_thread
from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ValidationError

from zoomseg.core.errors import DatasetError, OutputError, ScanError, ZoomSegError
from zoomseg.core.labels import LabelSchema
from zoomseg.inference.batch import segmentation_path
from zoomseg.io.scans import ScanInput
from zoomseg.serve.access import Access, Guard
from zoomseg.serve.corrections import Corrections, NotCorrectableError
from zoomseg.serve.job_queue import State
from zoomseg.serve.job_runner import Runner
from zoomseg.serve.jobs import SUFFIXES, Job, Jobs, QueueFullError
from zoomseg.serve.organs import (
    Organ,
    organs_of_corrected,
    organs_of_result,
    schema_of_result,
    summary_of_result,
)
from zoomseg.serve.pages import add_pages
from zoomseg.serve.remaining import remaining_by_others, remaining_by_pace
from zoomseg.serve.review import OrganReview, Review, keep, organ_reviews, review_csv, review_of
from zoomseg.serve.upload import TooLargeError, TooSlowError, in_threads, receive, receive_json
from zoomseg.serve.worker import READING, WRITING

LISTED_JOBS = 200
"""Pages request the list every second, whatever a folder has collected over the years."""

RETRY_SECONDS = 30
"""Seconds after which a client whose upload was refused by a full queue may try again."""

MAX_ORGAN_REVIEW_BYTES = 16 * 1024
"""Maximum size of a comment on an organ."""


@dataclass(frozen=True)
class ResultKind:
    """One kind of result: its name in the address, and its content."""

    name: str
    media_type: str
    about: str


RESULTS = (
    ResultKind("labels.nii.gz", "application/gzip", "The label map, on the scan's own grid."),
    ResultKind("corrected.nii.gz", "application/gzip", "The label map as corrected by a user."),
    ResultKind("scan.nii.gz", "application/gzip", "The scan, as NIfTI."),
    ResultKind("seg.nrrd", "application/octet-stream", "The same for 3D Slicer, with names and colours."),
    ResultKind("summary.csv", "text/csv", "Volume, intensity, confidence and flags of every organ."),
    ResultKind("run.json", "application/json", "Seconds by step, tiles, memory; label names and values."),
    ResultKind("seg.dcm", "application/dicom", "DICOM SEG, if the scan came as DICOM."),
    ResultKind("rtstruct.dcm", "application/dicom", "DICOM RTSTRUCT, if the scan came as DICOM."),
)


class ModelView(BaseModel):
    """An available model. ``groups`` are names for several organs each."""

    name: str
    recipe: str
    organs: list[str]
    stages: list[str]
    channels: list[str]
    groups: dict[str, list[str]] = {}

    def grouped(self, schema: LabelSchema) -> LabelSchema:
        """A label schema with those groups of the model that it has all labels of."""
        groups = {name: tuple(own) for name, own in self.groups.items() if set(own) <= set(schema.names)}
        return replace(schema, groups=groups)


class JobView(BaseModel):
    """A job. ``progress`` is the finished share of the current ``stage``; ``stages`` are all of them in
    order; ``remaining`` are the expected seconds until a running job ends, None if unknown; ``results`` are
    the names of results available at ``/jobs/{id}/<name>``; ``notes`` are what the user should know: how the
    scan was read, how unlike the training scans it is, what was removed."""

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
    remaining: float | None
    error: str | None
    results: list[str]
    notes: list[str]


class Problem(BaseModel):
    """What is wrong, in one line."""

    detail: str


@dataclass(frozen=True, eq=False)
class Service:
    """The state shared by the routes."""

    jobs: Jobs
    corrections: Corrections
    runner: Runner[Job]
    models: Mapping[str, ModelView]
    """By name; the first is the default."""
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
        """A job as sent to clients."""
        model = self.models.get(job.model)
        step = self.jobs.step(job.id)
        return JobView(
            id=job.id,
            name=job.name,
            model=job.model,
            state=job.state,
            stage=step.stage if step else None,
            stages=[READING, *(model.stages if model else ()), WRITING],
            progress=step.done / step.total if step and step.total else 0.0,
            ahead=self.jobs.ahead_of(job) if job.state is State.QUEUED else 0,
            created=job.created,
            seconds=round(job.seconds, 1),
            remaining=self._remaining(job),
            error=job.error,
            results=[r.name for r in RESULTS if self.result(job, r.name).is_file()]
            if job.state is State.FINISHED
            else [],
            notes=list(job.notes),
        )

    def _remaining(self, job: Job) -> float | None:
        if job.state is not State.RUNNING:
            return None
        earlier = [other.seconds for other in self.jobs.last(LISTED_JOBS) if _ran_like(job, other)]
        expected = remaining_by_others(job.seconds, earlier)
        step, model = self.jobs.step(job.id), self.models.get(job.model)
        if step and step.total and model and step.stage == model.stages[-1]:
            by_pace = remaining_by_pace(self.jobs.stage_seconds(job.id), step.done / step.total)
            expected = expected if by_pace is None else by_pace
        return None if expected is None else round(expected, 1)

    def result(self, job: Job, name: str) -> Path:
        """The path of a result, if it exists."""
        out = self.jobs.out(job)
        match name:
            case "summary.csv" | "run.json":
                return out / name
            case "scan.nii.gz":
                return self.jobs.scan(job) if job.suffix == ".nii.gz" else out / name
            case "corrected.nii.gz":
                return self.corrections.labels(job)
            case "labels.nii.gz":
                return out / f"{job.id}.nii.gz"
            case "seg.nrrd":
                return segmentation_path(out, ScanInput(job.id, ()))
            case _:
                return out / f"{job.id}.{name}"


def create_app(service: Service, access: Access) -> Guard:
    """The application, with access control."""
    app = FastAPI(
        title="ZoomSeg",
        version=importlib.metadata.version("zoomseg"),
        summary="Coarse-to-fine organ segmentation of CT and MR. Research software, not for diagnosis.",
        # FastAPI's own pages for these load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
    )
    _add_models(app, service)
    _add_jobs(app, service)
    _add_results(app, service)
    _add_review(app, service)
    _add_corrections(app, service)
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
        case NotCorrectableError():
            return JSONResponse({"detail": str(error)}, 409)
        case ScanError():
            return JSONResponse({"detail": str(error)}, 415)
        case OutputError():
            print(f"zoomseg: {error}", file=sys.stderr, flush=True)
            return JSONResponse({"detail": "the server's disk refuses it"}, 507)
        case _:  # the error's message, including paths, is internal to the server
            print(f"zoomseg: {error}", file=sys.stderr, flush=True)
            return JSONResponse({"detail": "the server could not do this; see its output"}, 500)


def _ran_like(job: Job, other: Job) -> bool:
    """Whether the duration of ``other`` is informative for ``job``."""
    return other.state is State.FINISHED and (other.model, other.suffix) == (job.model, job.suffix)


def attachment(text: str, media_type: str, filename: str) -> Response:
    """A text that the browser saves under a file name."""
    headers = {
        "cache-control": "private, no-cache",
        "content-disposition": f"attachment; filename*=utf-8''{quote(filename, safe='')}",
    }
    return Response(text, headers=headers, media_type=media_type)


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": Problem} for status in statuses}


def _add_models(app: FastAPI, service: Service) -> None:
    @app.get("/models")
    def models() -> list[ModelView]:
        """The available models; the first is the default."""
        return list(service.models.values())

    @app.get("/limits")
    def limits() -> dict[str, Any]:
        """The limits of uploads."""
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
        name: Annotated[str, Query(max_length=1000, description="File name; its suffix is the format.")],
        model: Annotated[str | None, Query(description="A name of /models; the first if left out.")] = None,
    ) -> JobView:
        """Segment a scan. The body is the file itself: NIfTI, NRRD, MHA, or a zip of a DICOM series."""
        chosen = next(iter(service.models)) if model is None else model
        if chosen not in service.models:
            raise HTTPException(404, f"no model '{chosen}'; there are: {', '.join(service.models)}")
        async with in_threads(service.jobs.arriving(name, chosen)) as (job, path):
            await receive(request, path, service.max_upload)
        return await to_thread.run_sync(service.view, job)

    @app.get("/jobs")
    def latest_jobs() -> list[JobView]:
        """The latest jobs, and all that wait or run, oldest first. Others are found by their id."""
        jobs = [*service.jobs.last(LISTED_JOBS), *service.jobs.in_state(State.QUEUED, State.RUNNING)]
        unique = {job.id: job for job in jobs}
        return [service.view(job) for job in sorted(unique.values(), key=lambda job: job.created)]

    @app.get("/jobs/{job_id}", responses=_problems(404))
    def one_job(job_id: str) -> JobView:
        """The progress of a job."""
        return service.view(service.job(job_id))

    @app.delete("/jobs/{job_id}", status_code=204, responses=_problems(404))
    def cancel(job_id: str) -> None:
        """Cancel a job that waits or runs; delete one that has ended, with its scan and results, and its
        training case, if there is one."""
        job = service.job(job_id)
        if not service.runner.cancel(job.id):
            service.corrections.remove(job)
            service.jobs.remove(job.id)


def _add_results(app: FastAPI, service: Service) -> None:
    @app.get("/jobs/{job_id}/organs", responses=_problems(404, 409))
    def organs(
        job_id: str,
        corrected: Annotated[bool, Query(description="Of the corrected label map.")] = False,
    ) -> list[Organ]:
        """The organs of a finished job: value in the label map, colour, volume, confidence, flags."""
        job = _finished(service, job_id)
        with _results_of(job):
            if corrected:
                return organs_of_corrected(
                    service.corrections.labels(job), schema_of_result(service.jobs.out(job))
                )
            return organs_of_result(service.jobs.out(job), job.id)

    for result in RESULTS:
        _add_result(app, service, result)


def _add_review(app: FastAPI, service: Service) -> None:
    organ_review_body = {
        "required": True,
        "content": {"application/json": {"schema": OrganReview.model_json_schema()}},
    }

    def review(job_id: str) -> Review:
        job = _finished(service, job_id)
        with _results_of(job):
            organs = organs_of_result(service.jobs.out(job), job.id)
            return review_of(job.title, job.model, organs, organ_reviews(service.jobs.review(job)))

    @app.get("/jobs/{job_id}/review.json", responses=_problems(404, 409))
    def as_json(job_id: str) -> Review:
        """The review of a result: every organ accepted, rejected or neither, with a comment."""
        return review(job_id)

    @app.get("/jobs/{job_id}/review.csv", response_class=Response, responses=_problems(404, 409))
    def as_csv(job_id: str) -> Response:
        """The same as a table."""
        found = review(job_id)
        return attachment(review_csv(found), "text/csv; charset=utf-8", f"{found.scan}.review.csv")

    @app.put(
        "/jobs/{job_id}/review/{value}",
        status_code=204,
        responses=_problems(400, 404, 408, 409, 413),
        openapi_extra={"requestBody": organ_review_body},
    )
    async def put_review(request: Request, job_id: str, value: int) -> None:
        """Review an organ, given by its value in the label map; replaces an earlier review."""
        job = await to_thread.run_sync(_finished, service, job_id)
        body = await receive_json(request, MAX_ORGAN_REVIEW_BYTES)
        try:
            organ_review = OrganReview.model_validate(body)
        except ValidationError as error:
            raise HTTPException(400, "not a review of an organ; see /openapi.json") from error

        def write() -> None:
            with _results_of(job):
                if value not in schema_of_result(service.jobs.out(job)).values:
                    raise HTTPException(404, "no organ has this value")
                keep(service.jobs.review(job), value, organ_review)

        await to_thread.run_sync(write)


def _add_corrections(app: FastAPI, service: Service) -> None:
    body = {
        "required": True,
        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
    }

    @app.put(
        "/jobs/{job_id}/corrected.nii.gz",
        responses=_problems(404, 408, 409, 413, 415, 503, 507),
        openapi_extra={"requestBody": body},
    )
    async def correct(request: Request, job_id: str) -> JobView:
        """Create a training case from a job. The body is its corrected label map: NIfTI on the same grid,
        with the same values."""
        job = await to_thread.run_sync(_finished, service, job_id)
        model = service.models.get(job.model)
        if model is None:
            raise HTTPException(409, f"its model '{job.model}' is not served any more")
        async with in_threads(service.corrections.arriving(job)) as place:
            await receive(request, place, service.max_upload)

            def add() -> None:
                scan, labels = (service.result(job, name) for name in ("scan.nii.gz", "labels.nii.gz"))
                with _results_of(job):
                    schema = model.grouped(schema_of_result(service.jobs.out(job)))
                    service.corrections.add(job, place, scan, labels, schema, model.channels)

            await to_thread.run_sync(add)

        def view() -> JobView:
            if service.jobs.find(job.id) is None:  # deleted meanwhile, with its training case
                service.corrections.remove(job)
                raise HTTPException(404, "no such job")
            return service.view(job)

        return await to_thread.run_sync(view)

    @app.delete("/jobs/{job_id}/corrected.nii.gz", status_code=204, responses=_problems(404, 409))
    def forget(job_id: str) -> None:
        """Withdraw a correction: the job is no longer a training case."""
        service.corrections.remove(_finished(service, job_id))


@contextmanager
def _results_of(job: Job) -> Iterator[None]:
    """Report errors in a job's files without their paths."""
    try:
        yield
    except DatasetError as error:
        raise HTTPException(404, f"the results of {job.id} are gone, or damaged") from error


def _add_result(app: FastAPI, service: Service, result: ResultKind) -> None:
    def fetch(job_id: str) -> Response:
        job = _finished(service, job_id)
        filename = f"{job.title}.{result.name}"
        if result.name == "summary.csv":
            return _named_summary(service, job, filename)
        return _file(service.result(job, result.name), result, filename)

    app.add_api_route(
        f"/jobs/{{job_id}}/{result.name}",
        fetch,
        methods=["GET"],
        name=result.name,
        description=result.about,
        response_class=Response,
        responses={200: {"content": {result.media_type: {}}}, **_problems(404, 409)},
    )


def _file(path: Path, result: ResultKind, filename: str) -> FileResponse:
    """A file to be saved, in ranges if requested."""
    try:
        found = path.stat()
    except OSError as error:
        raise HTTPException(404, f"this job has no {result.name}") from error
    headers = {"cache-control": "private, no-cache"}
    return FileResponse(path, 200, headers, result.media_type, filename=filename, stat_result=found)


def _named_summary(service: Service, job: Job, filename: str) -> Response:
    """The table with the scan's name; the file on disk has the job's id."""
    try:
        text = summary_of_result(service.jobs.out(job), job.id, job.title)
    except DatasetError as error:
        raise HTTPException(404, "this job has no summary.csv") from error
    return attachment(text, "text/csv; charset=utf-8", filename)


def _finished(service: Service, job_id: str) -> Job:
    job = service.job(job_id)
    if job.state is not State.FINISHED:
        raise HTTPException(409, f"the job is {job.state}; there are results when it is finished")
    return job
