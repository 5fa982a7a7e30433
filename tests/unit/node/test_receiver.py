"""Accepted peers and objects, and the status of refusals."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pynetdicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGExtended12Bit, RLELossless, SegmentationStorage

from helpers.certificates import certificates, openssl
from helpers.nodes import association, running, series, settings, until
from zoomseg.core.errors import ZoomSegError
from zoomseg.node.receiver import CONFLICT, NOT_UNDERSTOOD, OTHER_SOP_CLASS, OUT_OF_RESOURCES, client_context
from zoomseg.node.run import Node
from zoomseg.node.settings import Tls


@pytest.fixture
def node(tmp_path: Path) -> Any:
    """A node that only receives."""
    with running(settings(tmp_path), dry_run=True) as found:
        yield found


def why(node: Node) -> str:
    return node.receiver.refusals[-1].why


def test_it_answers_an_echo(node: Node) -> None:
    with association(node, []) as found:
        assert found.send_c_echo().Status == 0


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        node = Node(settings(tmp_path, port=port), dry_run=True)
        with pytest.raises(ZoomSegError, match=rf"cannot listen at 127\.0\.0\.1, port {port} \("):
            node.start()


@pytest.mark.parametrize(
    ("title", "called", "reason"),
    [("STRANGER", "ZOOMSEG", 0x03), ("SENDER", "OTHER", 0x07), ("sender", "ZOOMSEG", 0x03)],
)
def test_strangers_are_rejected(node: Node, title: str, called: str, reason: int) -> None:
    with association(node, series()[:1], title, called) as found:
        assert found.is_rejected
        assert found.acceptor.primitive.diagnostic == reason
    assert until(lambda: node.receiver.counts["rejected"]) == 1
    assert node.receiver.refusals[-1].sender == f"{title} at 127.0.0.1"


def test_a_peer_from_another_address_is_rejected(tmp_path: Path) -> None:
    peers = [{"ae_title": "SENDER", "addresses": ["10.1.2.3"]}]
    with running(settings(tmp_path, peers=peers), dry_run=True) as node:
        with association(node, []) as found:
            assert found.is_rejected
        assert "address" in why(node)


def test_there_are_no_more_associations_than_may_be(tmp_path: Path) -> None:
    limits = {"associations": 1, "free_bytes": 0}
    with running(settings(tmp_path, limits=limits), dry_run=True) as node:
        with association(node, []) as first, association(node, []) as second:
            assert (first.is_established, second.is_rejected) == (True, True)
            assert second.acceptor.primitive.result == 0x02  # transient: try again later
        until(lambda: node.receiver.refusals)
        assert why(node) == "too many associations"


def test_a_silent_association_is_ended(tmp_path: Path) -> None:
    limits = {"idle_seconds": 0.5, "free_bytes": 0}
    with running(settings(tmp_path, limits=limits), dry_run=True) as node, association(node, []) as found:
        assert found.is_established
        until(lambda: not found.is_established)


def test_objects_of_other_kinds_and_syntaxes_have_no_context(node: Node) -> None:
    """Results returned by an archive, and unsupported objects."""
    ae = pynetdicom.AE("SENDER")
    ae.add_requested_context(SegmentationStorage)
    for syntax in (RLELossless, JPEGExtended12Bit, DeflatedExplicitVRLittleEndian):
        ae.add_requested_context(series()[0].SOPClassUID, syntax)
    found = ae.associate("127.0.0.1", node.receiver.port, ae_title="ZOOMSEG")
    assert [str(context.transfer_syntax[0]) for context in found.accepted_contexts] == [RLELossless]
    found.release()


def answer(node: Node, image: Dataset) -> Dataset:
    with association(node, [image]) as found:
        answered: Dataset = found.send_c_store(image)
        found.release()
    return answered


def test_other_pixels_under_one_uid_are_refused_and_named(node: Node) -> None:
    image = series()[0]
    assert answer(node, image).Status == 0
    assert answer(node, image).Status == 0
    image.PixelData = bytes(2) + image.PixelData[2:]
    refused = answer(node, image)
    assert refused.Status == CONFLICT
    assert "another object of its UID" in refused.ErrorComment
    assert node.store.series()[0] in why(node)
    assert (node.receiver.counts["stored"], node.receiver.counts["known"]) == (1, 1)


def test_an_object_that_is_not_the_announced_one_is_refused(node: Node) -> None:
    image = series()[0]
    with association(node, [image]) as found:
        request = pynetdicom.dimse_primitives.C_STORE()
        request.MessageID, request.Priority = 1, 2
        request.AffectedSOPClassUID = image.SOPClassUID
        request.AffectedSOPInstanceUID = "1.2.3.4.5"
        encoded = pynetdicom.dsutils.encode(image, False, True)
        assert encoded is not None
        request.DataSet = BytesIO(encoded)
        found._reactor_checkpoint.clear()  # this test receives the response itself
        until(lambda: found._is_paused)
        found.dimse.send_msg(request, found.accepted_contexts[0].context_id)
        _, told = found.dimse.get_msg(block=True)
        assert told.Status == OTHER_SOP_CLASS
    assert node.store.series() == []


def test_half_an_object_is_not_understood(node: Node) -> None:
    image = series()[0]
    image.PixelData = image.PixelData[:100]
    assert answer(node, image).Status == NOT_UNDERSTOOD
    assert why(node) == "its pixel data are cut off"


def test_an_object_that_is_too_large_is_refused(tmp_path: Path) -> None:
    limits = {"object_bytes": 1000, "free_bytes": 0}
    with running(settings(tmp_path, limits=limits), dry_run=True) as node:
        assert answer(node, series()[0]).Status == OUT_OF_RESOURCES
        assert "limits.object_bytes" in why(node)


def test_a_full_disk_is_told_and_what_comes_later_is_taken(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = series()[0]

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        refused = answer(node, image)
    assert refused.Status == OUT_OF_RESOURCES
    assert str(node.settings.folder) not in refused.ErrorComment
    assert answer(node, image).Status == 0


@openssl
def test_with_tls_only_those_who_show_a_certificate_are_heard(tmp_path: Path) -> None:
    mine, other = certificates(tmp_path / "mine"), certificates(tmp_path / "other")
    with running(settings(tmp_path, tls=mine), dry_run=True) as node:
        context = client_context(Tls.model_validate(mine))
        with association(node, [], tls_args=(context, "localhost")) as found:
            assert found.send_c_echo().Status == 0
        stranger = client_context(Tls.model_validate({**other, "authorities": mine["authorities"]}))
        bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        bare.load_verify_locations(mine["authorities"])
        for refused in ((stranger, "localhost"), (bare, "localhost"), None):
            with association(node, [], tls_args=refused) as found:
                assert not found.is_established


def test_pydicom_reads_as_before_when_it_has_stopped(tmp_path: Path) -> None:
    before = pydicom.config.settings.reading_validation_mode
    with running(settings(tmp_path), dry_run=True):
        assert pydicom.config.settings.reading_validation_mode == pydicom.config.IGNORE
    assert before == pydicom.config.settings.reading_validation_mode != pydicom.config.IGNORE
