"""Patient and study attributes of images, for the objects derived from them.

The attributes of DICOM's modules Patient, General Study and Patient Study (PS3.3 Tables C.7-1, C.7-3, C.7-4a)
except photos, as text: several values as DICOM separates them, sequences as DICOM JSON (PS3.18 F). A header
is hostile until checked: values that do not have the form required by the standard are not passed on.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from pydicom import config
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.valuerep import validate_value

from zoomseg.anatomy.codes import short_text
from zoomseg.io.dicom.tags import text, value_of

REQUIRED = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate"),
    *("StudyTime", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
)
"""Always present, possibly empty: type 2, and the description."""

KEYWORDS = (
    *REQUIRED,
    # Patient
    *("IssuerOfPatientID", "TypeOfPatientID", "IssuerOfPatientIDQualifiersSequence"),
    *("SourcePatientGroupIdentificationSequence", "GroupOfPatientsIdentificationSequence"),
    *("ReferencedPatientSequence", "PatientBirthTime", "PatientBirthDateInAlternativeCalendar"),
    *("PatientDeathDateInAlternativeCalendar", "PatientAlternativeCalendar", "QualityControlSubject"),
    *("StrainDescription", "StrainNomenclature", "StrainStockSequence", "StrainAdditionalInformation"),
    *("StrainCodeSequence", "GeneticModificationsSequence", "OtherPatientNames", "OtherPatientIDsSequence"),
    *("EthnicGroupCodeSequence", "PatientSpeciesDescription", "PatientSpeciesCodeSequence"),
    *("PatientBreedDescription", "PatientBreedCodeSequence", "BreedRegistrationSequence"),
    *("ResponsiblePerson", "ResponsiblePersonRole", "ResponsibleOrganization", "PatientComments"),
    *("PatientIdentityRemoved", "DeidentificationMethod", "DeidentificationMethodCodeSequence"),
    # General Study
    *("IssuerOfAccessionNumberSequence", "ReferringPhysicianIdentificationSequence"),
    *("ConsultingPhysicianName", "ConsultingPhysicianIdentificationSequence", "ProcedureCodeSequence"),
    *("PhysiciansOfRecord", "PhysiciansOfRecordIdentificationSequence", "NameOfPhysiciansReadingStudy"),
    *("PhysiciansReadingStudyIdentificationSequence", "ReferencedStudySequence", "RequestingService"),
    *("RequestingServiceCodeSequence", "ReasonForPerformedProcedureCodeSequence"),
    # Patient Study
    *("AdmittingDiagnosesDescription", "AdmittingDiagnosesCodeSequence", "PatientAge", "PatientSize"),
    *("PatientSizeCodeSequence", "PatientBodyMassIndex", "MeasuredAPDimension", "MeasuredLateralDimension"),
    *("PatientWeight", "MedicalAlerts", "Allergies", "SmokingStatus", "PregnancyStatus", "LastMenstrualDate"),
    *("PatientState", "Occupation", "AdditionalPatientHistory", "AdmissionID", "IssuerOfAdmissionIDSequence"),
    *("ServiceEpisodeID", "ServiceEpisodeDescription", "IssuerOfServiceEpisodeIDSequence"),
    *("PatientSexNeutered", "ReasonForVisit", "ReasonForVisitCodeSequence"),
)

MAX_CHARACTERS = 16_384
"""Of an attribute: longer sequences are not passed on, longer texts are cut. The standard allows 10 240."""

_LONG = frozenset(("LO", "PN"))
"""Names and the like: if they are too long for their field, they are cut rather than dropped."""

_TEXT = frozenset(
    ["AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"]
)
"""Value representations allowed in sequences."""

_ENUMERATED: Mapping[str, tuple[str, ...]] = {
    "PatientSex": ("M", "F", "O"),
    "PatientSexNeutered": ("ALTERED", "UNALTERED"),
    "PatientIdentityRemoved": ("YES", "NO"),
    "QualityControlSubject": ("YES", "NO"),
    "SmokingStatus": ("YES", "NO", "UNKNOWN"),
    "PregnancyStatus": ("1", "2", "3", "4"),
}


# --- from images ----------------------------------------------------------------------------------


def texts(header: Dataset) -> tuple[tuple[str, str], ...]:
    """Keyword and text of a header's attributes; unreadable ones are omitted, as no scan depends on them."""
    found = ((keyword, _text(header, keyword)) for keyword in KEYWORDS)
    return tuple((keyword, value) for keyword, value in found if value)


def _text(header: Dataset, keyword: str) -> str:
    try:
        value = value_of(header, keyword)
        if not value:
            return ""
        if dictionary_VR(keyword) == "SQ":
            alone = Dataset()
            alone.add(header[keyword])
            written = json.dumps(alone.to_json_dict())
            return written if len(written) <= MAX_CHARACTERS else ""
        return text(header, keyword)[:MAX_CHARACTERS]
    except Exception:  # on hostile bytes, parsers may raise any exception
        return ""


# --- to objects -----------------------------------------------------------------------------------


def elements(known: Mapping[str, str]) -> Dataset:
    """A data set of the known attributes; unknown ones, and those of an invalid form, are empty or absent."""
    found = Dataset()
    for keyword in KEYWORDS:
        vr, value = dictionary_VR(keyword), known.get(keyword, "")
        if vr == "SQ":
            element = _sequence(keyword, value)
            if element is not None:
                found.add(element)
            continue
        checked = _checked(keyword, vr, value)
        if checked or keyword in REQUIRED:
            setattr(found, keyword, int(checked[0]) if vr == "US" else checked)
    return found


def _checked(keyword: str, vr: str, value: str) -> list[str] | str:
    """One value, or several where allowed; '' if there is none."""
    parts = [value] if dictionary_VM(keyword) == "1" else value.split("\\")
    found = [one for one in (_fitting(keyword, vr, part) for part in parts) if one]
    return found if len(found) > 1 else "".join(found)


def _fitting(keyword: str, vr: str, value: str) -> str:
    allowed, plain = _ENUMERATED.get(keyword), short_text(value, longest=len(value))
    if allowed is not None:
        return plain if plain in allowed else ""
    shorter = short_text(plain) if vr in _LONG else ""
    return next((one for one in (plain, shorter) if _is_valid(vr, one)), "")


def _is_valid(vr: str, value: str) -> bool:
    try:
        validate_value(vr, value, config.RAISE)
        return vr != "DS" or not value or math.isfinite(float(value))
    except ValueError:
        return False


def _sequence(keyword: str, value: str) -> DataElement | None:
    """The sequence encoded as DICOM JSON, if everything in it has the required form."""
    if not value:
        return None
    try:
        found = Dataset.from_json(value)
        elements = list(found.iterall())
        as_it_should = all(_is_passed_on(element) for element in elements)
        return found[keyword] if as_it_should else None
    except Exception:  # it may consist of hostile bytes
        return None


def _is_passed_on(element: DataElement) -> bool:
    if element.VR == "SQ":
        return not element.tag.is_private
    values = element.value if isinstance(element.value, MultiValue) else [element.value]
    plain = (str(value or "") for value in values)
    return element.VR in _TEXT and not element.tag.is_private and all(_is_valid(element.VR, v) for v in plain)
