"""A whole node: what is pushed comes back, once, whatever happens meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers.nodes import archive, finished, push, running, series, settings, until
from zoomseg.core.errors import OutputError
from zoomseg.node.run import Node, found_models
from zoomseg.node.settings import SettingsError


def test_a_series_comes_back_as_seg_rtstruct_and_report(tmp_path: Path) -> None:
    images = series()
    with archive() as there, running(settings(tmp_path, there)) as node:
        assert set(push(node, images)) == {0}
        (job,) = finished(node)
        assert there.modalities() == ["RTSTRUCT", "SEG", "SR"]
        for one in there.objects:
            assert one.StudyInstanceUID == images[0].StudyInstanceUID
            assert one.PatientName == "Doe^Jane"
        assert [organ.name for organ in job.found if organ.volume_ml] != []
        assert job.deliveries[0].attempts == 1
        assert node.receiver.counts["stored"] == len(images)
