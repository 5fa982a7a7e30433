"""Patient attributes of images are copied to derived objects, unless they have an invalid form."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import highdicom
import pydicom
import pytest
from pydicom.dataset import Dataset

from helpers.dicom_series import item, ramp, stack, write
from zoomseg.io.dicom import patient, tags
from zoomseg.io.dicom.read.series_discovery import the_series

GIVEN = {
    "PatientName": "Doe^Jane",
    "PatientID": "P1",
    "IssuerOfPatientID": "HOSPITAL A",
    "PatientBirthDate": "19600102",
    "PatientSex": "F",
    "OtherPatientNames": ["Roe^Jane", "Poe^Jane"],
    "PatientAge": "066Y",
    "PatientSize": "1.68",
    "PatientWeight": "71.50",
    "Allergies": ["latex", "nuts"],
    "PregnancyStatus": 4,
    "PatientIdentityRemoved": "YES",
    "DeidentificationMethod": "none of it is real",
    "ReferringPhysicianName": "House^Gregory",
    "StudyID": "7",
    "StudyDate": "20260101",
    "StudyTime": "101112.5",
    "AccessionNumber": "A1",
    "StudyDescription": "CT abdomen",
    "ProcedureCodeSequence": [
        item(CodeValue="24531-6", CodingSchemeDesignator="LN", CodeMeaning="US Retroperitoneum")
    ],
    "OtherPatientIDsSequence": [
        item(PatientID="Z9", IssuerOfPatientID="HOSPITAL B", TypeOfPatientID="TEXT"),
        item(PatientID="Ä8", TypeOfPatientID="RFID"),
    ],
}


def known(**tags: object) -> dict[str, str]:
    return dict(patient.texts(item(**tags)))


def test_what_the_files_say_comes_back(tmp_path: Path) -> None:
    """Through files, text, and files again."""
    scan = write(tmp_path / "in", stack(ramp(), SpecificCharacterSet="ISO_IR 192", **GIVEN))
    found = patient.elements(dict(the_series(scan).series.patient))
    found.SpecificCharacterSet = "ISO_IR 192"
    found.save_as(tmp_path / "out", implicit_vr=False, little_endian=True)
    read = pydicom.dcmread(tmp_path / "out", force=True)
    assert {e.keyword for e in read} == {*GIVEN, "SpecificCharacterSet"}
    for keyword, value in GIVEN.items():
        assert read[keyword].value == item(**{keyword: value})[keyword].value, keyword
    assert str(read.PatientWeight) == "71.50", "as it is written there"


def test_the_three_modules_are_whole() -> None:
    """Except photos, and the UID of the study, which is checked elsewhere."""
    assert len(set(patient.KEYWORDS)) == len(patient.KEYWORDS)
    assert all(pydicom.datadict.tag_for_keyword(keyword) for keyword in patient.KEYWORDS)
    standard = Path(highdicom.__file__).parent / "_standard" / "module_attribute_map.json"
    modules = json.loads(standard.read_text())
    wanted = {
        attribute["keyword"]
        for module in ("patient", "general-study", "patient-study")
        for attribute in modules[module]
        if not attribute["path"]
    }
    assert wanted - set(patient.KEYWORDS) == {"ReferencedPatientPhotoSequence", "StudyInstanceUID"}


def test_what_is_not_known_is_empty_where_it_must_be_and_absent_elsewhere() -> None:
    found = patient.elements({})
    assert {e.keyword for e in found} == set(patient.REQUIRED)
    assert not any(e.value for e in found)


@pytest.mark.parametrize(
    ("keyword", "value", "kept"),
    [
        ("PatientAge", "66", None),
        ("PatientAge", "066Y", "066Y"),
        ("PatientWeight", "heavy", None),
        ("PatientWeight", "1e999", None),
        ("PatientWeight", "nan", None),
        ("PatientSize", "1.6800000000000000000001", None),
        ("PregnancyStatus", "5", None),
        ("PregnancyStatus", "2", 2),
        ("SmokingStatus", "SOMETIMES", None),
        ("PatientIdentityRemoved", "yes", None),
        ("PatientBirthTime", "2500", None),
        ("IssuerOfPatientID", "A\\B\x00\n", "A B"),
        ("Allergies", "latex\\\\nuts\x07", ["latex", "nuts"]),
        ("AdmissionID", "x" * 70, "x" * 64),
        ("Occupation", "x" * 17, None),
        ("LastMenstrualDate", "20260230x", None),
        ("PatientComments", "y" * 10_241, None),
        ("PatientComments", "y" * 10_240, "y" * 10_240),
    ],
)
def test_only_values_of_the_right_form_are_passed_on(keyword: str, value: str, kept: object) -> None:
    found = patient.elements({keyword: value})
    assert (found[keyword].value if keyword in found else None) == kept
    found.to_json_dict()  # converts, and thereby checks, every element


def _sequence(**tags: object) -> str:
    alone = Dataset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's warning about values of a wrong form
        alone.OtherPatientIDsSequence = [item(**tags)]
        return json.dumps(alone.to_json_dict())


@pytest.mark.filterwarnings("ignore:Invalid value", "ignore:The value length")  # pydicom's: it is refused
@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "{}",
        '{"00101002": {"vr": "SQ", "Value": 7}}',
        '{"00100020": {"vr": "LO", "Value": ["P1"]}}',
        _sequence(PatientID="x" * 65),
        _sequence(PatientAge="old"),
        _sequence(RedPaletteColorLookupTableData=b"\0\1"),
        '{"00101002": {"vr": "SQ", "Value": [{"00091001": {"vr": "LO", "Value": ["private"]}}]}}',
    ],
)
def test_sequences_with_anything_wrong_are_left_out(text: str) -> None:
    assert "OtherPatientIDsSequence" not in patient.elements({"OtherPatientIDsSequence": text})


def test_good_sequences_are_kept_and_endless_ones_not_even_read() -> None:
    good = _sequence(PatientID="x" * 64)
    (found,) = patient.elements({"OtherPatientIDsSequence": good}).OtherPatientIDsSequence
    assert found.PatientID == "x" * 64
    many = [item(PatientID=f"{n:064}") for n in range(200)]
    assert known(OtherPatientIDsSequence=many[:10])
    assert not known(OtherPatientIDsSequence=many)


def test_a_header_that_cannot_be_read_hinders_no_scan(tmp_path: Path) -> None:
    """A number of one byte, and text instead of a number."""
    scan = write(tmp_path / "in", stack(ramp(), PatientWeight="1234.5", PatientAge="066Y", PregnancyStatus=4))
    for file in scan.iterdir():
        data = file.read_bytes()
        for old, new in ((b"1234.5", b"12x4.5"), (b"\xc0\x21US\2\0\4\0", b"\xc0\x21US\1\0\4")):
            assert data.count(old) == 1
            data = data.replace(old, new)
        file.write_bytes(data)
    series = the_series(scan).series
    assert series.grid.shape == (7, 6, 5)
    found = patient.elements(dict(series.patient))
    assert "PatientWeight" not in found
    assert "PregnancyStatus" not in found
    assert found.PatientAge == "066Y"


def test_an_identity_of_several_values_is_the_same_everywhere() -> None:
    found = Dataset()
    found.PatientID = ["A", "B"]
    assert dict(patient.texts(found))["PatientID"] == tags.text(found, "PatientID") == "A\\B"
