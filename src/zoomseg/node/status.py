"""The node's own HTTP port: a page for users, the same as JSON, and metrics for Prometheus.

None of them contains names or numbers of patients: studies are named by their UIDs.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from prometheus_client import CONTENT_TYPE_LATEST

from zoomseg.node.jobs import NodeJob, SeriesState
from zoomseg.node.metrics import exposition
from zoomseg.node.run import Node
from zoomseg.serve.access import Access, Guard
from zoomseg.serve.pages import STATIC

SHOWN_JOBS = 100
SHOWN_REVIEWS = 20

_TEMPLATES = Path(__file__).parent / "templates"


def summary(node: Node) -> dict[str, Any]:
    """The state of the node, in numbers."""
    counts = node.receiver.counts
    return {
        "ae_title": node.settings.ae_title,
        "dry_run": node.dry_run,
        "jobs": {state.value: count for state, count in node.jobs.counts().items()},
        "arriving": len(node.jobs.series_in(SeriesState.RECEIVING)),
        **{what: counts[what] for what in ("stored", "known", "refused", "rejected")},
        "free_bytes": node.store.room(),
    }


def refusals(node: Node) -> list[dict[str, str]]:
    """Refusals since the start of the node, newest first."""
    return [
        {"when": time.strftime("%F %T", time.gmtime(one.time)), "sender": one.sender, "why": one.why}
        for one in reversed(list(node.receiver.refusals))
    ]


def reviews(jobs: list[NodeJob]) -> list[dict[str, Any]]:
    """Organs to be inspected, the least certain first."""
    found: list[dict[str, Any]] = [
        {
            "study_uid": job.study_uid,
            "job": job.id,
            "organ": organ.name,
            "confidence": organ.confidence,
            "volume_ml": organ.volume_ml or 0.0,
            "flags": organ.flags,
        }
        for job in jobs
        for organ in job.found
        if organ.confidence is not None and organ.volume_ml
    ]
    return sorted(found, key=lambda row: float(row["confidence"]))[:SHOWN_REVIEWS]


def job_view(job: NodeJob) -> dict[str, Any]:
    """All information on a job."""
    times = {"segmentation_seconds": job.segmentation_seconds, "least_confidence": job.least_confidence}
    return {**job.model_dump(mode="json"), **times}


def create_app(node: Node, access: Access) -> Guard:
    """An application that shows the state of a node, and changes nothing."""
    app = FastAPI(title="ZoomSeg node", openapi_url=None, docs_url=None, redoc_url=None)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )

    @app.get("/")
    def page() -> HTMLResponse:
        jobs = node.jobs.last(SHOWN_JOBS)
        html = environment.get_template("status.html").render(
            node=summary(node),
            jobs=jobs,
            series=node.jobs.last_series(),
            refusals=refusals(node),
            review=reviews(jobs),
        )
        return HTMLResponse(html, headers={"cache-control": "no-store"})

    @app.get("/status.json")
    def status() -> dict[str, Any]:
        jobs = node.jobs.last(SHOWN_JOBS)
        return {
            **summary(node),
            "last_jobs": [job_view(job) for job in jobs],
            "last_series": [series.model_dump(mode="json") for series in node.jobs.last_series()],
            "refusals": refusals(node),
            "review": reviews(jobs),
        }

    @app.get("/jobs/{job_id}")
    def job(job_id: str) -> dict[str, Any]:
        found = node.jobs.find(job_id)
        if found is None:
            raise HTTPException(404, "no such job")
        return job_view(found)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(exposition(node), media_type=CONTENT_TYPE_LATEST)

    @app.get("/static/status.css")
    def style() -> FileResponse:
        return FileResponse(_TEMPLATES / "status.css")

    @app.get("/static/icon.svg")
    def icon() -> FileResponse:
        return FileResponse(STATIC / "icon.svg")

    return Guard(app, access)
