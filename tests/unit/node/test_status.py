"""The page, the same information as JSON, and access to both."""

from __future__ import annotations

from pathlib import Path

from fastapi.testclient import TestClient

from helpers.nodes import archive, association, ended, finished, push, running, series, settings
from zoomseg.node.jobs import NodeJob, OrganResult
from zoomseg.node.run import Node
from zoomseg.node.status import create_app, reviews
from zoomseg.serve.access import access


def client(node: Node, token: str | None = None) -> TestClient:
    return TestClient(create_app(node, access("127.0.0.1", (), token)), base_url="http://127.0.0.1:8080")


def test_the_page_names_what_was_done_what_was_not_and_why(tmp_path: Path) -> None:
    with archive() as there, running(settings(tmp_path, there)) as node:
        push(node, series(1))
        finished(node)
        gap = series(1, "1.2.9")
        push(node, [*gap[:3], *gap[-3:], *series(2, "1.2.9", slices=2, Modality="MR")])
        with association(node, [], "STRANGER<script>"):
            pass
        ended(node, 2)
        web = client(node)
        page = web.get("/").text
        for shown in ("1 finished", "1 failed", "missing", "no rule fits (all: not CT)", "archive: sent"):
            assert shown in page
        assert "STRANGER&lt;script&gt; at 127.0.0.1" in page
        assert "<script>" not in page
        assert "Doe" not in page
        said = web.get("/status.json").json()
        assert said["jobs"]["finished"] == said["jobs"]["failed"] == 1
        assert (said["rejected"], len(said["refusals"])) == (1, 1)
        failed, done = said["last_jobs"]
        assert done["segmentation_seconds"] > 0
        assert failed["error"] == web.get(f"/jobs/{failed['id']}").json()["error"]
        assert [organ["name"] for organ in done["found"]] == ["left kidney", "right kidney"]
        assert [one["why"] for one in said["last_series"]] != []


def test_it_says_when_it_is_a_dry_run(tmp_path: Path) -> None:
    with running(settings(tmp_path), dry_run=True) as node:
        assert "dry run" in client(node).get("/").text


def test_a_job_that_is_not_there(tmp_path: Path) -> None:
    with running(settings(tmp_path), dry_run=True) as node:
        assert client(node).get("/jobs/0123456789abcdef").status_code == 404


def test_the_page_loads_what_it_names(tmp_path: Path) -> None:
    with running(settings(tmp_path), dry_run=True) as node:
        web = client(node)
        assert "border-collapse" in web.get("/static/status.css").text
        assert web.get("/static/icon.svg").status_code == 200
        assert web.get("/static/status.html").status_code == 404


def test_others_need_a_token(tmp_path: Path) -> None:
    with running(settings(tmp_path), dry_run=True) as node:
        web = client(node, "a long enough token")
        for path in ("/", "/status.json", "/metrics", "/jobs/0123456789abcdef"):
            assert web.get(path).status_code == 401
            assert "zoomseg serve" not in web.get(path).text
        assert "page.allow_hosts" in web.get("/", headers={"host": "elsewhere"}).text
        known = {"authorization": "Bearer a long enough token"}
        assert web.get("/metrics", headers=known).status_code == 200
        assert web.post("/", headers=known).status_code == 405


def test_what_is_least_certain_is_reviewed_first() -> None:
    def job(number: int, *confidences: float | None) -> NodeJob:
        organs = [
            OrganResult(name=f"organ {n}", colour=(0, 0, 0), volume_ml=1.0, confidence=one)
            for n, one in enumerate(confidences)
        ]
        missing = OrganResult(name="missing", colour=(0, 0, 0), volume_ml=0.0, confidence=0.01)
        return NodeJob.model_construct(id=f"{number}", study_uid=f"1.{number}", found=(*organs, missing))

    found = reviews([job(1, 0.9, 0.4), job(2, None, 0.7)])
    assert [(row["study_uid"], row["organ"], row["confidence"]) for row in found] == [
        ("1.1", "organ 1", 0.4),
        ("1.2", "organ 1", 0.7),
        ("1.1", "organ 0", 0.9),
    ]
    assert job(1, 0.9, 0.4).least_confidence == 0.4
    assert job(2, None).least_confidence is None
