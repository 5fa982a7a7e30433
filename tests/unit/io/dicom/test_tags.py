"""Values of elements: unchanged, or refused in a line that names file and element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset

from zoomseg.core.errors import ScanError
from zoomseg.io.dicom import tags
from zoomseg.io.dicom.read.archive import Source

SOURCE = Source(Path("a.zip"), "b.dcm")


def header(**values: Any) -> Dataset:
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def test_texts_are_one_line() -> None:
    assert tags.text(header(SeriesDescription="  upper\r\nabdomen "), "SeriesDescription") == "upper abdomen"
    assert tags.text(header(), "SeriesDescription") == ""
    assert tags.text(header(PatientID=["A ", " B"]), "PatientID") == "A\\B"


def test_numbers_have_bounds() -> None:
    assert tags.number(SOURCE, header(Rows=512), "Rows", 1, 512) == 512
    for given in (header(Rows=513), header()):
        with pytest.raises(ScanError, match=r"a\.zip: 'b\.dcm': Rows is (513|None); a number from 1 to 512"):
            tags.number(SOURCE, given, "Rows", 1, 512)


def test_rescale_is_whole_or_not_there() -> None:
    assert tags.rescale(SOURCE, header()) is None
    assert tags.rescale(SOURCE, header(RescaleSlope=0.5, RescaleIntercept=-3)) == (0.5, -3.0)
    for there, missing in (("RescaleSlope", "RescaleIntercept"), ("RescaleIntercept", "RescaleSlope")):
        with pytest.raises(ScanError, match=f"{missing} is missing; what its values mean is not known"):
            tags.rescale(SOURCE, header(**{there: 1}))


def test_directions_are_made_unit_vectors() -> None:
    row, column = tags.orientation(SOURCE, header(ImageOrientationPatient=[1.005, 0, 0, 0, 0, -0.995]))
    assert (row, column) == ((1, 0, 0), (0, 0, -1))


def test_spacing_is_that_of_columns_then_of_rows() -> None:
    assert tags.spacing(SOURCE, header(PixelSpacing=[0.5, 0.75])) == (0.75, 0.5)
