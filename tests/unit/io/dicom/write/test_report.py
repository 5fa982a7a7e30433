"""Structured reports contain the measurements, and name their segments."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import highdicom as hd
import pydicom
import pytest
from pydicom.sr.codedict import codes
from pydicom.uid import MRImageStorage

from helpers import dciodvfy
from helpers.dicom_annotations import ORIENTATIONS, drawn_on, grid_of, interpolated, series_on
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write.report import ReportedOrgan, write_report
from zoomseg.io.dicom.write.seg import write_seg

MR = dataclasses.replace(series_on(grid_of("sagittal")), modality="MR", sop_class_uid=str(MRImageStorage))
SERIES: dict[str, DicomSeries] = {
    **{name: series_on(grid_of(name)) for name in ORIENTATIONS},
    "interpolated": interpolated(series_on(grid_of("axial")), 3),
    "of an MR": MR,
}


def written(
    folder: Path, series: DicomSeries, seed: str = "s"
) -> tuple[pydicom.Dataset, list[ReportedOrgan]]:
    labels, seg = drawn_on(series.grid), folder / "a.seg.dcm"
    write_seg(seg, labels, series, "abdomen-ct", "3", seed)
    names = [labels.schema.names[c - 1] for c in sorted(set(labels.data.ravel().tolist()) - {0})]
    findings = [
        ReportedOrgan(n, 10.5 * k + 1, -3.25 * k, 0.25 * k if k else None) for k, n in enumerate(names)
    ]
    write_report(folder / "a.sr.dcm", findings, seg, series, "abdomen-ct", "3", seed)
    return pydicom.dcmread(folder / "a.sr.dcm"), findings


@pytest.mark.parametrize("name", SERIES)
def test_measurements_come_back(name: str, tmp_path: Path) -> None:
    series = SERIES[name]
    dataset, findings = written(tmp_path, series)
    report = hd.sr.Comprehensive3DSR.from_dataset(dataset)
    groups = report.content.get_volumetric_roi_measurement_groups()
    assert [group.tracking_identifier for group in groups] == [one.organ for one in findings]
    unit = codes.UCUM.NoUnits if series.modality == "MR" else codes.UCUM.HounsfieldUnit
    for group, finding in zip(groups, findings, strict=True):
        volume, mean, *sure = group.get_measurements()
        assert (volume.name, volume.value, volume.unit.value) == (codes.SCT.Volume, finding.volume_ml, "ml")
        assert (mean.value, mean.unit, mean.derivation) == (finding.mean_intensity, unit, codes.SCT.Mean)
        expected = [] if finding.confidence is None else [(100 * finding.confidence, codes.UCUM.Percent)]
        assert [(one.value, one.unit) for one in sure] == expected


def test_groups_refer_to_the_segments_of_the_seg(tmp_path: Path) -> None:
    dataset, findings = written(tmp_path, SERIES["axial"])
    seg = pydicom.dcmread(tmp_path / "a.seg.dcm")
    groups = hd.sr.Comprehensive3DSR.from_dataset(dataset).content.get_volumetric_roi_measurement_groups()
    segments = {one.SegmentNumber: one for one in seg.SegmentSequence}
    for group, finding in zip(groups, findings, strict=True):
        reference = group.referenced_segment
        assert reference.referenced_sop_instance_uid == seg.SOPInstanceUID
        (number,) = reference.referenced_segment_numbers
        segment = segments[number]
        assert segment.SegmentLabel == finding.organ
        assert group.tracking_uid == segment.TrackingUID
        assert group.finding_type == hd.sr.CodedConcept.from_dataset(
            segment.SegmentedPropertyTypeCodeSequence[0]
        )


def test_it_belongs_to_the_study_and_is_not_verified(tmp_path: Path) -> None:
    series = SERIES["axial"]
    dataset, _ = written(tmp_path, series)
    assert dataset.StudyInstanceUID == series.study_uid
    assert dataset.PatientName == dict(series.patient)["PatientName"]
    assert (dataset.VerificationFlag, dataset.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    named = {
        instance.ReferencedSOPInstanceUID
        for study in dataset.CurrentRequestedProcedureEvidenceSequence
        for one in study.ReferencedSeriesSequence
        for instance in one.ReferencedSOPSequence
    }
    assert set(series.slice_uids) < named


def test_uids_are_those_of_the_seed(tmp_path: Path) -> None:
    for folder in ("a", "b", "c"):
        (tmp_path / folder).mkdir()
    first, again, other = (
        written(tmp_path / folder, SERIES["axial"], seed)[0]
        for folder, seed in (("a", "x"), ("b", "x"), ("c", "y"))
    )
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert first[keyword].value == again[keyword].value != other[keyword].value


@dciodvfy.needed
@pytest.mark.parametrize("name", SERIES)
def test_reports_are_valid(name: str, tmp_path: Path) -> None:
    written(tmp_path, SERIES[name])
    assert dciodvfy.found_by(tmp_path / "a.sr.dcm") == []
