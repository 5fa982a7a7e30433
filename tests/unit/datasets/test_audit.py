"""Every kind of error, planted in a small data set, is found, named, and repaired only where that is safe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from zoomseg.core.errors import DatasetError, MemoryLimitError, OutputError
from zoomseg.datasets.audit import Finding, Report, annotated_cases, audit, repair
from zoomseg.datasets.layouts import open_dataset

SHAPE = (24, 10, 8)
SPACING = (2.0, 2.0, 3.0)
LABELS = {"background": 0, "left kidney": 1, "right_kidney": 2, "liver": 5}
CASES = ("a", "b", "c")


def affine() -> np.ndarray:
    """First axis from the patient's right to left, as most CT files are stored."""
    matrix = np.diag([-SPACING[0], SPACING[1], SPACING[2], 1])
    matrix[:3, 3] = (23, -10, 100)
    return matrix


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=SHAPE).astype(np.float32)


def labels() -> np.ndarray:
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[18:22, 3:6, 2:5] = 1  # high index = patient's left, as the first axis points there
    values[2:6, 3:6, 2:5] = 2
    values[8:14, 3:6, 2:5] = 5
    return values


def save(path: Path, array: np.ndarray, matrix: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine() if matrix is None else matrix, dtype=array.dtype), path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "set"
    for seed, case in enumerate(CASES):
        save(folder / "imagesTr" / f"{case}_0000.nii.gz", image(seed))
        save(folder / "labelsTr" / f"{case}.nii.gz", labels())
    describe(folder)
    return folder


def describe(folder: Path, **changes: Any) -> None:
    text = {"channel_names": {"0": "CT"}, "labels": LABELS, "licence": "CC0"}
    (folder / "dataset.json").write_text(json.dumps(text | changes))


def check(root: Path) -> Report:
    return audit(open_dataset(root))


def only(report: Report) -> Finding:
    assert len(report.findings) == 1, report.findings
    return report.findings[0]


def test_a_clean_set_has_no_findings_and_every_case_is_told(root: Path) -> None:
    seen: list[str] = []
    assert audit(open_dataset(root), seen.append).findings == ()
    assert seen == ["a", "b", "c"]


# --- one planted fault each -----------------------------------------------------------------------


def plant_truncated(root: Path) -> None:
    path = root / "imagesTr" / "b_0000.nii.gz"
    path.write_bytes(path.read_bytes()[:1000])


def plant_no_labels(root: Path) -> None:
    (root / "labelsTr" / "b.nii.gz").unlink()


def plant_no_image(root: Path) -> None:
    (root / "imagesTr" / "b_0000.nii.gz").unlink()


def plant_bad_labels(root: Path) -> None:
    save(root / "labelsTr" / "b.nii.gz", labels() / np.float32(2))


def plant_labels_beside_integers(root: Path) -> None:
    save(root / "labelsTr" / "b.nii.gz", labels() * np.float32(0.9999))


def plant_links_to_nowhere(root: Path) -> None:
    plant_no_image(root)
    (root / "imagesTr" / "b_0000.nii.gz").symlink_to("/nowhere/b.nii.gz")


def plant_labels_that_link_to_nowhere(root: Path) -> None:
    plant_no_labels(root)
    (root / "labelsTr" / "b.nii.gz").symlink_to("/nowhere/b.nii.gz")


def plant_image_that_links_to_itself(root: Path) -> None:
    plant_no_image(root)
    (root / "imagesTr" / "b_0000.nii.gz").symlink_to("b_0000.nii.gz")


def plant_nan(root: Path) -> None:
    voxels = image(1)
    voxels[0, 0, :3] = np.nan, np.inf, -np.inf
    save(root / "imagesTr" / "b_0000.nii.gz", voxels)


def plant_all_nan(root: Path) -> None:
    save(root / "imagesTr" / "b_0000.nii.gz", np.full(SHAPE, np.nan, dtype=np.float32))


def plant_constant(root: Path) -> None:
    save(root / "imagesTr" / "b_0000.nii.gz", np.full(SHAPE, 7, dtype=np.int16))


def plant_label_map(root: Path) -> None:
    save(root / "imagesTr" / "b_0000.nii.gz", labels())


def plant_small_shift(root: Path) -> None:
    matrix = affine()
    matrix[1, 3] += 0.9
    save(root / "labelsTr" / "b.nii.gz", labels(), matrix)


def plant_large_shift(root: Path) -> None:
    matrix = affine()
    matrix[1, 3] += 1.1
    save(root / "labelsTr" / "b.nii.gz", labels(), matrix)


def plant_other_shape(root: Path) -> None:
    save(root / "labelsTr" / "b.nii.gz", labels()[:-1])


def plant_unknown_value(root: Path) -> None:
    values = labels()
    values[0, 0, 0] = 9
    save(root / "labelsTr" / "b.nii.gz", values)


def plant_copy(root: Path) -> None:
    save(root / "imagesTr" / "b_0000.nii.gz", image(0))


def plant_copy_with_other_labels(root: Path) -> None:
    plant_copy(root)
    save(root / "labelsTr" / "b.nii.gz", np.roll(labels(), 1, axis=1))


FAULTS: list[tuple[Callable[[Path], None], str, bool, str]] = [
    (plant_truncated, "unreadable", True, "imagesTr/b_0000.nii.gz: truncated; "),
    (plant_no_labels, "missing_labels", True, "no label file"),
    (plant_no_image, "missing_file", True, "imagesTr/b_0000.nii.gz: no such file"),
    (plant_bad_labels, "unreadable", True, "labelsTr/b.nii.gz: label values are not whole numbers"),
    (plant_links_to_nowhere, "missing_file", True, "no such file (a link to /nowhere/b.nii.gz)"),
    (plant_labels_that_link_to_nowhere, "missing_labels", True, "labelsTr/b.nii.gz: no such file (a link to"),
    (plant_image_that_links_to_itself, "missing_file", True, "cannot be read (Too many levels of symbolic"),
    (
        plant_labels_beside_integers,
        "not_integers",
        True,
        "label values differ from whole numbers by up to 0.0005; they are rounded",
    ),
    (plant_nan, "not_finite", True, "imagesTr/b_0000.nii.gz: 3 of 1920 voxels are NaN"),
    (plant_all_nan, "constant", True, "all voxels are NaN"),
    (plant_constant, "constant", True, "every voxel is 7"),
    (plant_label_map, "label_map_as_image", True, "imagesTr/b_0000.nii.gz: looks like a label map"),
    (plant_small_shift, "geometry", True, "labelsTr/b.nii.gz: voxels lie up to 0.9 mm from the image's"),
    (plant_large_shift, "geometry", False, "up to 1.1 mm from the image's (tolerance 0.01 voxels)"),
    (plant_other_shape, "geometry", False, "shape (23, 10, 8), the image has (24, 10, 8)"),
    (plant_unknown_value, "unknown_values", False, "[9] not in the schema; allowed: [0, 1, 2, 5]"),
    (plant_copy, "duplicate", True, "same image as a, same labels"),
    (plant_copy_with_other_labels, "duplicate", False, "same image as a, but other labels"),
]


@pytest.mark.parametrize(
    ("plant", "kind", "fixable", "message"), FAULTS, ids=lambda v: getattr(v, "__name__", "")
)
def test_each_fault_is_found_and_named(
    root: Path, plant: Callable[[Path], None], kind: str, fixable: bool, message: str
) -> None:
    plant(root)
    finding = only(check(root))
    severity = "warning" if kind == "not_integers" else "error"  # read as what they must have been
    assert (finding.case, finding.severity, finding.kind, finding.fixable) == ("b", severity, kind, fixable)
    assert message in finding.message


def test_empty_labels_and_labels_that_occur_nowhere_are_warnings(root: Path) -> None:
    for case in CASES:
        save(root / "labelsTr" / f"{case}.nii.gz", np.where(labels() == 5, 0, labels()).astype(np.uint8))
    save(root / "labelsTr" / "c.nii.gz", np.zeros(SHAPE, dtype=np.uint8))
    report = check(root)
    assert report.errors == ()
    assert [(f.case, f.kind) for f in report.warnings] == [("", "absent_label"), ("c", "empty_labels")]
    assert "'liver'" in report.findings[0].message


def test_missing_channel_and_channels_on_other_grids(root: Path) -> None:
    describe(root, channel_names={"0": "T1", "1": "T2"})
    for seed, case in enumerate(CASES):
        save(root / "imagesTr" / f"{case}_0001.nii.gz", image(10 + seed))
    assert check(root).findings == ()
    (root / "imagesTr" / "a_0001.nii.gz").unlink()
    matrix = affine()
    matrix[2, 3] += 0.5
    save(root / "imagesTr" / "c_0001.nii.gz", image(12), matrix)
    report = check(root)
    assert [(f.case, f.kind, f.fixable) for f in report.findings] == [
        ("a", "missing_file", True),
        ("c", "geometry", True),
    ]
    assert "imagesTr/a_0001.nii.gz" in report.findings[0].message


def test_wrong_number_of_channels_in_a_decathlon_file(tmp_path: Path) -> None:
    save(tmp_path / "imagesTr" / "a.nii.gz", np.stack([image(0), image(1), image(2)], axis=-1))
    save(tmp_path / "labelsTr" / "a.nii.gz", labels())
    pair = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
    describe(tmp_path, modality={"0": "T1", "1": "T2"}, channel_names={"0": "T1", "1": "T2"}, training=[pair])
    finding = only(check(tmp_path))
    assert (finding.kind, finding.message) == ("wrong_channels", "imagesTr/a.nii.gz: 3 channels, expected 2")


# --- left and right -------------------------------------------------------------------------------


def swapped() -> np.ndarray:
    return np.array([0, 2, 1, 0, 0, 5], dtype=np.uint8)[labels()]


def test_swapped_labels_in_one_case(root: Path) -> None:
    save(root / "labelsTr" / "b.nii.gz", swapped())
    finding = only(check(root))
    assert (finding.case, finding.severity, finding.kind, finding.fixable) == (
        "b",
        "warning",
        "left_right",
        False,
    )
    # Centres 19.5 and 3.5 on an axis of 2 mm.
    assert "'left kidney' lies 32 mm to the right of 'right_kidney'" in finding.message


def test_mirrored_header_in_one_case(root: Path) -> None:
    mirrored = affine() @ np.diag([-1, 1, 1, 1])
    save(root / "imagesTr" / "c_0000.nii.gz", image(2), mirrored)
    save(root / "labelsTr" / "c.nii.gz", labels(), mirrored)
    assert only(check(root)).case == "c"


def test_a_set_mirrored_as_a_whole_is_one_finding_and_the_odd_case_another(root: Path) -> None:
    for case in CASES[:2]:
        save(root / "labelsTr" / f"{case}.nii.gz", swapped())
    report = check(root)
    assert [(f.case, f.kind) for f in report.findings] == [("", "left_right"), ("c", "left_right")]
    assert "in 2 of 3 organ pairs" in report.findings[0].message
    assert "32 mm to the left of" in report.findings[1].message


def test_paired_organs_in_the_midline_say_nothing(root: Path) -> None:
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[10:12], values[12:14] = 2, 1
    values[:3], values[9, 0, 0] = 5, 5
    save(
        root / "labelsTr" / "a.nii.gz",
        np.where(values == 1, 2, np.where(values == 2, 1, values)).astype(np.uint8),
    )
    assert check(root).findings == ()


# --- repair ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plant", "kind", "fixable", "message"), FAULTS, ids=lambda v: getattr(v, "__name__", "")
)
def test_repair_resolves_what_is_fixable_and_only_that(
    root: Path, tmp_path: Path, plant: Callable[[Path], None], kind: str, fixable: bool, message: str
) -> None:
    plant(root)
    before = {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    dataset = open_dataset(root)
    report = audit(dataset)
    result = repair(dataset, report, tmp_path / "out")
    assert before == {p: p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}
    again = check(tmp_path / "out")
    assert again.findings == (() if fixable else report.findings)
    assert result.remaining == again.findings
    mends = fixable and kind in ("not_finite", "geometry", "not_integers")
    assert result.repaired == (("b",) if mends else ())
    assert result.left_out == (("b",) if fixable and not mends else ())
    assert sorted(result.kept + result.repaired + result.left_out) == ["a", "b", "c"]


def test_voxels_that_are_no_numbers_become_the_minimum_and_the_rest_stays(root: Path, tmp_path: Path) -> None:
    plant_nan(root)
    dataset = open_dataset(root)
    repair(dataset, audit(dataset), tmp_path / "out")
    mended = nib.load(tmp_path / "out" / "imagesTr" / "b_0000.nii.gz")
    expected = image(1)
    expected[0, 0, :3] = np.nan
    expected[0, 0, :3] = np.nanmin(expected)
    assert np.array_equal(np.asarray(mended.dataobj), expected)
    assert np.array_equal(mended.affine, affine())


def test_labels_beside_integers_are_stored_as_integers(root: Path, tmp_path: Path) -> None:
    plant_labels_beside_integers(root)
    dataset = open_dataset(root)
    repair(dataset, audit(dataset), tmp_path / "out")
    mended = nib.load(tmp_path / "out" / "labelsTr" / "b.nii.gz")
    assert mended.get_data_dtype().kind in "iu"
    assert np.array_equal(np.asarray(mended.dataobj), labels())


def test_labels_are_snapped_to_the_image_and_other_files_copied_byte_for_byte(
    root: Path, tmp_path: Path
) -> None:
    plant_small_shift(root)
    dataset = open_dataset(root)
    repair(dataset, audit(dataset), tmp_path / "out")
    mended = nib.load(tmp_path / "out" / "labelsTr" / "b.nii.gz")
    assert np.array_equal(mended.affine, affine())
    assert np.array_equal(np.asarray(mended.dataobj), labels())
    for name in ("imagesTr/a_0000.nii.gz", "imagesTr/b_0000.nii.gz", "labelsTr/a.nii.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (root / name).read_bytes()


LARGE = 2**24 + 1
"""Not a number of single precision."""


@pytest.mark.parametrize("plant", [plant_small_shift, plant_labels_beside_integers, plant_nan])
def test_channels_that_need_no_change_are_copied_byte_for_byte(
    root: Path, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    describe(root, channel_names={"0": "T1", "1": "T2"})
    for case in CASES:
        counts = np.arange(np.prod(SHAPE), dtype=np.int32).reshape(SHAPE)
        save(root / "imagesTr" / f"{case}_0001.nii.gz", counts + LARGE)
    plant(root)
    dataset = open_dataset(root)
    report = audit(dataset)
    assert repair(dataset, report, tmp_path / "out").repaired == ("b",)
    files = sorted(path.relative_to(root) for path in root.rglob("*.nii.gz"))
    changed = [str(f) for f in files if (tmp_path / "out" / f).read_bytes() != (root / f).read_bytes()]
    assert changed == ["imagesTr/b_0000.nii.gz" if plant is plant_nan else "labelsTr/b.nii.gz"]


def test_only_a_channel_that_lies_elsewhere_is_snapped(root: Path, tmp_path: Path) -> None:
    describe(root, channel_names={"0": "T1", "1": "T2"})
    matrix = affine()
    matrix[2, 3] += 0.5
    for case in CASES:
        save(root / "imagesTr" / f"{case}_0001.nii.gz", image(7), matrix if case == "b" else None)
    dataset = open_dataset(root)
    repair(dataset, audit(dataset), tmp_path / "out")
    snapped = nib.load(tmp_path / "out" / "imagesTr" / "b_0001.nii.gz")
    assert np.array_equal(snapped.affine, affine())
    assert np.array_equal(np.asarray(snapped.dataobj), image(7))
    for name in ("imagesTr/b_0000.nii.gz", "labelsTr/b.nii.gz"):
        assert (tmp_path / "out" / name).read_bytes() == (root / name).read_bytes()


def test_description_is_carried_over(root: Path, tmp_path: Path) -> None:
    describe(
        root,
        name="Kidneys",
        groups={"kidneys": ["left kidney", "right_kidney"]},
        cases={"a": {"annotated": ["kidneys"]}, "b": {"annotated": ["liver"]}},
    )
    plant_truncated(root)
    dataset = open_dataset(root)
    repair(dataset, audit(dataset), tmp_path / "out")
    again = open_dataset(tmp_path / "out")
    assert (again.name, again.channel_names, again.schema) == ("Kidneys", ("CT",), dataset.schema)
    assert again.ids == ("a", "c")
    assert again.cases[0].annotated == frozenset({"left kidney", "right_kidney"})
    written = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert written["licence"] == "CC0"
    assert written["numTraining"] == 2


def test_how_many_cases_annotate_a_label_is_counted(root: Path) -> None:
    describe(root, cases={"a": {"annotated": ["left kidney"]}, "b": {"annotated": ["left kidney", "liver"]}})
    counts = annotated_cases(open_dataset(root))
    assert counts == {name: {"left kidney": 3, "liver": 2}.get(name, 1) for name in counts}
    (root / "labelsTr" / "b.nii.gz").unlink()
    assert annotated_cases(open_dataset(root))["liver"] == 1


def test_voxels_of_a_label_that_is_not_annotated_are_named(root: Path) -> None:
    describe(root, cases={"b": {"annotated": ["liver"]}})
    finding = only(check(root))
    assert (finding.severity, finding.kind, finding.fixable) == ("warning", "drawn_unannotated", False)
    assert "labelsTr/b.nii.gz: has voxels of left kidney, right_kidney, not listed" in finding.message


def test_a_file_that_does_not_fit_in_memory_is_named_and_never_left_out(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: object, **named: object) -> None:
        raise MemoryLimitError("it takes about 9 GB of memory, 1 GB are free", needed=9)

    for reads in ("read_voxels", "read_rounded_labels"):
        with monkeypatch.context() as patch:
            patch.setattr(f"zoomseg.datasets.audit.{reads}", full)
            report = audit(open_dataset(root))
        found = [f for f in report.findings if f.kind == "too_large"]
        assert len(found) == len(open_dataset(root).cases)
        assert not any(f.leaves_out for f in found)


def test_headers_that_leave_a_doubt_are_told_of(root: Path) -> None:
    file = next((root / "imagesTr").iterdir())
    scan = nib.load(file)
    scan.set_sform(None, 0)
    scan.set_qform(None, 0)
    nib.save(scan, file)
    (found,) = [f for f in audit(open_dataset(root)).findings if f.kind == "header"]
    assert found.severity == "warning"
    assert found.message.startswith(f"imagesTr/{file.name}: ")


def test_a_label_that_no_case_annotates_cannot_be_learned(root: Path) -> None:
    describe(root, cases={case: {"annotated": ["left kidney", "right_kidney"]} for case in CASES})
    (error,) = check(root).errors
    assert (error.case, error.kind) == ("", "never_annotated")
    assert "label 'liver' is annotated in no case" in error.message
    unlabelled = root / "imagesTr" / "z_0000.nii.gz"
    unlabelled.write_bytes((root / "imagesTr" / f"{CASES[0]}_0000.nii.gz").read_bytes())
    assert "never_annotated" in [error.kind for error in check(root).errors]


def test_what_the_data_set_leaves_unsaid_is_a_warning_of_all_cases(tmp_path: Path) -> None:
    ct = np.where(labels() > 0, 50, -1000).astype(np.int16)
    ct[0, 0, 0] = 900
    save(tmp_path / "images" / "a.nii.gz", ct + np.arange(10, dtype=np.int16)[:, None])
    save(tmp_path / "labels" / "a.nii.gz", labels())
    found = check(tmp_path).findings
    assert [(f.case, f.severity, f.kind, f.fixable) for f in found] == [
        ("", "warning", "channel_names", False),
        ("", "warning", "label_names", False),
    ]
    assert '{"channel_names": {"0": "CT"}}' in found[0].message
    assert '{"labels": {"background": 0, "NAME OF 1": 1, "NAME OF 2": 2, "NAME OF 5": 5}}' in found[1].message


def test_names_that_may_be_sides_are_a_warning(root: Path) -> None:
    describe(root, labels={"RK": 2, "LK": 1, "liver": 5})
    finding = only(check(root))
    assert (finding.case, finding.severity, finding.kind) == ("", "warning", "side_names")


def test_a_case_of_more_files_than_named_channels(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / "images" / f"img_{n:04d}.nii.gz", image(n))
    save(tmp_path / "labels" / "img.nii.gz", labels())
    describe(tmp_path)
    finding = only(check(tmp_path))
    assert (finding.case, finding.kind) == ("img", "wrong_channels")
    assert finding.message == (
        "3 image files, but 1 channel(s) are named; img_0000.nii.gz to img_0002.nii.gz were read as 3 "
        "channels of one scan, 'img'"
    )


def test_plain_folders_become_nnunet_raw(tmp_path: Path) -> None:
    four = np.stack([image(0), image(1)], axis=-1)
    save(tmp_path / "set" / "imagesTr" / "a.nii", four)
    save(tmp_path / "set" / "labelsTr" / "a.nii", labels())
    pair = {"image": "imagesTr/a.nii", "label": "labelsTr/a.nii"}
    describe(tmp_path / "set", channel_names={"0": "T1", "1": "T2"}, training=[pair])
    dataset = open_dataset(tmp_path / "set")
    repair(dataset, audit(dataset), tmp_path / "out")
    again = open_dataset(tmp_path / "out")
    case = again.load(again.cases[0])
    assert np.array_equal(case.image.data, np.moveaxis(four, -1, 0))
    assert case.labels is not None
    assert np.array_equal(again.schema.decode(case.labels.data), labels())


def test_repair_refuses_a_folder_in_use_and_a_set_without_usable_cases(root: Path, tmp_path: Path) -> None:
    dataset = open_dataset(root)
    report = audit(dataset)
    with pytest.raises(OutputError, match="not empty"):
        repair(dataset, report, root)
    for case in CASES:
        (root / "labelsTr" / f"{case}.nii.gz").unlink()
    dataset = open_dataset(root)
    with pytest.raises(DatasetError, match="no case can be repaired"):
        repair(dataset, audit(dataset), tmp_path / "out")
