"""Label maps for viewers: headers and colour tables, read back."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813

from zoomseg.anatomy.colours import organ_colour
from zoomseg.core.errors import OutputError
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap
from zoomseg.io.scans import read_labels
from zoomseg.io.seg_nrrd import write_colour_tables, write_segmentation

SCHEMA = LabelSchema(("right kidney", "portal vein", "liver"), (2, 300, 6))
TURN = np.array([[0.0, -2.0, 0.0, 11.0], [1.5, 0.0, 0.0, -20.0], [0.0, 0.0, 3.0, 7.0], [0, 0, 0, 1]])


def labels() -> LabelMap:
    classes = np.zeros((5, 6, 7), dtype=np.uint8)
    classes[1:3, 2:6, 0:4] = 1
    classes[4, 0, 6] = 3
    return LabelMap(classes, Grid((5, 6, 7), TURN), SCHEMA)


def header(path: Path) -> dict[str, str]:
    """Fields and keys of an NRRD file as stored."""
    text = path.read_bytes().split(b"\n\n", 1)[0].decode()
    fields = (re.split(r":=|: ", line, maxsplit=1) for line in text.splitlines() if line[0] != "#")
    return {field[0]: field[1] for field in fields if len(field) == 2}


def test_names_colours_values_and_extents_are_in_the_header(tmp_path: Path) -> None:
    write_segmentation(tmp_path / "a.seg.nrrd", labels())
    said = header(tmp_path / "a.seg.nrrd")
    assert said["space"] == "left-posterior-superior"
    assert said["Segmentation_MasterRepresentation"] == "Binary labelmap"
    assert said["Segmentation_ContainedRepresentationNames"] == "Binary labelmap|"
    assert said["Segmentation_ReferenceImageExtentOffset"] == "0 0 0"
    segments = [
        {k.split("_")[1]: v for k, v in said.items() if k.startswith(f"Segment{n}_")} for n in range(4)
    ]
    assert [s.get("Name") for s in segments] == ["right kidney", "portal vein", "liver", None]
    assert [s["LabelValue"] for s in segments[:3]] == ["2", "300", "6"]
    assert [s["Extent"] for s in segments[:3]] == ["1 2 2 5 0 3", "0 -1 0 -1 0 -1", "4 4 0 0 6 6"]
    assert {s["Layer"] for s in segments[:3]} == {"0"}
    for segment, name in zip(segments, SCHEMA.names, strict=False):
        colour = [255 * float(part) for part in segment["Color"].split()]
        assert colour == pytest.approx(organ_colour(name), abs=1e-3)


def test_voxels_and_their_place_come_back(tmp_path: Path) -> None:
    path = tmp_path / "a.seg.nrrd"
    write_segmentation(path, labels())
    image = sitk.ReadImage(str(path))
    assert image.GetPixel(4, 0, 6) == 6
    lps = np.array(image.TransformIndexToPhysicalPoint((4, 0, 6)))
    assert lps * [-1, -1, 1] == pytest.approx(labels().grid.world((4, 0, 6)))
    again = read_labels(path, SCHEMA)
    assert np.array_equal(again.data, labels().data)
    assert again.grid.same_as(labels().grid)


def test_only_chosen_organs_are_segments(tmp_path: Path) -> None:
    write_segmentation(tmp_path / "a.seg.nrrd", labels(), ["liver"])
    said = header(tmp_path / "a.seg.nrrd")
    assert said["Segment0_Name"] == "liver"
    assert "Segment1_Name" not in said


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"must be called <name>\.seg\.nrrd"):
        write_segmentation(tmp_path / "a.nrrd", labels())


def test_a_name_with_line_breaks_stays_in_its_line(tmp_path: Path) -> None:
    schema = LabelSchema(('odd\nSegment0_Color:=1 1 1 "x"',), (1,))
    odd = LabelMap(labels().data.clip(max=1), labels().grid, schema)
    write_segmentation(tmp_path / "a.seg.nrrd", odd)
    write_colour_tables(tmp_path, schema)
    assert header(tmp_path / "a.seg.nrrd")["Segment0_Name"] == "odd Segment0_Color:=1 1 1 'x'"
    assert len((tmp_path / "labels.ctbl").read_text().splitlines()) == 3
    assert len((tmp_path / "labels.itksnap.txt").read_text().splitlines()) == 3


def test_colour_tables_name_every_value(tmp_path: Path) -> None:
    write_colour_tables(tmp_path, SCHEMA, ["liver", "right kidney"])
    kidney, liver = (" ".join(str(c) for c in organ_colour(o)) for o in ("right kidney", "liver"))
    assert (tmp_path / "labels.ctbl").read_text().splitlines()[1:] == [
        "0 background 0 0 0 0",
        f"2 right_kidney {kidney} 255",
        f"6 liver {liver} 255",
    ]
    assert (tmp_path / "labels.itksnap.txt").read_text().splitlines()[1:] == [
        '0 0 0 0 0 0 0 "Clear Label"',
        f'2 {kidney} 1 1 1 "right kidney"',
        f'6 {liver} 1 1 1 "liver"',
    ]
