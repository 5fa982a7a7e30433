"""Results finally reach their destinations, and failures are reported."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset

from helpers.certificates import certificates, openssl
from helpers.dicom_series import write
from helpers.nodes import archive, ended, finished, push, running, series, settings, until
from helpers.untrained_models import predictor
from zoomseg.node import sending
from zoomseg.node.receiver import server_context
from zoomseg.node.segmentation import segment_series
from zoomseg.node.sending import Context, NotSentError, attempted, send, store_dimse, store_web, web_client
from zoomseg.node.settings import DimseDestination, NodeSettings, Output, Tls, WebDestination
from zoomseg.serve.job_queue import State
from zoomseg.serve.worker import Task


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Objects to be sent."""
    folder = tmp_path_factory.mktemp("results")
    write(folder / "scan", series())
    wanted = {"outputs": list(Output), "organs": [], "seed": "s"}
    task = Task("result", str(folder / "scan"), str(folder / "out"), "model", wanted)
    segment_series(task, predictor(), lambda step: None)
    return [folder / "out" / f"result.{kind}.dcm" for kind in ("seg", "rtstruct", "sr")]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> NodeSettings:
    """Settings of the node that sends."""
    return settings(tmp_path_factory.mktemp("ours"))


def ignore(taken: Path) -> None:
    pass


def kinds(taken: list[Path]) -> list[str]:
    return [path.name.split(".")[1] for path in taken]


@contextmanager
def web(
    status: int = 200, answer: dict[str, Any] | None = None, seconds: float = 0
) -> Iterator[tuple[str, list[Any]]]:
    """A DICOMweb service with this answer after some seconds, and the requests that it received."""
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            asked.append((self.path, dict(self.headers), body))
            time.sleep(seconds)
            content = json.dumps(answer or {}).encode()
            self.send_response(status)
            self.send_header("content-type", "application/dicom+json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/dicom-web", asked
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_refused_is_sent_again_until_it_is_taken(tmp_path: Path) -> None:
    answers = iter([0xA700, 0xC000])
    with (
        archive(lambda dataset: next(answers, 0)) as there,
        running(settings(tmp_path, there)) as node,
    ):
        push(node, series())
        (job,) = finished(node)
        assert job.deliveries[0].attempts == 2
        assert there.modalities() == ["RTSTRUCT", "SEG", "SR"]


def test_what_is_taken_is_sent_once_whatever_is_refused(tmp_path: Path) -> None:
    def reply(dataset: Dataset) -> int:
        return 0xA700 if dataset.Modality == "SEG" else 0

    with archive(reply) as there, running(settings(tmp_path, there)) as node:
        push(node, series())
        until(lambda: [job for job in node.jobs.in_state(State.SENDING) if job.deliveries[0].attempts > 2])
        (job,) = node.jobs.all()
        assert job.deliveries[0].error == "it refuses Segmentation Storage with status 0xA700"
        assert job.deliveries[0].taken == (Output.RTSTRUCT, Output.SR)
        assert there.modalities() == ["RTSTRUCT", "SR"]


def test_what_is_not_answered_is_not_sent(
    files: list[Path], ours: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom gives an empty status if the association ends during a C-STORE."""
    taken: list[Path] = []
    stored = Dataset()
    stored.Status = 0
    answers = iter([stored, Dataset()])

    def associate(destination: DimseDestination, settings: NodeSettings, contexts: list[Context]) -> Any:
        accepted = [SimpleNamespace(abstract_syntax=sop_class) for sop_class, _ in contexts]
        return SimpleNamespace(
            accepted_contexts=accepted, send_c_store=lambda file: next(answers), release=lambda: None
        )

    monkeypatch.setattr(sending, "associate", associate)
    place = DimseDestination(ae_title="ARCHIVE", host="127.0.0.1", port=1)
    with pytest.raises(NotSentError, match="the association ended before it answered"):
        store_dimse(files, place, ours, taken.append)
    assert taken == files[:1]


def test_what_an_archive_has_already_counts_as_sent(tmp_path: Path) -> None:
    """Its UID stands for its content."""
    with archive(lambda dataset: 0x0111) as there, running(settings(tmp_path, there)) as node:
        push(node, series())
        (job,) = finished(node)
        assert job.deliveries[0].attempts == 1


def test_a_destination_that_is_down_keeps_no_other_waiting(tmp_path: Path) -> None:
    with archive() as there, archive() as down:
        down.close()
        found = settings(tmp_path, there)
        destinations = {
            **found.destinations,
            "down": DimseDestination(ae_title="DOWN", host="127.0.0.1", port=down.port),
        }
        rule = found.rules[0].model_copy(update={"send_to": ("down", "archive")})
        with running(found.model_copy(update={"destinations": destinations, "rules": (rule,)})) as node:
            push(node, series())
            until(lambda: len(there.objects) == 3)
            (job,) = node.jobs.all()
            assert job.state is State.SENDING
            waiting = until(lambda: node.jobs.all()[0].deliveries[0].error)
            assert waiting == "it cannot be reached, or does not answer"


def test_stow(files: list[Path], ours: NodeSettings) -> None:
    taken: list[Path] = []
    with web() as (url, asked):
        store_web(files, WebDestination(url=url), ours, taken.append)
    assert taken == files
    ((path, headers, body),) = asked
    assert path == "/dicom-web/studies"
    assert headers["Content-Type"].startswith('multipart/related; type="application/dicom"')
    for file in files:
        assert pydicom.dcmread(file).SOPInstanceUID.encode() in body
    assert body.count(b"DICM") == len(files)


@pytest.mark.parametrize(
    ("status", "answer", "said"),
    [
        (401, None, "it answers with status 401"),
        (503, None, "it answers with status 503"),
        (202, {"00081198": {"vr": "SQ", "Value": [{}]}}, "it refuses 1 of 3 objects"),
    ],
)
def test_a_web_service_that_refuses(
    files: list[Path], ours: NodeSettings, status: int, answer: dict[str, Any] | None, said: str
) -> None:
    taken: list[Path] = []
    with web(status, answer) as (url, _):
        there = WebDestination(url=url)
        assert attempted(lambda: store_web(files, there, ours, taken.append)) == said
    assert taken == []


@pytest.mark.parametrize(
    ("status", "reasons", "taken", "said"),
    [
        (202, {1: 0x0122}, ["seg", "sr"], "it refuses 1 of 3 objects"),
        (202, {0: 0x0111, 1: 0x0122}, ["seg", "sr"], "it refuses 1 of 3 objects"),
        (409, {0: 0x0111, 1: 0x0111, 2: 0x0111}, ["seg", "rtstruct", "sr"], None),
        (409, {0: 45070, 1: 45070, 2: 0xA700}, ["seg", "rtstruct"], "it refuses 1 of 3 objects"),
        (409, {0: 0xA700, 1: 0xA700, 2: 0xA700}, [], "it refuses 3 of 3 objects"),
    ],
)
def test_a_web_service_that_refuses_some_or_has_them_already(
    files: list[Path],
    ours: NodeSettings,
    status: int,
    reasons: dict[int, int],
    taken: list[str],
    said: str | None,
) -> None:
    items = [
        {
            "00081155": {"vr": "UI", "Value": [str(pydicom.dcmread(files[n]).SOPInstanceUID)]},
            "00081197": {"vr": "US", "Value": [reason]},
        }
        for n, reason in reasons.items()
    ]
    found: list[Path] = []
    with web(status, {"00081198": {"vr": "SQ", "Value": items}}) as (url, _):
        there = WebDestination(url=url)
        assert attempted(lambda: store_web(files, there, ours, found.append)) == said
    assert kinds(found) == taken


def test_a_web_service_that_is_down(files: list[Path], ours: NodeSettings) -> None:
    with web() as (url, _):
        pass
    said = attempted(lambda: store_web(files, WebDestination(url=url), ours, ignore))
    assert said is not None
    assert said.startswith("it cannot be reached")


def test_a_web_service_has_the_time_that_the_settings_give(files: list[Path], ours: NodeSettings) -> None:
    limits = ours.limits.model_copy(update={"idle_seconds": 0.2})
    with web(seconds=2) as (url, _):
        there = WebDestination(url=url)
        hasty = ours.model_copy(update={"limits": limits})
        said = "it cannot be reached, or does not answer (ReadTimeout)"
        assert attempted(lambda: store_web(files, there, hasty, ignore)) == said
        assert attempted(lambda: store_web(files, there, ours, ignore)) is None
    assert web_client(there, 30)._timeout == (10, 30)


def test_a_password_comes_from_the_environment(
    files: list[Path], ours: NodeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web() as (url, asked):
        there = WebDestination(url=url, user="me", password_variable="NODE_TEST_PASSWORD")
        with pytest.raises(NotSentError, match="NODE_TEST_PASSWORD holds no password"):
            web_client(there, 60)
        monkeypatch.setenv("NODE_TEST_PASSWORD", "secret")
        store_web(files, there, ours, ignore)
    assert asked[0][1]["Authorization"] == "Basic bWU6c2VjcmV0"


def test_an_archive_that_does_not_know_us_or_the_kind(tmp_path: Path, files: list[Path]) -> None:
    found = settings(tmp_path / "other")
    with archive() as there:
        place = DimseDestination(ae_title="ARCHIVE", host="127.0.0.1", port=there.port)
        there._ae.require_calling_aet = ["SOMEBODY"]
        with pytest.raises(NotSentError, match="rejects the association"):
            send(files, place, found, ignore)
    with archive() as there:
        for context in there._ae.supported_contexts:
            if context.abstract_syntax.name == "RT Structure Set Storage":
                there._server.contexts.remove(context)
        place = DimseDestination(ae_title="ARCHIVE", host="127.0.0.1", port=there.port)
        taken: list[Path] = []
        with pytest.raises(NotSentError, match="does not take objects of the kind RT Structure Set"):
            send(files, place, found, taken.append)
        assert kinds(taken) == ["seg", "sr"]
        with pytest.raises(NotSentError, match="does not take objects of the kind RT Structure Set"):
            send([file for file in files if file not in taken], place, found, taken.append)


@openssl
def test_by_tls_only_to_those_whose_certificate_is_known(tmp_path: Path, files: list[Path]) -> None:
    mine, other = certificates(tmp_path / "mine"), certificates(tmp_path / "other")
    found = settings(tmp_path, tls=mine)
    with archive(tls=server_context(Tls.model_validate(mine))) as there:
        place = DimseDestination(ae_title="ARCHIVE", host="localhost", port=there.port, tls=True)
        send(files, place, found, ignore)
        assert there.modalities() == ["RTSTRUCT", "SEG", "SR"]
        with pytest.raises(NotSentError, match="cannot be reached"):
            send(files, place.model_copy(update={"tls": False}), found, ignore)
    with archive(tls=server_context(Tls.model_validate(other))) as there:
        place = DimseDestination(ae_title="ARCHIVE", host="localhost", port=there.port, tls=True)
        with pytest.raises(NotSentError, match="cannot be reached"):
            send(files, place, found, ignore)


def test_a_job_whose_results_are_gone_begins_again_when_its_series_is_sent_again(tmp_path: Path) -> None:
    status = [0xA700]
    with archive(lambda dataset: status[0]) as there, running(settings(tmp_path, there)) as node:
        push(node, series())
        (job,) = until(lambda: node.jobs.in_state(State.SENDING))
        node.jobs.results(job)[Output.SEG].unlink()
        (job,) = ended(node)
        assert job.error == "its results are gone: result.seg.dcm; send the series again"
        status[0] = 0
        push(node, series())
        until(lambda: node.jobs.in_state(State.FINISHED))
        assert there.modalities() == ["RTSTRUCT", "SEG", "SR"]


def test_causes_that_the_settings_explain_are_said(tmp_path: Path, files: list[Path]) -> None:
    found = settings(tmp_path, tls=dict.fromkeys(Tls.model_fields, tmp_path / "none.pem"))
    place = DimseDestination(ae_title="ARCHIVE", host="nowhere.invalid", port=104)
    said = attempted(lambda: send(files, place, found, ignore))
    assert said is not None
    assert said.startswith("its host nowhere.invalid cannot be resolved or reached")
    said = attempted(lambda: send(files, place.model_copy(update={"tls": True}), found, ignore))
    assert said is not None
    assert said.startswith("tls: a certificate or key cannot be used")


def test_what_an_error_says_is_not_repeated() -> None:
    def fail() -> None:
        raise ValueError("Secret^Name")

    assert attempted(fail) == "unexpected ValueError"
