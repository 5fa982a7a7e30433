"""DICOM SR: volume, mean intensity and confidence of every organ, as a Measurement Report (TID 1500).

Each measurement group (TID 1411) refers to the organ's segment in a SEG. The confidence is a Certainty of
Finding (DCM 111012) in percent.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import highdicom as hd
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import UID, ExplicitVRLittleEndian

from zoomseg.anatomy.codes import Code, coded, short_text
from zoomseg.io.dicom import uids
from zoomseg.io.dicom.series import DicomSeries
from zoomseg.io.dicom.write import derived_objects
from zoomseg.io.dicom.write.seg import concept

_PROCEDURES = {
    "CT": Code("77477000", "Computed tomography"),
    "MR": Code("113091000", "Magnetic resonance imaging"),
}


@dataclass(frozen=True)
class ReportedOrgan:
    """Measurements of an organ that was found; ``confidence`` from 0 to 1, None if not known."""

    organ: str
    volume_ml: float
    mean_intensity: float
    confidence: float | None


def write_report(
    path: Path,
    findings: Sequence[ReportedOrgan],
    seg: Path,
    series: DicomSeries,
    model: str,
    version: str = "",
    seed: str = "",
) -> None:
    """Write measurements as a Comprehensive 3D SR.

    Args:
        findings: of organs that ``seg`` contains.
        seg: the DICOM SEG written for the same result.
        model, version: for the record.
        seed: of the UIDs (see ``derived_objects.new_uid``).

    Raises:
        OutputError: the file cannot be written.
    """
    segmentation = pydicom.dcmread(seg, stop_before_pixels=True)
    attributes = derived_objects.series_of_result(series, model, 3000, datetime.now(), seed)
    version = short_text(version) or derived_objects.software_version()
    segments = {item.TrackingID: item for item in segmentation.SegmentSequence}
    groups = [
        _group(finding, segments[short_text(finding.organ)], segmentation, series, model, version)
        for finding in findings
    ]
    report = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(_device(version, seed)),
        procedure_reported=concept(_PROCEDURES[series.modality]),
        imaging_measurements=groups,
    )
    dataset = hd.sr.Comprehensive3DSR(
        evidence=_evidence(segmentation, series),
        content=report[0],
        series_instance_uid=attributes.SeriesInstanceUID,
        series_number=attributes.SeriesNumber,
        sop_instance_uid=derived_objects.new_uid(seed, "report"),
        instance_number=1,
        manufacturer=derived_objects.MANUFACTURER,
        is_complete=True,
        is_final=False,
        is_verified=False,
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )
    dataset.update(attributes)
    dataset.ContentDate, dataset.ContentTime = attributes.SeriesDate, attributes.SeriesTime
    dataset.update(derived_objects.patient_and_study(series))
    dataset.ManufacturerModelName = derived_objects.MANUFACTURER
    dataset.SoftwareVersions = version
    derived_objects.save(dataset, path)


def _device(version: str, seed: str) -> hd.sr.ObserverContext:
    return hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=derived_objects.new_uid(seed, "device"),
            name=derived_objects.MANUFACTURER,
            manufacturer_name=derived_objects.MANUFACTURER,
            model_name=f"{derived_objects.MANUFACTURER} {version}",
        ),
    )


def _group(
    finding: ReportedOrgan,
    segment: Dataset,
    segmentation: Dataset,
    series: DicomSeries,
    model: str,
    version: str,
) -> hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations:
    organ = coded(finding.organ)
    site = hd.sr.FindingSite(
        anatomic_location=concept(organ.type),
        laterality=None if organ.side is None else concept(organ.side),
    )
    return hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(uid=segment.TrackingUID, identifier=segment.TrackingID),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=segment.SegmentNumber,
            source_series=hd.sr.SourceSeriesForSegmentation(uids.series_uid(series)),
        ),
        finding_category=concept(organ.category),
        finding_type=concept(organ.type),
        finding_sites=[site],
        algorithm_id=hd.sr.AlgorithmIdentification(name=short_text(model), version=version),
        measurements=_measurements(finding, series),
    )


def _measurements(finding: ReportedOrgan, series: DicomSeries) -> list[hd.sr.Measurement]:
    unit = hd.sr.CodedConcept("ml", "UCUM", "milliliter")
    found = [hd.sr.Measurement(codes.SCT.Volume, round(finding.volume_ml, 3), unit)]
    mean = round(finding.mean_intensity, 3)
    if series.modality == "CT":
        what, unit = codes.DCM.AttenuationCoefficient, codes.UCUM.HounsfieldUnit
    else:
        what, unit = codes.DCM.MRSignalIntensity, codes.UCUM.NoUnits
    found.append(hd.sr.Measurement(what, mean, unit, derivation=codes.SCT.Mean))
    if finding.confidence is not None:
        percent = round(100 * finding.confidence, 2)
        found.append(hd.sr.Measurement(codes.DCM.CertaintyOfFinding, percent, codes.UCUM.Percent))
    return found


def _evidence(segmentation: Dataset, series: DicomSeries) -> list[Dataset]:
    """The SEG and its source images, in the form that highdicom requires. Patient attributes are added
    later."""
    found = []
    series_of_images = [(item, uids.series_uid(series)) for item in derived_objects.instance_items(series)]
    own = Dataset()
    own.ReferencedSOPClassUID = segmentation.SOPClassUID
    own.ReferencedSOPInstanceUID = segmentation.SOPInstanceUID
    for item, series_uid in [(own, segmentation.SeriesInstanceUID), *series_of_images]:
        one = Dataset()
        one.StudyInstanceUID = uids.study_uid(series)
        one.SeriesInstanceUID = UID(series_uid)
        one.SOPClassUID = item.ReferencedSOPClassUID
        one.SOPInstanceUID = item.ReferencedSOPInstanceUID
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"):
            setattr(one, keyword, "")
        one.StudyTime = one.AccessionNumber = one.ReferringPhysicianName = ""
        found.append(one)
    return found
