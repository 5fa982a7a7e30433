"""Data sets of three layouts open as one type; the content of dataset.json is checked."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from helpers.dicom_series import ramp, stack, write
from zoomseg.core.errors import DatasetError, LabelError, ScanError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import Dataset, dataset_description, folds, labelling_beside, open_dataset

SHAPE = (6, 7, 8)
NNUNET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "spleen": 4, "liver": 2}}


def save(path: Path, array: np.ndarray, affine: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine, dtype=array.dtype), path)


def image(seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def labels() -> np.ndarray:
    values = np.zeros(SHAPE, dtype=np.uint8)
    values[1:3, 2, 3], values[4, 5, 6] = 2, 4
    return values


def nnunet(root: Path, description: dict[str, Any] = NNUNET, cases: tuple[str, ...] = ("a", "b")) -> Path:
    for seed, case in enumerate(cases):
        for channel in range(len(description["channel_names"] or ("CT",))):
            save(root / "imagesTr" / f"{case}_{channel:04d}.nii.gz", image(seed + 10 * channel))
        save(root / "labelsTr" / f"{case}.nii.gz", labels())
    (root / "dataset.json").write_text(json.dumps(description))
    return root


def test_nnunet_raw(tmp_path: Path) -> None:
    dataset = open_dataset(
        nnunet(tmp_path, NNUNET | {"name": "Two organs", "groups": {"both": ["liver", "spleen"]}})
    )
    assert dataset.name == "Two organs"
    assert (dataset.schema.names, dataset.schema.values) == (("liver", "spleen"), (2, 4))
    assert dataset.schema.select("both") == ("liver", "spleen")
    assert dataset.ids == ("a", "b")
    case = dataset.load(dataset.cases[1])
    assert case.id == "b"
    assert np.array_equal(case.image.data[0], image(1))
    assert case.labels is not None
    assert np.bincount(case.labels.data.flatten().astype(np.int64)).tolist() == [6 * 7 * 8 - 3, 2, 1]
    assert case.annotated is None


@pytest.mark.parametrize("cases", [("Case", "case"), ("b\u00e4r", "ba\u0308r")])
def test_cases_that_some_disks_treat_as_one_name_are_refused(tmp_path: Path, cases: tuple[str, str]) -> None:
    root = nnunet(tmp_path, cases=cases)
    with pytest.raises(DatasetError, match="as one name; rename one of them") as refusal:
        open_dataset(root)
    assert all(f"'{case}'" in str(refusal.value) for case in cases)


def test_several_channels_and_partial_annotation(tmp_path: Path) -> None:
    description = NNUNET | {
        "channel_names": {"0": "T1", "1": "T2"},
        "groups": {"upper": ["liver"]},
        "cases": {"a": {}, "b": {"annotated": ["upper"], "scanner": "any"}},
    }
    dataset = open_dataset(nnunet(tmp_path, description))
    case = dataset.load(dataset.cases[1])
    assert np.array_equal(case.image.data[1], image(11))
    assert case.annotated == frozenset({"liver"})
    assert dataset.cases[0].annotated is None


@pytest.mark.parametrize(
    ("names", "ct"),
    [
        (["CT"], True),
        (["low-dose ct_portal"], True),
        (["MR"], False),
        (["CT", "PET"], False),
        (["CT", "ct_late"], True),
        (["PET/CT"], False),
        (["T1_to_CT"], False),
        (["PET registered to CT"], False),
        (["CBCT"], False),
        (["ACTH"], False),
    ],
)
def test_modality(tmp_path: Path, names: list[str], ct: bool) -> None:
    description = NNUNET | {"channel_names": {str(i): n for i, n in enumerate(names)}}
    assert open_dataset(nnunet(tmp_path, description, cases=("a",))).is_ct is ct


def test_missing_files_are_named_not_forgotten(tmp_path: Path) -> None:
    root = nnunet(tmp_path, NNUNET | {"channel_names": {"0": "T1", "1": "T2"}}, cases=("a", "b", "c"))
    (root / "imagesTr" / "a_0000.nii.gz").unlink()
    (root / "labelsTr" / "b.nii.gz").unlink()
    for channel in range(2):
        (root / "imagesTr" / f"c_000{channel}.nii.gz").unlink()
    dataset = open_dataset(root)
    assert dataset.ids == ("a", "b", "c")
    assert [p.name for p in dataset.cases[0].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert dataset.cases[1].labels is None
    assert dataset.labelled_ids == ("a", "c")
    assert dataset.load(dataset.cases[1]).labels is None
    with pytest.raises(ScanError, match=r"a_0000\.nii\.gz: no such file"):
        dataset.load(dataset.cases[0])


def test_geometry_and_values_are_checked_on_load(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    shifted = np.eye(4)
    shifted[2, 3] = 3
    save(root / "labelsTr" / "a.nii.gz", labels(), shifted)
    save(root / "labelsTr" / "b.nii.gz", labels() + 1)
    dataset = open_dataset(root)
    with pytest.raises(ScanError, match=r"a\.nii\.gz: is up to 3 mm off the grid of a_0000"):
        dataset.load(dataset.cases[0])
    with pytest.raises(LabelError, match=r"b\.nii\.gz: label values \[1, 3, 5\] are not in the schema"):
        dataset.load(dataset.cases[1])


def test_labels_within_tolerance_get_the_image_grid(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    nudged = np.eye(4)
    nudged[0, 3] = 0.004
    save(root / "labelsTr" / "a.nii.gz", labels(), nudged)
    dataset = open_dataset(root)
    case = dataset.load(dataset.cases[0])
    assert case.labels is not None
    assert case.labels.grid == case.image.grid


# --- Decathlon ------------------------------------------------------------------------------------


def decathlon(root: Path, channels: int = 1, **changes: Any) -> Path:
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    save(root / "imagesTr" / "x_1.nii.gz", image(0, shape))
    save(root / "labelsTr" / "x_1.nii.gz", labels())
    description = {
        "modality": {str(c): f"MR{c}" for c in range(channels)},
        "labels": {"0": "background", "2": "front", "4": "back"},
        "training": [{"image": "./imagesTr/x_1.nii.gz", "label": "./labelsTr/x_1.nii.gz"}],
        "test": ["./imagesTs/x_2.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(description | changes))
    return root


@pytest.mark.parametrize("channels", [1, 3])
def test_decathlon_pairs(tmp_path: Path, channels: int) -> None:
    dataset = open_dataset(decathlon(tmp_path, channels))
    assert (dataset.schema.names, dataset.schema.values) == (("front", "back"), (2, 4))
    case = dataset.load(dataset.cases[0])
    assert case.id == "x_1"
    stored = image(0, SHAPE if channels == 1 else (*SHAPE, channels)).reshape(*SHAPE, channels)
    assert np.array_equal(case.image.data, np.moveaxis(stored, -1, 0))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_listed_first_channels_stand_for_all(tmp_path: Path, suffix: str) -> None:
    for case in "ab":
        for channel in range(2):
            save(tmp_path / "imagesTr" / f"{case}_{channel:04d}{suffix}", image(channel))
        save(tmp_path / "labelsTr" / f"of_{case}{suffix}", labels())
    (tmp_path / "imagesTr" / f"b_0000{suffix}").unlink()
    pairs = [{"image": f"imagesTr/{c}_0000{suffix}", "label": f"labelsTr/of_{c}{suffix}"} for c in "ab"]
    description = NNUNET | {"channel_names": {"0": "T1", "1": "T2"}, "training": pairs}
    (tmp_path / "dataset.json").write_text(json.dumps(description))
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("a", "b")
    assert [p.name for p in dataset.cases[1].images] == [f"b_0000{suffix}", f"b_0001{suffix}"]
    case = dataset.load(dataset.cases[0])
    assert np.array_equal(case.image.data, np.stack([image(0), image(1)]))
    assert case.labels is not None


def test_a_listed_file_of_all_channels_may_be_numbered(tmp_path: Path) -> None:
    decathlon(tmp_path, 3, training=[{"image": "imagesTr/x_0000.nii.gz", "label": "labelsTr/x_1.nii.gz"}])
    (tmp_path / "imagesTr" / "x_1.nii.gz").rename(tmp_path / "imagesTr" / "x_0000.nii.gz")
    dataset = open_dataset(tmp_path)
    assert (dataset.ids, len(dataset.cases[0].images)) == (("x",), 1)
    assert dataset.load(dataset.cases[0]).image.channels == 3


def test_wrong_number_of_channels(tmp_path: Path) -> None:
    dataset = open_dataset(decathlon(tmp_path, 3, modality={"0": "T1", "1": "T2"}))
    with pytest.raises(ScanError, match=r"3 channels, but the data set has 2 \(T1, T2\)"):
        dataset.load(dataset.cases[0])


def test_old_nnunet_training_lists_name_cases_without_channels(tmp_path: Path) -> None:
    pairs = [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"]
    dataset = open_dataset(nnunet(tmp_path, NNUNET | {"training": pairs}))
    assert [p.name for p in dataset.cases[0].images] == ["a_0000.nii.gz"]


@pytest.mark.parametrize("path", ["/etc/passwd", "../x_1.nii.gz", "imagesTr/../../x.nii.gz", "", 3, "a\0b"])
def test_paths_may_not_leave_the_folder(tmp_path: Path, path: object) -> None:
    first = {"image": "imagesTr/x_1.nii.gz", "label": "labelsTr/x_1.nii.gz"}
    for bad in ({"image": path, "label": first["label"]}, {"image": "imagesTr/x_2.nii.gz", "label": path}):
        with pytest.raises(DatasetError, match=r"leaves the data set folder|needs paths"):
            open_dataset(decathlon(tmp_path, training=[first, bad]))


def test_bad_training_lists(tmp_path: Path) -> None:
    first = {"image": "imagesTr/x_1.nii.gz", "label": "labelsTr/x_1.nii.gz"}
    with pytest.raises(DatasetError, match="x_1 is listed twice"):
        open_dataset(decathlon(tmp_path, training=[first, first]))
    with pytest.raises(DatasetError, match="pairs, got"):
        open_dataset(decathlon(tmp_path, training=[first, "imagesTr/x_2.nii.gz"]))


@pytest.mark.parametrize("missing", ["x_1", "x_2"])
def test_decathlon_whose_first_or_last_image_is_missing_is_still_decathlon(
    tmp_path: Path, missing: str
) -> None:
    pairs = [{"image": f"imagesTr/{c}.nii.gz", "label": f"labelsTr/{c}.nii.gz"} for c in ("x_1", "x_2")]
    decathlon(tmp_path, training=pairs)
    save(tmp_path / "imagesTr" / "x_2.nii.gz", image())
    (tmp_path / "imagesTr" / f"{missing}.nii.gz").unlink()
    dataset = open_dataset(tmp_path)
    assert [[p.name for p in case.images] for case in dataset.cases] == [["x_1.nii.gz"], ["x_2.nii.gz"]]
    with pytest.raises(ScanError, match=rf"{missing}\.nii\.gz: no such file"):
        dataset.load(next(case for case in dataset.cases if case.id == missing))


def test_decathlon_without_any_image_names_those_listed(tmp_path: Path) -> None:
    (decathlon(tmp_path) / "imagesTr" / "x_1.nii.gz").unlink()
    dataset = open_dataset(tmp_path)
    with pytest.raises(ScanError, match=r"imagesTr/x_1\.nii\.gz: no such file"):
        dataset.load(dataset.cases[0])


# --- plain folders --------------------------------------------------------------------------------


def plain(root: Path) -> Path:
    for case in ("p", "q"):
        save(root / "images" / f"{case}.nii.gz", image())
        save(root / "labels" / f"{case}.nii.gz", labels())
    return root


def test_plain_folders_name_labels_by_value(tmp_path: Path) -> None:
    dataset = open_dataset(plain(tmp_path))
    assert (dataset.schema.names, dataset.schema.values) == (("label_2", "label_4"), (2, 4))
    assert dataset.channel_names == ("channel_0",)
    assert dataset.name == tmp_path.name
    case = dataset.load(dataset.cases[0])
    assert case.labels is not None
    assert int((case.labels.data == 2).sum()) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("labels.json", {"liver": 2, "spleen": 4}),
        ("labels.json", {"labels": {"2": "liver", "4": "spleen"}}),
        ("dataset.json", {"labels": {"liver": 2, "spleen": 4}, "channel_names": {"0": "CT"}}),
    ],
)
def test_plain_folders_with_names(tmp_path: Path, file: str, content: object) -> None:
    (plain(tmp_path) / file).write_text(json.dumps(content))
    dataset = open_dataset(tmp_path)
    assert dataset.schema.names == ("liver", "spleen")
    assert dataset.is_ct is (file == "dataset.json")


def test_plain_folders_with_channel_files(tmp_path: Path) -> None:
    for channel in range(2):
        save(tmp_path / "images" / f"p_000{channel}.nii.gz", image(channel))
    save(tmp_path / "labels" / "p.nii.gz", labels())
    dataset = open_dataset(tmp_path)
    assert dataset.channel_names == ("channel_0", "channel_1")
    assert np.array_equal(dataset.load(dataset.cases[0]).image.data[1], image(1))


def test_plain_cases_may_be_numbered_from_0000(tmp_path: Path) -> None:
    """As files called like channels are cases where each has labels of its own name."""
    for n in range(3):
        save(tmp_path / "images" / f"img_{n:04d}.nii.gz", image(n))
        save(tmp_path / "labels" / f"img_{n:04d}.nii.gz", labels())
    dataset = open_dataset(tmp_path)
    assert dataset.ids == ("img_0000", "img_0001", "img_0002")
    assert np.array_equal(dataset.load(dataset.cases[2]).image.data[0], image(2))


def test_plain_labels_of_some_files_that_were_read_as_channels(tmp_path: Path) -> None:
    for n in range(3):
        save(tmp_path / "images" / f"img_{n:04d}.nii.gz", image(n))
    save(tmp_path / "labels" / "img_0001.nii.gz", labels())
    message = r"img_0001\.nii\.gz: img_0000\.nii\.gz to img_0002\.nii\.gz were read as 3 channels of one scan"
    with pytest.raises(DatasetError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize("layout", ["labelsTr", "labels"])
def test_two_label_files_of_one_case_are_refused(tmp_path: Path, layout: str) -> None:
    root = nnunet(tmp_path) if layout == "labelsTr" else plain(tmp_path)
    case = "a" if layout == "labelsTr" else "p"
    save(root / layout / f"{case}.nii", labels())
    with pytest.raises(
        DatasetError, match=rf"{layout}: {case}\.nii and {case}\.nii\.gz are both case '{case}'"
    ):
        open_dataset(root)


def test_plain_images_in_two_formats_are_refused(tmp_path: Path) -> None:
    save(plain(tmp_path) / "images" / "p.nii", image())
    with pytest.raises(DatasetError, match=r"p\.nii and p\.nii\.gz are both case 'p'"):
        open_dataset(tmp_path)


def test_links_to_nowhere_are_cases(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    for file in (root / "imagesTr" / "b_0000.nii.gz", root / "labelsTr" / "b.nii.gz"):
        file.unlink()
        file.symlink_to(f"/nowhere/{file.name}")
    dataset = open_dataset(root)
    assert dataset.ids == ("a", "b")
    assert dataset.cases[1].labels == root / "labelsTr" / "b.nii.gz"
    with pytest.raises(ScanError, match=r"b_0000\.nii\.gz: no such file \(a link to /nowhere/b_0000"):
        dataset.load(dataset.cases[1])


@pytest.mark.parametrize("folder", ["labelsTr", "imagesTr"])
def test_a_folder_that_links_to_nowhere_is_named(tmp_path: Path, folder: str) -> None:
    root = nnunet(tmp_path)
    (root / folder).rename(root / "elsewhere")
    (root / folder).symlink_to("/nowhere/else")
    with pytest.raises(DatasetError, match=rf"{folder}: no such file \(a link to /nowhere/else\)"):
        open_dataset(root)


@pytest.mark.parametrize("patients", [1, 2])
def test_plain_images_may_not_be_dicom(tmp_path: Path, patients: int) -> None:
    for number in range(patients):
        tags = {"StudyInstanceUID": f"1.2.{number}", "SeriesInstanceUID": f"1.2.{number}.4"}
        write(tmp_path / "images" / f"p{number}", stack(ramp() + np.uint16(1000 * number), **tags))
        save(tmp_path / "labels" / f"p{number}.nii.gz", labels())
    with pytest.raises(
        DatasetError, match=r"images: DICOM series; a data set needs images in NIfTI, .*dcm2niix$"
    ):
        open_dataset(tmp_path)


@pytest.mark.parametrize("file", ["labels.json", "dataset.json"])
def test_plain_folders_name_the_file_of_a_wrong_entry(tmp_path: Path, file: str) -> None:
    content = {"labels": {"liver": 2, "spleen": 4}, "cases": {"p": {"annotated": ["splen"]}}}
    (plain(tmp_path) / file).write_text(json.dumps(content))
    with pytest.raises(DatasetError, match=rf"/{file}: case p: unknown label 'splen'"):
        open_dataset(tmp_path)


def test_entries_of_cases_are_read_from_either_file(tmp_path: Path) -> None:
    (plain(tmp_path) / "labels.json").write_text(json.dumps({"liver": 2, "spleen": 4}))
    entries = {"cases": {"p": {"annotated": ["liver"]}}}
    (tmp_path / "dataset.json").write_text(json.dumps(entries))
    assert [case.annotated for case in open_dataset(tmp_path).cases] == [{"liver"}, None]
    (tmp_path / "dataset.json").write_text(json.dumps({"cases": {"P": {"annotated": ["liver"]}}}))
    with pytest.raises(DatasetError, match=r"dataset\.json: case P under 'cases' is not in the data set"):
        open_dataset(tmp_path)


def test_plain_label_without_image(tmp_path: Path) -> None:
    save(plain(tmp_path) / "labels" / "stray.nii.gz", labels())
    with pytest.raises(DatasetError, match=r"stray\.nii\.gz: no image of this name"):
        open_dataset(tmp_path)


def test_plain_labels_that_are_no_labels(tmp_path: Path) -> None:
    save(tmp_path / "images" / "p.nii.gz", image())
    with pytest.raises(DatasetError, match="no label values found"):
        open_dataset(tmp_path)
    save(tmp_path / "labels" / "p.nii.gz", np.arange(336, dtype=np.int16).reshape(SHAPE))
    with pytest.raises(DatasetError, match="335 label values from 1 to 335"):
        open_dataset(tmp_path)


# --- what cannot be opened ------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "given"), [("images", "labels"), ("imagesTr", "imagesTr")])
def test_a_folder_inside_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images: str, given: str
) -> None:
    for name in {images, given}:
        (tmp_path / "mydata" / name).mkdir(parents=True)
    with pytest.raises(DatasetError, match=rf"not a data set; did you mean {tmp_path / 'mydata'}\?$"):
        open_dataset(tmp_path / "mydata" / given)
    monkeypatch.chdir(tmp_path / "mydata" / given)
    with pytest.raises(DatasetError, match=rf"did you mean {tmp_path / 'mydata'}\?$"):
        open_dataset(Path())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError, match=r"did you mean mydata\?$"):
        open_dataset(Path("mydata") / given)


def test_folders_that_are_no_data_set(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such data set folder"):
        open_dataset(tmp_path / "none")
    with pytest.raises(DatasetError, match="not a data set; expected imagesTr"):
        open_dataset(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    with pytest.raises(DatasetError, match=r"dataset\.json is missing"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(json.dumps(NNUNET))
    with pytest.raises(DatasetError, match="no cases"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    "path",
    [
        "x" * 5000,
        "x" * 5000 + ".nii.gz",
        "/".join(["d" * 200] * 40),
        "é" * 200 + ".nii.gz",
        "a\0b",
        "a\nb",
        "\ud800.nii.gz",
        ".",
        "imagesTr/../",
    ],
    ids=lambda path: ascii(path)[:20],
)
@pytest.mark.parametrize("key", ["image", "label"])
def test_paths_that_no_file_can_have_are_one_short_line(tmp_path: Path, key: str, path: str) -> None:
    pair = {"image": "imagesTr/x_1.nii.gz", "label": "labelsTr/x_1.nii.gz"} | {key: path}
    with pytest.raises(DatasetError) as error:
        open_dataset(decathlon(tmp_path, training=[pair]))
    assert str(tmp_path / "dataset.json") in str(error.value)
    assert len(str(error.value)) < 350
    assert str(error.value).isprintable()


@pytest.mark.parametrize("name", ["x" * 5000, "a\nb", "a\0b", "\x1b[31mred", "\ud800", "a\u2028b", " "])
@pytest.mark.parametrize(
    "changes",
    [
        lambda name: {"labels": {"background": 0, name: 1}},
        lambda name: {"labels": {"0": "background", "1": name}},
        lambda name: {"channel_names": {"0": name}},
        lambda name: {"groups": {name: ["liver"]}},
    ],
    ids=["label", "Decathlon label", "channel", "group"],
)
def test_names_that_are_no_line_of_text_are_refused(tmp_path: Path, changes: Any, name: str) -> None:
    line = r"a lone surrogate" if name == "\ud800" else r"cannot be the name of a (label|channel|group)"
    with pytest.raises(DatasetError, match=line) as error:
        open_dataset(nnunet(tmp_path, NNUNET | changes(name), cases=("a",)))
    assert len(str(error.value)) < 350
    assert str(error.value).isprintable()


def test_names_with_slashes_and_brackets_are_names(tmp_path: Path) -> None:
    labels = {"background": 0, "A1/2/3ll_L": 2, "../[b]x": 4}
    assert open_dataset(nnunet(tmp_path, NNUNET | {"labels": labels})).schema.names == (
        "A1/2/3ll_L",
        "../[b]x",
    )


def test_a_data_set_s_own_name_is_one_short_line(tmp_path: Path) -> None:
    dataset = open_dataset(nnunet(tmp_path, NNUNET | {"name": "two\nlines" + "x" * 5000}))
    assert dataset.name.startswith("two linesxxx")
    assert len(dataset.name) == 100


def test_a_key_that_comes_twice_must_say_the_same(tmp_path: Path) -> None:
    text = '{"channel_names": {"0": "CT"}, "labels": {"liver": 2, "spleen": 4, "liver": %d}}'
    (nnunet(tmp_path) / "dataset.json").write_text(text % 1)
    with pytest.raises(DatasetError, match="'liver' appears twice, with different values"):
        open_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(text % 2)
    assert open_dataset(tmp_path).schema.values == (2, 4)


def test_a_closed_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    root = nnunet(tmp_path)
    monkeypatch.setattr(Path, "iterdir", closed)
    with pytest.raises(DatasetError, match=r"imagesTr: cannot be listed \(Permission denied\)"):
        open_dataset(root)


def test_a_description_that_links_to_itself_is_named(tmp_path: Path) -> None:
    description = nnunet(tmp_path) / "dataset.json"
    description.unlink()
    description.symlink_to(description)
    with pytest.raises(DatasetError, match=r"dataset\.json: cannot be read \(Too many levels"):
        open_dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"xxx: no such data set folder"):
        open_dataset(tmp_path / ("x" * 5000))


@pytest.mark.parametrize("text", ["{", "[]", "\0", "[" * 100_000, '"x"'])
def test_broken_json(tmp_path: Path, text: str) -> None:
    (nnunet(tmp_path) / "dataset.json").write_text(text)
    with pytest.raises(DatasetError, match=r"dataset\.json: (not valid JSON|must hold)"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": {"whole": [1, 2]}}, "region-based labels"),
        ({"labels": {"liver": 1.5}}, "whole number"),
        ({"labels": {"liver": True}}, "whole number"),
        ({"labels": {"liver": None}}, "whole number"),
        ({"labels": {"liver": -1}}, "must be distinct and in 1.."),
        ({"labels": {"liver": 1, "spleen": 1}}, "distinct"),
        ({"labels": {"background": 0}}, "at least one"),
        ({"labels": {"liver": 1, "ignore": 2}}, "'ignore' label is not supported"),
        ({"labels": ["liver"]}, "'labels' is missing"),
        ({"channel_names": None}, "'channel_names' is missing"),
        ({"channel_names": {"1": "CT"}}, "must map 0..0"),
        ({"channel_names": {"0": 7}}, "must map 0..0"),
        ({"groups": {"g": ["nothing"]}}, "group 'g' must list labels among liver, spleen"),
        ({"groups": {"liver": ["spleen"]}}, "has the name of a label"),
        ({"cases": {"a": {"annotated": ["nothing"]}}}, "case a: unknown label 'nothing'"),
        ({"cases": {"a": {"annotated": "liver"}}}, "list of label names"),
        ({"cases": {"a": ["liver"]}}, "must be an object"),
        ({"cases": []}, "'cases' must map"),
        ({"cases": {"a_0000": {"annotated": ["liver"]}}}, "case a_0000 under 'cases' is not in the data set"),
        ({"cases": {"a": {"anotated": ["liver"]}}}, "case a lists 'anotated', but not 'annotated'"),
        (
            {"labels": {"background": 0, "spleen": 0, "liver": 1}},
            "'background' and 'spleen' have the value 0",
        ),
        (
            {"labels": {"0": "background", "spleen": 0, "1": "liver"}},
            "'background' and 'spleen' have the val",
        ),
        ({"labels": {f"o{n}": n for n in range(1, 9999)}}, "9998 labels; at most 254"),
        ({"labels": {"liver": [[[[[[[[[1]]]]]]]]]}}, "region-based labels"),
    ],
)
def test_descriptions_that_make_no_sense(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        open_dataset(nnunet(tmp_path, NNUNET | changes))


def test_more_channels_than_any_scan_has(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    names = {str(n): "CT" for n in range(9999)}
    (root / "dataset.json").write_text(json.dumps(NNUNET | {"channel_names": names}))
    with pytest.raises(DatasetError, match="9999 channels; at most 256"):
        open_dataset(root)


def test_image_names_that_make_no_sense(tmp_path: Path) -> None:
    root = nnunet(tmp_path)
    save(root / "imagesTr" / "a_0003.nii.gz", image())
    with pytest.raises(DatasetError, match=r"channel 0003, but dataset\.json names 1 channel"):
        open_dataset(root)
    (root / "imagesTr" / "a_0003.nii.gz").rename(root / "imagesTr" / "plain.nii.gz")
    with pytest.raises(DatasetError, match=r"plain\.nii\.gz: images need a channel number"):
        open_dataset(root)


# --- splits ---------------------------------------------------------------------------------------


def test_folds_are_balanced_disjoint_and_reproducible() -> None:
    ids = [f"c{i}" for i in range(23)]
    parts = folds(ids, 5, seed=3)
    assert Counter(len(p) for p in parts) == {5: 3, 4: 2}
    assert sorted(sum(parts, ())) == sorted(ids)
    assert folds(ids[::-1], 5, seed=3) == parts
    assert folds(ids, 5, seed=4) != parts


def test_impossible_folds() -> None:
    for k in (1, 4, 0, -1):
        with pytest.raises(
            DatasetError, match=f"2 to 3 folds, got {k}: choose a number in between, or label"
        ):
            folds(["a", "b", "c"], k)
    for ids in ([], ["a"]):
        with pytest.raises(
            DatasetError, match=rf"{len(ids)} labelled case\(s\) .* train without folds, or label"
        ):
            folds(ids, 5)
    with pytest.raises(DatasetError, match="distinct"):
        folds(["a", "a"], 2)


def test_subset(tmp_path: Path) -> None:
    dataset: Dataset = open_dataset(nnunet(tmp_path, cases=("a", "b", "c", "d")))
    assert dataset.subset(["d", "a"]).ids == ("a", "d")
    with pytest.raises(DatasetError, match="no case z"):
        dataset.subset(["a", "z"])


def test_the_meaning_of_label_files_is_looked_for_beside_and_above_them(tmp_path: Path) -> None:
    """Above, only a folder that is called like one of a data set; ``labels.json`` comes first."""
    for name in ("labels", "other"):
        (tmp_path / name).mkdir()
    assert labelling_beside(tmp_path / "labels") is None
    for file, organ in (("run.json", "aorta"), ("dataset.json", "spleen"), ("labels.json", "liver")):
        (tmp_path / file).write_text(json.dumps({"labels": {organ: 1}}))
        found = labelling_beside(tmp_path / "labels")
        assert found is not None
        assert found[0].names == (organ,)
    assert labelling_beside(tmp_path / "other") is None
    (tmp_path / "labels" / "run.json").write_text(json.dumps({"labels": {"kidney": 1}}))
    found = labelling_beside(tmp_path / "labels")
    assert found is not None
    assert found[0].names == ("kidney",)


def test_a_description_that_is_written_is_read_back(tmp_path: Path) -> None:
    schema = LabelSchema(("liver", "left kidney", "right kidney"), (6, 2, 9), {"kidneys": ("left kidney",)})
    annotated = {"b": frozenset({"left kidney", "liver"})}
    written = dataset_description("Some", ("T1", "T2"), schema, 2, annotated)
    assert written["numTraining"] == 2
    assert written["cases"] == {"b": {"annotated": ["liver", "left kidney"]}}
    dataset = open_dataset(nnunet(tmp_path, written))
    assert (dataset.name, dataset.channel_names) == ("Some", ("T1", "T2"))
    assert dataset.schema.value_of == schema.value_of
    assert dataset.schema.groups == {"kidneys": ("left kidney",)}
    assert [case.annotated for case in dataset.cases] == [None, {"left kidney", "liver"}]
