"""Studies of a list are transferred to the running node, and each outcome is reported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydicom
import pynetdicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGExtended12Bit, RLELossless, SegmentationStorage
from pynetdicom import evt
from pynetdicom.sop_class import (
    StudyRootQueryRetrieveInformationModelFind,
    StudyRootQueryRetrieveInformationModelMove,
)

from helpers.nodes import finished, running, series, settings
from zoomseg.node import pull as module
from zoomseg.node.pull import Pulled, Transferred, _move_series, hand_on, move, pull, read_studies, retrieve
from zoomseg.node.run import Node
from zoomseg.node.sending import NotSentError
from zoomseg.node.settings import DimseDestination, SettingsError, WebDestination

ITSELF = [{"ae_title": "ZOOMSEG", "addresses": ["127.0.0.1", "::1"]}]
WEB = WebDestination(url="http://127.0.0.1:1/dicom-web")


def test_a_list_has_a_uid_a_line(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("# yesterday\n1.2.3\n\n 1.2.4 \n1.2.3\n")
    assert read_studies(tmp_path / "list") == ["1.2.3", "1.2.4"]
    (tmp_path / "list").write_text("1.2.3\nSecret^Name\n")
    with pytest.raises(SettingsError, match="line 2 is no Study Instance UID") as refused:
        read_studies(tmp_path / "list")
    assert "Secret" not in str(refused.value)
    with pytest.raises(SettingsError, match="cannot be read"):
        read_studies(tmp_path / "none")


class Web:
    """A DICOMweb client of an archive that holds these objects."""

    def __init__(self, objects: list[Dataset]) -> None:
        self._objects = objects

    def search_for_series(self, study: str, search_filters: dict[str, str]) -> list[dict[str, Any]]:
        found = {
            one.SeriesInstanceUID: one
            for one in self._objects
            if (one.StudyInstanceUID, one.Modality) == (study, search_filters["Modality"])
        }
        return [{"0020000E": {"vr": "UI", "Value": [uid]}} for uid in found]

    def iter_series(self, study: str, uid: str) -> Iterator[Dataset]:
        return (one for one in self._objects if (one.StudyInstanceUID, one.SeriesInstanceUID) == (study, uid))


def placed(node: Node) -> Any:
    """The settings that a second process reads, with the free port that was chosen."""
    return node.settings.model_copy(update={"port": node.receiver.port})


def test_by_dicomweb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = [*series(1), *series(2, Modality="OT")]
    monkeypatch.setattr(module, "web_client", lambda source, seconds: Web(objects))
    with running(settings(tmp_path, peers=ITSELF)) as node:
        first, second = pull(["1.2.3", "1.2.9"], WEB, placed(node))
        assert first == Pulled(1, len(series(1)), 0)
        assert second == Pulled(2, 0, 0, "it has no images of this study that the node takes")
        assert finished(node)[0].slices == len(series(1))


def test_what_an_archive_says_of_a_patient_is_not_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Telling(Web):
        def search_for_series(self, study: str, search_filters: dict[str, str]) -> list[dict[str, Any]]:
            born = {"00100030": {"vr": "DA", "Value": ["1950.01.01 Meier"]}}
            return [born | one for one in super().search_for_series(study, search_filters)]

    monkeypatch.setattr(module, "web_client", lambda source, seconds: Telling(series()))
    with running(settings(tmp_path, peers=ITSELF), dry_run=True) as node, monkeypatch.context() as patch:
        # As in a second process, where no node runs.
        patch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.WARN)
        assert list(pull(["1.2.3"], WEB, placed(node))) == [Pulled(1, len(series()), 0)]
    assert "Meier" not in caplog.text


def test_a_series_in_several_transfer_syntaxes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = series()
    images[0].compress(RLELossless, generate_instance_uid=False)
    monkeypatch.setattr(module, "web_client", lambda source, seconds: Web(images))
    with running(settings(tmp_path, peers=ITSELF), dry_run=True) as node:
        assert list(pull(["1.2.3"], WEB, placed(node))) == [Pulled(1, len(images), 0)]


@pytest.mark.parametrize(
    ("host", "reached"), [("0.0.0.0", "localhost"), ("::", "localhost"), ("10.0.0.5", "10.0.0.5")]
)
def test_images_are_handed_on_where_the_node_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str, reached: str
) -> None:
    def refuse(destination: DimseDestination, *arguments: object) -> None:
        raise NotSentError(f"asked at {destination.host}")

    monkeypatch.setattr(module, "associate", refuse)
    with pytest.raises(NotSentError, match=f"asked at {reached} "):
        hand_on(series(), settings(tmp_path, host=host, port=11112))


def moved(*answers: dict[str, int]) -> Transferred:
    """The outcome of a C-MOVE with these responses; ``Status`` and numbers of sub-operations."""

    def status(answer: dict[str, int]) -> Dataset:
        found = Dataset()
        for name, value in answer.items():
            setattr(found, name if name == "Status" else f"NumberOf{name}Suboperations", value)
        return found

    given = [(status(answer), None) for answer in answers]
    return _move_series(SimpleNamespace(send_c_move=lambda *arguments: given), "1.2", "1.2.3", "ZOOMSEG")


PENDING = {"Status": 0xFF00, "Remaining": 1, "Completed": 8, "Warning": 1, "Failed": 0}


@pytest.mark.parametrize(
    ("last", "found"),
    [
        ({"Status": 0, "Completed": 9, "Warning": 1, "Failed": 0}, Transferred(10)),
        ({"Status": 0}, Transferred(10)),
        ({"Status": 0xB000, "Completed": 8, "Warning": 1, "Failed": 1}, Transferred(9, 1)),
        ({"Status": 0xB000}, Transferred(9, 1)),
    ],
)
def test_the_last_response_to_c_move_need_not_contain_the_numbers(
    last: dict[str, int], found: Transferred
) -> None:
    """The pending ones do (PS3.7 Table 9.1-4)."""
    assert moved({**PENDING, "Remaining": 2, "Completed": 7}, PENDING, last) == found


@pytest.mark.parametrize("answers", [(), (PENDING, {})], ids=["no answer", "no last answer"])
def test_an_association_that_ends_before_the_last_answer(answers: tuple[dict[str, int], ...]) -> None:
    """pynetdicom then gives an empty status."""
    with pytest.raises(NotSentError, match="the association ended before it answered"):
        moved(*answers)


def test_an_archive_that_tells_no_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert moved({"Status": 0}).error is None
    assert moved({"Status": 0xB000}).error == "some images were not accepted; the node's page says why"
    monkeypatch.setattr(
        module, "move", lambda *arguments: moved({"Status": 0}) + moved(PENDING, {"Status": 0})
    )
    place = DimseDestination(ae_title="SENDER", host="127.0.0.1", port=1)
    (one,) = pull(["1.2.3"], place, settings(tmp_path))
    assert (one.error, one.summary) == (None, "sent; the archive does not tell how many images")
    assert Pulled(1, 12, 0).summary == "12 images"


def test_an_archive_may_need_hours_for_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two responses of a C-MOVE, or for the first data by DICOMweb; connecting takes no longer than
    otherwise."""
    asked: list[float] = []

    def associate(*arguments: Any) -> None:
        asked.append(arguments[3])
        raise NotSentError("seen")

    monkeypatch.setattr(module, "associate", associate)
    place = DimseDestination(ae_title="SENDER", host="127.0.0.1", port=1)
    with pytest.raises(NotSentError, match="seen"):
        move("1.2.3", place, settings(tmp_path))
    monkeypatch.setattr(module, "web_client", lambda source, seconds: asked.append(seconds) or Web([]))
    retrieve("1.2.3", WEB, settings(tmp_path))
    assert asked == [module.ANSWER_SECONDS] * 2
    assert module.ANSWER_SECONDS >= 3600


def test_a_node_that_does_not_know_itself_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "web_client", lambda source, seconds: Web(series()))
    with running(settings(tmp_path), dry_run=True) as node:
        (one,) = pull(["1.2.3"], WEB, placed(node))
    assert one.error is not None
    assert "list ZOOMSEG at 127.0.0.1 as a peer" in one.error


def test_an_archive_that_is_down(tmp_path: Path) -> None:
    (one,) = pull(["1.2.3"], WEB, settings(tmp_path))
    assert one.error is not None
    assert one.error.startswith("it cannot be reached")


@contextmanager
def archive(node: Node, objects: list[Dataset], known: bool = True) -> Iterator[DimseDestination]:
    """An archive that holds these objects and knows the node, or not."""

    def find(event: evt.Event) -> Iterator[Any]:
        assert event.identifier.QueryRetrieveLevel == "SERIES"
        for uid in {one.SeriesInstanceUID for one in objects}:
            answer = Dataset()
            answer.SeriesInstanceUID = uid
            answer.Modality = next(one.Modality for one in objects if one.SeriesInstanceUID == uid)
            yield 0xFF00, answer

    def handle(event: evt.Event) -> Iterator[Any]:
        assert event.move_destination == "ZOOMSEG"
        assert event.identifier.StudyInstanceUID == "1.2.3"
        images = [one for one in objects if one.SeriesInstanceUID == event.identifier.SeriesInstanceUID]
        yield ("127.0.0.1", node.receiver.port, {"ae_title": "ZOOMSEG"}) if known else (None, None)
        yield len(images)
        for image in images:
            yield 0xFF00, image

    ae = pynetdicom.AE("SENDER")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelFind)
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    for kind in {one.SOPClassUID for one in objects}:
        ae.add_requested_context(kind)
    handlers = [(evt.EVT_C_FIND, find), (evt.EVT_C_MOVE, handle)]
    server = ae.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    try:
        port = server.socket.getsockname()[1]
        yield DimseDestination(ae_title="SENDER", host="127.0.0.1", port=port)
    finally:
        ae.shutdown()


@pytest.mark.parametrize(
    ("known", "said"),
    [(True, None), (False, "it refuses C-MOVE with status 0xA801; check that it lists this node")],
)
def test_by_c_move(tmp_path: Path, known: bool, said: str | None) -> None:
    """The node's own results, which are in the same study, are not requested."""
    images = series()
    results = series(2, Modality="SEG", SOPClassUID=SegmentationStorage)
    with running(settings(tmp_path)) as node:
        with archive(node, images + results, known) as place:
            (one,) = pull(["1.2.3"], place, placed(node))
        assert one == Pulled(1, len(images) if known else 0, 0, said)
        if known:
            finished(node)


@pytest.mark.parametrize("by", ["C-MOVE", "DICOMweb"])
def test_images_that_the_node_refuses_are_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    images = series()
    monkeypatch.setattr(module, "web_client", lambda source, seconds: Web(images))
    peers = [*ITSELF, {"ae_title": "SENDER", "addresses": ["127.0.0.1"]}]
    with running(settings(tmp_path, peers=peers), dry_run=True) as node:
        for image in images[:2]:
            image.PixelData = image.PixelData[:100]
        with archive(node, images) as place:
            (one,) = pull(["1.2.3"], place if by == "C-MOVE" else WEB, placed(node))
        said = f"2 of {len(images)} images were not accepted; the node's page says why"
        assert one == Pulled(1, len(images) - 2, 0, said)
        assert node.receiver.counts["refused"] == 2


def test_a_syntax_that_the_node_does_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = series()
    images[0].file_meta.TransferSyntaxUID = JPEGExtended12Bit
    monkeypatch.setattr(module, "web_client", lambda source, seconds: Web(images))
    with running(settings(tmp_path, peers=ITSELF), dry_run=True) as node:
        (one,) = pull(["1.2.3"], WEB, placed(node))
    assert one.error is not None
    assert one.error.startswith("the node does not take CT Image Storage in JPEG Extended")


def test_an_archive_without_c_find(tmp_path: Path) -> None:
    ae = pynetdicom.AE("SENDER")
    ae.add_supported_context(StudyRootQueryRetrieveInformationModelMove)
    server = ae.start_server(("127.0.0.1", 0), block=False)
    try:
        place = DimseDestination(ae_title="SENDER", host="127.0.0.1", port=server.socket.getsockname()[1])
        (one,) = pull(["1.2.3"], place, settings(tmp_path))
    finally:
        ae.shutdown()
    assert one.error == "it does not offer C-FIND to this node (study root)"
