"""With Orthanc: a study that is sent to it reaches the node, and the results return to the study."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import highdicom as hd
import pytest
from pydicom.dataset import Dataset

from helpers import dciodvfy, orthanc
from helpers.nodes import finished, running, series, settings, until
from zoomseg.cli.main import main
from zoomseg.node.pull import pull
from zoomseg.node.settings import DimseDestination, NodeSettings, WebDestination

DSRDUMP = shutil.which("dsrdump")


def settings_for(folder: Path, port: int, send_to: str = "") -> NodeSettings:
    """Settings of a node with a port that is chosen before Orthanc starts."""
    peers = [{"ae_title": title, "addresses": ["127.0.0.1"]} for title in ("ORTHANC", "ZOOMSEG")]
    rules = [{"send_to": [send_to] if send_to else []}]
    placeholder = {"pacs": {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": 1}}
    placeholder["web"] = {"url": "http://127.0.0.1:1"}  # type: ignore[dict-item]
    return settings(folder, port=port, peers=peers, rules=rules, destinations=placeholder)


def reaching(found: NodeSettings, there: orthanc.Orthanc) -> NodeSettings:
    places = {
        "pacs": DimseDestination(ae_title="ORTHANC", host="127.0.0.1", port=there.dicom_port),
        "web": WebDestination(url=there.web),
    }
    return found.model_copy(update={"destinations": places})


def judged(objects: list[Dataset], folder: Path) -> None:
    """Check SEG, RTSTRUCT and SR with other programs."""
    by_modality = {one.Modality: one for one in objects if one.Modality != "CT"}
    assert sorted(by_modality) == ["RTSTRUCT", "SEG", "SR"]
    for name, one in by_modality.items():
        one.save_as(folder / f"{name}.dcm", enforce_file_format=True)
        if dciodvfy.VERIFIER is not None:
            assert [
                line for line in dciodvfy.found_by(folder / f"{name}.dcm") if line.startswith("Error")
            ] == []
    seg = hd.seg.segread(folder / "SEG.dcm")
    report = hd.sr.srread(folder / "SR.dcm")
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == [
        seg.get_segment_description(n).segment_label for n in seg.segment_numbers
    ]
    images = {one.SOPInstanceUID for one in objects if one.Modality == "CT"}
    assert {uid for _, _, uid in seg.get_source_image_uids()} <= images
    structures = by_modality["RTSTRUCT"].StructureSetROISequence
    assert [one.ROIName for one in structures] == [group.tracking_identifier for group in groups]
    if DSRDUMP is not None:
        ran = subprocess.run([DSRDUMP, folder / "SR.dcm"], capture_output=True, text=True, check=True)
        assert "Comprehensive 3D SR Document" in ran.stdout
        assert [line for line in ran.stderr.splitlines() if line.startswith("E:")] == []


@pytest.mark.slow
@orthanc.needed
def test_a_study_that_is_pushed_is_routed_and_its_results_come_back_once(tmp_path: Path) -> None:
    port = orthanc.free_port()
    found = settings_for(tmp_path, port, "pacs")
    with orthanc.orthanc(tmp_path / "orthanc", port, route=True) as there:
        with running(reaching(found, there)) as node:
            there.upload([*series(1), *series(2, slices=1)])
            until(lambda: there.modalities("1.2.3") == {"CT", "SEG", "RTSTRUCT", "SR"})
            finished(node)
            time.sleep(3)  # results are stable by now; if Orthanc forwarded them, it would have done so
            finished(node)
        objects = there.objects("1.2.3")
        assert len([one for one in objects if one.Modality != "CT"]) == 3
        judged(objects, tmp_path)


@orthanc.web_needed
def test_results_by_stow_and_a_study_by_qido_and_wado(tmp_path: Path) -> None:
    port = orthanc.free_port()
    found = settings_for(tmp_path, port, "web")
    images = series()
    with (
        orthanc.orthanc(tmp_path / "orthanc", port, route=False) as there,
        running(reaching(found, there)) as node,
    ):
        there.upload(images)
        pulled = list(pull(["1.2.3", "1.2.999"], WebDestination(url=there.web), node.settings))
        assert [(one.images, one.left) for one in pulled] == [(len(images), 0), (0, 0)]
        assert pulled[0].error is None
        assert pulled[1].error is not None
        finished(node)
        judged(there.objects("1.2.3"), tmp_path)
        # The results exist now: another pull does not repeat the segmentation.
        list(pull(["1.2.3"], WebDestination(url=there.web), node.settings))
        time.sleep(1)
        finished(node)


@orthanc.needed
def test_studies_by_c_move(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = orthanc.free_port()
    found = settings_for(tmp_path, port)
    with (
        orthanc.orthanc(tmp_path / "orthanc", port, route=False) as there,
        running(reaching(found, there)) as node,
    ):
        there.upload([*series(1, "1.2.4"), *series(1, "1.2.5")])
        (tmp_path / "studies").write_text("# two that are there, one that is not\n1.2.4\n1.2.5\n1.2.6\n")
        (tmp_path / "node.yaml").write_text(node.settings.model_dump_json())  # JSON is valid YAML
        arguments = [
            "node",
            str(tmp_path / "node.yaml"),
            "--pull",
            str(tmp_path / "studies"),
            "--from",
            "pacs",
        ]
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 1
        first, second, third = capsys.readouterr().out.splitlines()
        count = len(series())
        assert first == f"study 1 of 3: {count} images"
        assert second == f"study 2 of 3: {count} images"
        assert third.startswith("study 3 of 3: it ")
        assert {job.study_uid for job in finished(node, 2)} == {"1.2.4", "1.2.5"}
