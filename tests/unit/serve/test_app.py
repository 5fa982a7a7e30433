"""The HTTP interface: jobs from upload to results, and all refusals."""

from __future__ import annotations

import csv
import errno
import gzip
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from starlette.websockets import WebSocketDisconnect

from helpers.servers import MODEL, Server, noise, scan_bytes, serving
from zoomseg.core.labels import LabelSchema
from zoomseg.serve import app
from zoomseg.serve.job_queue import Step


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path / "jobs") as running:
        yield running


def test_a_scan_becomes_labels_and_a_table(server: Server, tmp_path: Path) -> None:
    content = scan_bytes(tmp_path)
    made = server.client.post("/jobs", params={"name": "dir/../Zoë 1.nii.gz"}, content=content)
    assert made.status_code == 201
    job_id = made.json()["id"]
    assert made.json()["name"] == "Zoë 1.nii.gz"
    running = server.wait(job_id, "running")
    while running["stage"] is None:
        running = server.wait(job_id, "running")
    assert (running["stage"], running["progress"], running["stages"]) == (
        "coarse",
        0.25,
        ["reading", "coarse", "fine", "writing"],
    )
    assert server.client.get(f"/jobs/{job_id}/labels.nii.gz").status_code == 409
    server.go.set()
    done = server.wait(job_id, "finished")
    assert done["results"] == ["labels.nii.gz", "scan.nii.gz", "summary.csv", "run.json"]
    assert done["error"] is None
    assert server.client.get(f"/jobs/{job_id}/scan.nii.gz").content == content
    labels = server.client.get(f"/jobs/{job_id}/labels.nii.gz")
    assert "Zo%C3%AB%201.labels.nii.gz" in labels.headers["content-disposition"]
    values = nib.Nifti1Image.from_bytes(gzip.decompress(labels.content)).dataobj
    assert set(np.unique(np.asarray(values))) == {0, 3, 7}
    rows = list(csv.DictReader(server.client.get(f"/jobs/{job_id}/summary.csv").text.splitlines()))
    assert [(row["case"], row["organ"]) for row in rows] == [
        ("Zoë 1", "left kidney"),
        ("Zoë 1", "right kidney"),
    ]
    assert server.client.get(f"/jobs/{job_id}/run.json").json()["labels"]["left kidney"] == 3
    assert server.client.get(f"/jobs/{job_id}/seg.dcm").status_code == 404
    organs = server.client.get(f"/jobs/{job_id}/organs").json()
    assert [(o["name"], o["value"], o["volume_ml"], o["confidence"], o["flags"]) for o in organs] == [
        ("left kidney", 3, 1.5, 0.93, ["touches_scan_border"]),
        ("right kidney", 7, 0.0, None, ["missing"]),
    ]
    assert [job["id"] for job in server.client.get("/jobs").json()] == [job_id]


def test_uploaded_names_are_no_paths(server: Server, tmp_path: Path) -> None:
    job_id = server.post(b"x", "../../../evil.nii.gz")
    server.client.delete(f"/jobs/{job_id}")
    paths = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if "sqlite" not in p.name}
    assert paths == {"jobs", "jobs/.lock", "jobs/corrected", f"jobs/{job_id}", f"jobs/{job_id}/scan.nii.gz"}
    assert server.client.get(f"/jobs/{job_id}").json()["name"] == "evil.nii.gz"


def test_a_scan_that_cannot_be_used_fails_with_its_reason(server: Server) -> None:
    server.go.set()
    job = server.wait(server.post(b"bad"), "failed")
    assert (job["error"], job["results"]) == ("the scan: damaged", [])


def test_a_worker_that_dies_fails_its_job_and_the_next_one_goes_on(server: Server) -> None:
    server.go.set()
    first, second = server.post(b"fatal"), server.post(b"good")
    assert server.wait(first, "failed")["error"] == "the process that segments ended by signal 11"
    server.wait(second, "finished")
    assert [len(worker.tasks) for worker in server.workers] == [1, 1]


def test_cancelling_a_running_job_lets_the_next_one_go_on(server: Server) -> None:
    first, second, third = (server.post(b"good") for _ in range(3))
    server.wait(first, "running")
    assert server.client.get(f"/jobs/{third}").json()["ahead"] == 2
    assert server.client.delete(f"/jobs/{first}").status_code == 204
    assert server.client.delete(f"/jobs/{second}").status_code == 204
    server.go.set()
    server.wait(third, "finished")
    states = {job["id"]: job["state"] for job in server.client.get("/jobs").json()}
    assert states == {first: "cancelled", second: "cancelled", third: "finished"}


def test_deleting_a_job_that_has_ended_deletes_its_files(server: Server, tmp_path: Path) -> None:
    server.go.set()
    job_id = server.post(b"good")
    server.wait(job_id, "finished")
    assert server.client.delete(f"/jobs/{job_id}").status_code == 204
    assert server.client.get(f"/jobs/{job_id}").status_code == 404
    assert [p for p in (tmp_path / "jobs").iterdir() if p.is_dir()] == [tmp_path / "jobs" / "corrected"]


def test_the_server_answers_while_a_job_runs(server: Server) -> None:
    server.wait(server.post(b"good"), "running")
    began = time.perf_counter()
    assert server.client.get("/").status_code == 200
    assert server.client.get("/models").json()[0]["organs"] == ["left kidney", "right kidney"]
    assert time.perf_counter() - began < 5


def test_what_is_too_large_is_refused_announced_or_not(tmp_path: Path) -> None:
    with serving(tmp_path / "jobs", max_upload=1000) as server:
        announced = server.client.post("/jobs?name=a.nii", content=noise(1001))
        assert announced.status_code == 413
        assert "--max-upload" in announced.json()["detail"]
        pieces = iter([noise(600), noise(600)])
        assert server.client.post("/jobs?name=a.nii", content=pieces).status_code == 413
        assert server.client.get("/jobs").json() == []
        assert [p for p in (tmp_path / "jobs").iterdir() if p.is_dir()] == [tmp_path / "jobs" / "corrected"]
        assert server.client.post("/jobs?name=a.nii", content=noise(1000)).status_code == 201


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    with serving(tmp_path / "jobs", waiting=1) as server:
        server.wait(server.post(b"good"), "running")
        server.post(b"good")
        refused = server.client.post("/jobs?name=a.nii.gz", content=b"good")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "30")


@pytest.mark.parametrize(
    ("query", "content", "status", "words"),
    [
        ("name=notes.txt", b"x", 415, "'notes.txt' is not a scan"),
        ("name=detached.mhd", b"x", 415, ".zip"),
        ("name=a.nii", b"", 415, "empty"),
        ("name=a.nii&model=liver", b"x", 404, "there are: tiny"),
    ],
)
def test_what_is_no_scan_is_refused(
    server: Server, query: str, content: bytes, status: int, words: str
) -> None:
    answer = server.client.post(f"/jobs?{query}", content=content)
    assert answer.status_code == status
    assert words in answer.json()["detail"]
    assert server.client.get("/jobs").json() == []


@pytest.mark.parametrize("job_id", ["0" * 16, "..%2f..", "a"])
def test_an_unknown_job_is_not_found(server: Server, job_id: str) -> None:
    for path in ("", "/labels.nii.gz", "/organs"):
        assert server.client.get(f"/jobs/{job_id}{path}").status_code == 404
    assert server.client.delete(f"/jobs/{job_id}").status_code == 404


def test_results_that_somebody_deleted_are_not_found(server: Server, tmp_path: Path) -> None:
    server.go.set()
    job_id = server.post(b"good")
    server.wait(job_id, "finished")
    shutil.rmtree(server.jobs.scan(server.jobs.all()[0]).parent)
    for name in ("labels.nii.gz", "scan.nii.gz", "organs"):
        answer = server.client.get(f"/jobs/{job_id}/{name}")
        assert answer.status_code == 404
        assert str(tmp_path) not in answer.text
    assert server.client.get(f"/jobs/{job_id}").json()["results"] == []
    assert server.client.delete(f"/jobs/{job_id}").status_code == 204
    assert server.client.get("/jobs").json() == []


def test_a_result_is_sent_in_ranges(server: Server) -> None:
    server.go.set()
    job_id = server.post(b"good")
    server.wait(job_id, "finished")
    address = f"/jobs/{job_id}/labels.nii.gz"
    whole = server.client.get(address)
    assert whole.headers["accept-ranges"] == "bytes"
    part = server.client.get(address, headers={"range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, whole.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(whole.content)}"
    changed = {"range": "bytes=10-19", "if-range": '"another file"'}
    assert server.client.get(address, headers=changed).content == whole.content
    beyond = {"range": f"bytes={len(whole.content)}-"}
    assert server.client.get(address, headers=beyond).status_code == 416


def test_a_running_job_says_how_long_it_will_take_yet(server: Server) -> None:
    server.go.set()
    first = server.post(b"good")
    server.wait(first, "finished")
    job = server.jobs.find(first)
    assert job is not None
    with server.jobs._changed:
        server.jobs._put(job, started=1000.0, ended=1060.0)
    server.go.clear()
    other = server.post(b"good", "a.nrrd")
    server.go.set()
    server.wait(other, "finished")
    server.go.clear()
    running = server.wait(server.post(b"good"), "running")
    assert isinstance(running["remaining"], float)
    assert 50 < running["remaining"] <= 60
    server.jobs.set_progress(str(running["id"]), Step("fine", 1, 2))
    server.jobs._stage_began[str(running["id"])] -= 20
    by_pace = server.client.get(f"/jobs/{running['id']}").json()["remaining"]
    assert by_pace == pytest.approx(20, abs=5)
    assert server.client.get(f"/jobs/{first}").json()["remaining"] is None


def finished(server: Server) -> str:
    server.go.set()
    job_id = server.post(b"good")
    server.wait(job_id, "finished")
    return job_id


def test_a_result_is_reviewed_organ_by_organ(server: Server) -> None:
    job_id = finished(server)
    said = server.client.put(
        f"/jobs/{job_id}/review/3", json={"verdict": "rejected", "comment": "cut, below"}
    )
    assert said.status_code == 204
    found = server.client.get(f"/jobs/{job_id}/review.json").json()
    assert (found["scan"], found["model"]) == ("a", "tiny")
    assert [(o["organ"], o["verdict"], o["comment"]) for o in found["organs"]] == [
        ("left kidney", "rejected", "cut, below"),
        ("right kidney", None, ""),
    ]
    table = server.client.get(f"/jobs/{job_id}/review.csv")
    assert "a.review.csv" in table.headers["content-disposition"]
    rows = list(csv.DictReader(table.text.splitlines()))
    assert [(row["organ"], row["verdict"]) for row in rows] == [
        ("left kidney", "rejected"),
        ("right kidney", ""),
    ]


@pytest.mark.parametrize(
    ("value", "content", "status"),
    [
        ("4", b"{}", 404),
        ("x", b"{}", 422),
        ("3", b"", 400),
        ("3", b"[]", 400),
        ("3", b'{"verdict": "maybe"}', 400),
        ("3", b'{"comment": 3}', 400),
        ("3", b"[" * 15_000, 400),
        ("3", b'{"comment": "' + b"x" * 20_000 + b'"}', 413),
    ],
)
def test_what_is_no_review_is_refused(server: Server, value: str, content: bytes, status: int) -> None:
    job_id = finished(server)
    address = f"/jobs/{job_id}/review/{value}"
    assert server.client.put(address, content=content).status_code == status
    elsewhere = {"origin": "http://evil.example"}
    assert server.client.put(address, content=b"{}", headers=elsewhere).status_code == 403
    assert all(
        o["changed"] is None for o in server.client.get(f"/jobs/{job_id}/review.json").json()["organs"]
    )


def test_a_corrected_map_is_a_training_case_until_its_job_is_deleted(server: Server, tmp_path: Path) -> None:
    job_id = finished(server)
    address = f"/jobs/{job_id}/corrected.nii.gz"
    assert server.client.get(address).status_code == 404
    assert server.client.get(f"/jobs/{job_id}/organs?corrected=true").status_code == 404
    labels = nib.Nifti1Image.from_bytes(
        gzip.decompress(server.client.get(f"/jobs/{job_id}/labels.nii.gz").content)
    )
    values = np.asarray(labels.dataobj).copy()
    values[values == 7] = 0
    values[0, 0, :2] = 3
    sent = gzip.compress(nib.Nifti1Image(values, labels.affine, labels.header).to_bytes())
    answer = server.client.put(address, content=sent)
    assert answer.status_code == 200, answer.text
    assert "corrected.nii.gz" in answer.json()["results"]
    back = nib.Nifti1Image.from_bytes(gzip.decompress(server.client.get(address).content))
    np.testing.assert_array_equal(np.asarray(back.dataobj), values)
    organs = server.client.get(f"/jobs/{job_id}/organs?corrected=true").json()
    voxel_ml = abs(np.linalg.det(labels.affine[:3, :3])) / 1000
    assert [o["volume_ml"] for o in organs] == pytest.approx([(values == 3).sum() * voxel_ml, 0])
    kept = tmp_path / "jobs" / "corrected" / "tiny"
    assert sorted(p.name for p in kept.rglob("*.gz")) == [f"{job_id}.nii.gz", f"{job_id}_0000.nii.gz"]
    assert server.client.delete(f"/jobs/{job_id}").status_code == 204
    assert sorted(p.name for p in kept.rglob("*.gz")) == []


def test_a_model_s_groups_are_those_of_labels_that_a_result_has() -> None:
    groups = {"kidneys": ["left kidney", "right kidney"], "all of it": ["left kidney", "liver"]}
    schema = LabelSchema(("left kidney", "right kidney"), (3, 7))
    found = MODEL.model_copy(update={"groups": groups}).grouped(schema)
    assert (found.value_of, found.groups) == (
        schema.value_of,
        {"kidneys": ("left kidney", "right kidney")},
    )


def test_what_is_no_corrected_map_is_refused(server: Server) -> None:
    job_id = finished(server)
    address = f"/jobs/{job_id}/corrected.nii.gz"
    assert server.client.put(address, content=b"no map").status_code == 415
    assert server.client.put(address, content=noise(10**6 + 1)).status_code == 413
    elsewhere = {"origin": "http://evil.example"}
    assert server.client.put(address, content=b"x", headers=elsewhere).status_code == 403
    assert server.client.delete(address, headers=elsewhere).status_code == 403
    assert server.client.put(f"/jobs/{'0' * 16}/corrected.nii.gz", content=b"x").status_code == 404
    assert server.client.delete(address).status_code == 204
    assert "corrected.nii.gz" not in server.client.get(f"/jobs/{job_id}").json()["results"]


def test_a_disk_without_room_for_another_file_is_told_as_such(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *given: object, **named: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    answer = server.client.post("/jobs?name=a.nii", content=b"x")
    assert (answer.status_code, answer.json()) == (507, {"detail": "the server's disk refuses it"})


def test_there_are_no_websockets(server: Server) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        server.client.websocket_connect("/jobs", headers={"host": "127.0.0.1"}),
    ):
        pass
    assert closed.value.code == 1008


def test_the_interface_describes_itself_and_nothing_loads_from_elsewhere(server: Server) -> None:
    paths = server.client.get("/openapi.json").json()["paths"]
    assert set(paths["/jobs"]) == {"get", "post"}
    assert set(paths["/jobs/{job_id}"]) == {"get", "delete"}
    assert "application/octet-stream" in paths["/jobs"]["post"]["requestBody"]["content"]
    assert "/jobs/{job_id}/rtstruct.dcm" in paths
    assert server.client.get("/docs").status_code == server.client.get("/redoc").status_code == 404


def test_the_list_has_the_latest_jobs_and_those_that_are_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "LISTED_JOBS", 2)
    with serving(tmp_path) as server:
        server.go.set()
        ids = [server.post(b"good") for _ in range(4)]
        server.wait(ids[-1], "finished")
        assert [job["id"] for job in server.client.get("/jobs").json()] == ids[2:]
        assert server.client.get(f"/jobs/{ids[0]}").json()["state"] == "finished"
        server.go.clear()
        ids += [server.post(b"good") for _ in range(4)]
        server.wait(ids[4], "running")
        assert [job["id"] for job in server.client.get("/jobs").json()] == ids[4:]
