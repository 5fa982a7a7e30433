"""Matching of files, and the meaning of their values."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from helpers.label_files import AFFINE, LIVER, SPLEEN, VALUES, organs, save, save_description, save_scan
from zoomseg.core.errors import DatasetError, ScanError
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import open_dataset
from zoomseg.evaluation.case_matching import find_pairs


@pytest.fixture
def folders(tmp_path):
    predictions, reference = tmp_path / "predictions", tmp_path / "reference"
    for case in ("a", "b"):
        save(predictions / f"{case}.nii.gz", organs(LIVER))
        save(reference / f"{case}.nii.gz", organs(LIVER, SPLEEN))
    (predictions / "summary.csv").write_text("case\n")
    (predictions / "run.json").write_text("{}")
    save_description(reference)
    return predictions, reference


def test_files_are_matched_by_case(folders):
    predictions, reference = folders
    save(predictions / "only_predicted.nii.gz", organs(LIVER))
    save(reference / "only_drawn.nii.gz", organs(LIVER))
    pairs = find_pairs(predictions, reference, None, None)
    assert [pair.id for pair in pairs.pairs] == ["a", "b"]
    assert pairs.organs == ("spleen", "liver")
    assert pairs.warnings == ("no reference for: only_predicted", "no prediction for: only_drawn")


def test_long_lists_are_cut_short(folders):
    predictions, reference = folders
    for i in range(8):
        save(reference / f"more_{i}.nii.gz", organs(LIVER))
    (warning,) = find_pairs(predictions, reference, None, None).warnings
    assert warning == "no prediction for: more_0, more_1, more_2, more_3, more_4 and 3 more"


def test_nothing_in_common(folders, tmp_path):
    save(tmp_path / "other" / "x.nii.gz", organs(LIVER))
    with pytest.raises(
        DatasetError, match="none of its 2 label files has the name of one of the 1 references"
    ):
        find_pairs(folders[0], tmp_path / "other", None, None)


@pytest.mark.parametrize("make", [False, True])
def test_no_or_empty_folder(folders, tmp_path, make):
    if make:
        (tmp_path / "nothing").mkdir()
    with pytest.raises(DatasetError, match="no label files" if make else "no such folder"):
        find_pairs(tmp_path / "nothing", folders[1], None, None)


def test_one_case_in_two_formats_is_refused(folders):
    save(folders[0] / "a.nii", organs(LIVER))
    with pytest.raises(DatasetError, match=r"a\.nii(\.gz)? and a\.nii(\.gz)? are both case 'a'"):
        find_pairs(*folders, None, None)


def test_predictions_and_references_that_changed_places_are_refused(folders, tmp_path):
    predictions, reference = folders
    with pytest.raises(DatasetError, match=r"reference was not: the predictions come first"):
        find_pairs(reference, predictions, None, None)
    # Predictions of another program have no run.json: the labels in a folder with images are the references.
    (predictions / "run.json").unlink()
    labels = tmp_path / "set" / "labelsTr"
    labels.parent.mkdir()
    reference.rename(labels)
    (labels.parent / "imagesTr").mkdir()
    for wrong in (labels, labels.parent):
        with pytest.raises(DatasetError, match=r"holds the labels of a data set, and .*predictions does not"):
            find_pairs(wrong, predictions, None, None)
    assert len(find_pairs(predictions, labels, None, None).pairs) == 2


def test_two_models_and_two_readers_can_be_compared(folders):
    predictions, reference = folders
    (reference / "run.json").write_text("{}")
    assert len(find_pairs(reference, predictions, None, None).pairs) == 2


def test_a_file_is_not_scored_against_itself(folders, tmp_path):
    with pytest.raises(DatasetError, match=r"a\.nii\.gz is the reference of its case, too .*2 of 2 cases"):
        find_pairs(folders[1], folders[1], None, None)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "b.nii.gz").symlink_to(folders[1] / "b.nii.gz")
    with pytest.raises(DatasetError, match=r"b\.nii\.gz is the reference of its case, too .*1 of 1 cases"):
        find_pairs(linked, folders[1], None, None)


def test_names_that_link_to_nowhere_are_told(folders):
    (folders[1] / "dataset.json").unlink()
    (folders[1] / "dataset.json").symlink_to("/nowhere/dataset.json")
    with pytest.raises(DatasetError, match=r"dataset\.json: no such file \(a link to"):
        find_pairs(*folders, None, None)


def test_a_link_to_nowhere_is_a_file_of_its_case(folders):
    (folders[0] / "b.nii.gz").unlink()
    (folders[0] / "b.nii.gz").symlink_to("/nowhere/b.nii.gz")
    pairs = find_pairs(*folders, None, None)
    assert [pair.id for pair in pairs.pairs] == ["a", "b"]
    with pytest.raises(ScanError, match=r"b\.nii\.gz: no such file \(a link to /nowhere/b\.nii\.gz\)"):
        pairs.load(pairs.pairs[1])


class TestSchema:
    def test_values_of_either_side_are_matched_by_name(self, folders):
        predictions, reference = folders
        (predictions / "run.json").write_text(json.dumps({"labels": {"liver": 2, "kidney": 1}}))
        save(predictions / "a.nii.gz", np.where(organs(LIVER) == 6, 2, 0).astype(np.uint8))
        pairs = find_pairs(predictions, reference, None, None)
        assert pairs.organs == ("liver",)
        assert "not scored, as the predictions do not include: spleen" in pairs.warnings
        prediction, drawn = pairs.load(pairs.pairs[0])
        liver = pairs.reference_schema.class_of("liver")
        assert np.array_equal(prediction.data == liver, drawn.data == liver)

    def test_labels_that_only_the_prediction_knows_are_background(self, folders):
        predictions, reference = folders
        (predictions / "labels.json").write_text(json.dumps({"liver": 6, "kidney": 1}))
        save(predictions / "a.nii.gz", organs(LIVER, SPLEEN))
        pairs = find_pairs(predictions, reference, None, None)
        prediction, _ = pairs.load(pairs.pairs[0])
        assert set(np.unique(prediction.data).tolist()) == {0, pairs.reference_schema.class_of("liver")}

    def test_other_spellings_and_synonyms_are_matched(self, folders):
        """By the data sets' values and names, TotalSegmentator's against those of BTCV."""
        predictions, reference = folders
        theirs = {"background": 0, "right kidney": 6, "IVC": 1}
        (reference / "dataset.json").write_text(json.dumps({"labels": theirs, "channel_names": {"0": "CT"}}))
        (predictions / "run.json").write_text(
            json.dumps({"labels": {"kidney_right": 1, "inferior_vena_cava": 6, "liver": 2}})
        )
        exchanged = np.array([0, 6, 2, 0, 0, 0, 1], dtype=np.uint8)
        save(predictions / "a.nii.gz", exchanged[organs(LIVER, SPLEEN)])
        pairs = find_pairs(predictions, reference, None, None)
        assert set(pairs.organs) == {"right kidney", "IVC"}
        assert pairs.predicted_schema.value_of == {"right kidney": 1, "IVC": 6, "liver": 2}
        prediction, drawn = pairs.load(pairs.pairs[0])
        assert np.array_equal(prediction.data, drawn.data)
        own_names = [pairs.pairs[0].own_name(organ) for organ in ("right kidney", "IVC", "liver")]
        assert own_names == ["kidney_right", "inferior_vena_cava", "liver"]
        assert pairs.warnings == (
            "taken for the same organ: inferior_vena_cava and IVC, kidney_right and right kidney",
        )

    def test_an_equal_name_comes_before_another_spelling(self, folders):
        predictions, reference = folders
        (predictions / "labels.json").write_text(json.dumps({"Liver": 1, "liver": 6, "spleen": 2}))
        pairs = find_pairs(predictions, reference, None, None)
        assert pairs.organs == ("spleen", "liver")
        assert pairs.predicted_schema.value_of == {"Liver": 1, "liver": 6, "spleen": 2}
        assert pairs.warnings == ()

    def test_several_labels_of_one_meaning_are_not_matched(self, folders):
        predictions, reference = folders
        (predictions / "labels.json").write_text(json.dumps({"Liver": 1, "LIVER": 6, "spleen": 2}))
        pairs = find_pairs(predictions, reference, None, None)
        assert pairs.organs == ("spleen",)
        assert pairs.warnings == ("not scored, as several labels of one side mean the same: liver",)

    def test_no_common_label(self, folders):
        (folders[0] / "labels.json").write_text(json.dumps({"kidney": 1}))
        with pytest.raises(
            DatasetError, match="has labels kidney, the reference has spleen, liver; none is in both"
        ):
            find_pairs(*folders, None, None)

    def test_given_schema_wins(self, folders):
        pairs = find_pairs(*folders, LabelSchema(("big", "small"), (6, 1)), None)
        assert pairs.organs == ("big", "small")

    def test_prediction_schema_serves_both_if_the_reference_has_none(self, folders):
        predictions, reference = folders
        (reference / "dataset.json").unlink()
        (predictions / "labels.json").write_text(json.dumps({"liver": 6, "spleen": 1}))
        assert find_pairs(predictions, reference, None, None).organs == ("spleen", "liver")

    def test_values_of_both_sides_if_nothing_is_said(self, folders):
        predictions, reference = folders
        (reference / "dataset.json").unlink()
        save(predictions / "a.nii.gz", (organs(LIVER) != 0).astype(np.uint8) * 9)
        (reference / "b.nii.gz").write_bytes(b"damaged")
        pairs = find_pairs(predictions, reference, None, None)
        assert (pairs.reference_schema.names, pairs.reference_schema.values) == (
            ("label_1", "label_6", "label_9"),
            (1, 6, 9),
        )


class TestReference:
    def dataset(self, tmp_path, **more):
        root = tmp_path / "set"
        save_description(root, **more)
        for case in ("a", "b"):
            save_scan(root / "imagesTr" / f"{case}_0000.nii.gz")
            save(root / "labelsTr" / f"{case}.nii.gz", organs(LIVER, SPLEEN))
        return root

    def test_data_set_brings_schema_labels_and_scans(self, folders, tmp_path):
        root = self.dataset(tmp_path, cases={"b": {"annotated": ["liver"]}})
        a, b = find_pairs(folders[0], root, None, None).pairs
        assert (a.organs, b.organs) == (("spleen", "liver"), ("liver",))
        assert a.reference == root / "labelsTr" / "a.nii.gz"
        assert a.images == (root / "imagesTr" / "a_0000.nii.gz",)

    def test_label_folder_of_a_data_set(self, folders, tmp_path):
        root = self.dataset(tmp_path, cases={"b": {"annotated": ["liver"]}})
        a, b = find_pairs(folders[0], root / "labelsTr", None, None).pairs
        assert (a.organs, b.organs) == (("spleen", "liver"), ("liver",))
        assert a.images == ()

    def test_scans_from_elsewhere(self, folders, tmp_path):
        root = self.dataset(tmp_path)
        expected = (root / "imagesTr" / "a_0000.nii.gz",)
        for images in (root, root / "imagesTr", open_dataset(root)):
            assert find_pairs(*folders, None, images).pairs[0].images == expected


class TestLoad:
    def test_other_orientation_of_the_same_grid_is_the_same(self, folders):
        predictions, reference = folders
        flipped = AFFINE @ np.array([[-1, 0, 0, 15], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
        save(predictions / "a.nii.gz", organs(LIVER, SPLEEN)[::-1], flipped)
        pairs = find_pairs(predictions, reference, None, None)
        prediction, drawn = pairs.load(pairs.pairs[0])
        assert np.array_equal(prediction.data, drawn.data)
        assert np.diag(drawn.grid.affine)[:3].tolist() == [1.5, 1.5, 3.0]

    def test_other_grid_is_refused(self, folders):
        predictions, reference = folders
        affine = AFFINE.copy()
        affine[0, 3] = 1.5
        save(predictions / "a.nii.gz", organs(LIVER), affine)
        pairs = find_pairs(predictions, reference, None, None)
        with pytest.raises(ScanError, match=r"a\.nii\.gz: is up to 1\.5 mm off the grid of a\.nii\.gz"):
            pairs.load(pairs.pairs[0])

    def test_scan_is_oriented_like_the_labels(self, folders, tmp_path):
        flipped = AFFINE @ np.diag([-1.0, -1.0, 1.0, 1.0])
        flipped[:2, 3] = [15 * 1.5, 13 * 1.5]
        save_scan(tmp_path / "images" / "a.nii.gz")
        voxels = np.asarray(nib.load(tmp_path / "images" / "a.nii.gz").dataobj)
        save(tmp_path / "images" / "a.nii.gz", voxels[::-1, ::-1].copy(), flipped)
        pairs = find_pairs(*folders, None, tmp_path / "images")
        _, drawn = pairs.load(pairs.pairs[0])
        image = pairs.load_image(pairs.pairs[0], drawn)
        assert np.array_equal(image.data[0], voxels)
        assert pairs.load_image(pairs.pairs[1], drawn) is None


def test_a_prediction_of_another_run_is_read_by_the_labels_of_that_run(folders):
    """Case b has the spleen's value for the liver, and no other organ was requested."""
    predictions, reference = folders
    other = {"background": 0, "liver": VALUES["spleen"]}
    run = {
        "labels": {"background": 0, **VALUES},
        "cases": {"b": {"status": "done", "run": {"labels": other}}},
    }
    (predictions / "run.json").write_text(json.dumps(run))
    save(predictions / "a.nii.gz", organs(LIVER, SPLEEN))
    save(predictions / "b.nii.gz", organs(None, LIVER))
    pairs = find_pairs(predictions, reference, None, None)
    assert [pair.organs for pair in pairs.pairs] == [("spleen", "liver"), ("liver",)]
    for pair in pairs.pairs:
        prediction, drawn = pairs.load(pair)
        for organ in pair.organs:
            c = drawn.schema.class_of(organ)
            np.testing.assert_array_equal(prediction.data == c, drawn.data == c)
    run["cases"]["b"]["run"]["labels"] = {"liver": "three"}
    (predictions / "run.json").write_text(json.dumps(run))
    with pytest.raises(DatasetError, match=r"run\.json"):
        find_pairs(predictions, reference, None, None)
