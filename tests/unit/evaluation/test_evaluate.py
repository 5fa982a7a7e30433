"""Evaluation through files: the output, and cases that cannot be scored."""

from __future__ import annotations

import csv
import html
import json
import math
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from helpers.label_files import AFFINE, LIVER, SPLEEN, VALUES, box, organs, save, save_description, save_scan
from helpers.pictures import undrawn
from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.errors import DatasetError, GeometryError, OutputError, ScanError, ZoomSegError
from zoomseg.evaluation import evaluate as evaluation
from zoomseg.evaluation.case_matching import Pairs, find_pairs
from zoomseg.evaluation.evaluate import evaluate, write_all
from zoomseg.evaluation.saved import read_scores
from zoomseg.evaluation.tolerances import FLARE22_TOLERANCES, Tolerances
from zoomseg.recipe.load import dump

LARGER = box((2, 2, 2), (8, 8, 8))
VOXEL_ML = 1.5 * 1.5 * 3 / 1000


@pytest.fixture(autouse=True)
def pictures():
    """Undoing this patch draws them."""
    with undrawn() as patch:
        yield patch


@pytest.fixture
def folders(tmp_path):
    """Case a is correct except for half a liver too much; case b misses the spleen; neither map of c has a
    spleen."""
    predictions, reference = tmp_path / "predictions", tmp_path / "set"
    save_description(reference)
    for case, predicted, drawn in (
        ("a", organs(LARGER, SPLEEN), organs(LIVER, SPLEEN)),
        ("b", organs(LIVER), organs(LIVER, SPLEEN)),
        ("c", organs(LIVER), organs(LIVER)),
    ):
        save(predictions / f"{case}.nii.gz", predicted)
        save(reference / "labelsTr" / f"{case}.nii.gz", drawn)
        save_scan(reference / "imagesTr" / f"{case}_0000.nii.gz")
    return predictions, reference


def rows(path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["case"], row["organ"]): row for row in csv.DictReader(file)}


def test_metrics(folders, tmp_path, pictures):
    pictures.undo()  # one evaluation is complete
    evaluate(*folders, tmp_path / "out")
    found = rows(tmp_path / "out" / "metrics.csv")
    assert len(found) == 6
    liver, missed, neither = found["a", "liver"], found["b", "spleen"], found["c", "spleen"]
    assert float(liver["dice"]) == pytest.approx(2 * 144 / (144 + 216), rel=1e-5)
    assert float(liver["hd95_mm"]) == 6.0
    assert float(liver["volume_ml"]) == pytest.approx(216 * VOXEL_ML, rel=1e-5)
    assert float(liver["reference_ml"]) == pytest.approx(144 * VOXEL_ML, rel=1e-5)
    unknown = [""] * 5  # no stage was stored
    told = ["b", "spleen", "0", "0", "inf", "inf", "0", missed["reference_ml"], *unknown]
    assert list(missed.values()) == told
    assert list(neither.values()) == ["c", "spleen", "", "", "", "", "0", "0", *unknown]
    assert list(liver) == [
        *("case", "organ", "dice", "nsd", "hd95_mm", "assd_mm", "volume_ml", "reference_ml"),
        *("region_recall", "lost_coarse", "lost_region", "lost_boundary", "lost_elsewhere"),
    ]


def test_how_ambiguous_headers_are_read_is_told(folders, tmp_path):
    for case in ("a", "c"):
        for file in (folders[0] / f"{case}.nii.gz", folders[1] / "labelsTr" / f"{case}.nii.gz"):
            image = nib.load(file)
            image.header["sform_code"] = image.header["qform_code"] = 0
            nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), file)
    warnings = [text for text in evaluate(*folders, tmp_path / "out").warnings if "no orientation" in text]
    assert len(warnings) == 1
    assert warnings[0].endswith("(case a, c)")
    assert warnings[0] in html.unescape((tmp_path / "out" / "report.html").read_text())


def test_summary_and_report(folders, tmp_path):
    evaluation = evaluate(*folders, tmp_path / "out", tolerance_mm=2.0)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["mean"]["dice"] == pytest.approx(((0.8 + 1 + 1) / 3 + 0.5) / 2)
    assert summary["organs"]["spleen"] | {"dice": 0.5, "cases": 2, "missed": 1} == summary["organs"]["spleen"]
    assert (summary["tolerance_mm"], summary["rule"]) == (2.0, "2 mm")
    assert evaluation.as_json() == summary
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.index("<h3>b</h3>") < page.index("<h4>spleen</h4>") < page.index("<h3>a</h3>")  # worst first
    assert "<h4>liver</h4>" in page[page.index("<h3>a</h3>") :]
    assert str(folders[0]) in page


def test_only_what_was_drawn_is_scored(folders, tmp_path):
    save_description(folders[1], cases={"b": {"annotated": ["liver"]}})
    evaluation = evaluate(*folders, tmp_path / "out")
    assert ("b", "spleen") not in rows(tmp_path / "out" / "metrics.csv")
    assert evaluation.mean["dice"] == pytest.approx(((0.8 + 1 + 1) / 3 + 1) / 2)


def test_damaged_cases_are_named_and_the_rest_is_scored(folders, tmp_path):
    (folders[0] / "a.nii.gz").write_bytes(b"\x1f\x8b damaged")
    affine = AFFINE.copy()
    affine[2, 3] = 30
    save(folders[0] / "b.nii.gz", organs(LIVER), affine)
    evaluation = evaluate(*folders, tmp_path / "out")
    assert [case.id for case in evaluation.cases] == ["c"]
    a, b = evaluation.failures
    assert (a.case, b.case) == ("a", "b")
    assert "damaged, truncated or not an image" in a.reason
    assert "30 mm off the grid" in b.reason
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["failed"].keys() == {"a", "b"}


def test_unknown_values_fail_their_case_alone(folders, tmp_path):
    save(folders[0] / "a.nii.gz", np.full_like(organs(LIVER), 9))
    (failure,) = evaluate(*folders, tmp_path / "out").failures
    assert failure.case == "a"
    assert "label values [9] are not in the schema" in failure.reason


def test_no_case_can_be_scored(folders, tmp_path):
    for case in "abc":
        (folders[0] / f"{case}.nii.gz").write_bytes(b"damaged")
    with pytest.raises(ScanError, match=r"none of 3 cases could be scored; .*a\.nii\.gz: damaged"):
        evaluate(*folders, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_mistake_of_ours_fails_its_case_alone(folders, tmp_path, monkeypatch):
    def mistaken(self, pair):
        if pair.id == "a":
            raise KeyError("anything")
        return load(self, pair)

    load = Pairs.load
    monkeypatch.setattr(Pairs, "load", mistaken)
    evaluation = evaluate(*folders, tmp_path / "out")
    (failure,) = evaluation.failures
    assert failure.case == "a"
    assert "unexpected KeyError" in failure.reason
    assert [case.id for case in evaluation.cases] == ["b", "c"]


def test_scan_that_cannot_be_read_is_only_missing_from_the_picture(folders, tmp_path):
    (folders[1] / "imagesTr" / "b_0000.nii.gz").write_bytes(b"damaged")
    evaluation = evaluate(*folders, tmp_path / "out")
    assert evaluation.failures == ()
    assert "Shown without the scan: " in (tmp_path / "out" / "report.html").read_text()


def test_the_scans_are_found_by_the_account_of_the_predictions(folders, tmp_path):
    """The reference is a folder of labels alone, as in the README."""
    predictions, reference = folders
    account = {
        "labels": {"background": 0, **VALUES},
        "cases": {"a": {"scan": ["../set/imagesTr/a_0000.nii.gz"]}},
    }
    labels = tmp_path / "labels alone"
    shutil.copytree(reference / "labelsTr", labels)
    shutil.copy(reference / "dataset.json", labels)
    pair_of = {pair.id: pair for pair in find_pairs(predictions, labels, None, None).pairs}
    assert pair_of["a"].images == ()
    (predictions / "run.json").write_text(json.dumps(account))
    pair_of = {pair.id: pair for pair in find_pairs(predictions, labels, None, None).pairs}
    assert [len(pair_of[case].images) for case in "abc"] == [1, 0, 0]
    evaluate(predictions, labels, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert [page.count("; window "), page.count("Shown without the scan")] == [1, 0]


def test_the_largest_distance_is_drawn_though_its_organ_is_not_the_worst(tmp_path):
    """The liver ends where the spleen was missed."""
    predictions, reference = tmp_path / "predictions", tmp_path / "set"
    save_description(reference)
    save(predictions / "a.nii.gz", organs(LARGER))
    save(reference / "labelsTr" / "a.nii.gz", organs(LIVER, SPLEEN))
    found = evaluate(predictions, reference, tmp_path / "out")
    assert found.cases[0].worst.organ == "spleen"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<h4>liver</h4>" in page


def test_progress_counts_every_case(folders, tmp_path):
    calls: list[tuple[str, int, int]] = []
    evaluate(*folders, tmp_path / "out", on_progress=lambda *call: calls.append(call))
    assert [(done, total) for _, done, total in calls] == [(1, 3), (2, 3), (3, 3)]
    assert {case for case, _, _ in calls} == {"a", "b", "c"}


def test_processes_score_as_threads_do(folders, tmp_path):
    save(folders[0] / "b.nii.gz", organs(LIVER) * 77)  # an unknown value
    seen = {}
    for out, workers in ((tmp_path / "threads", None), (tmp_path / "processes", 2)):
        calls = seen.setdefault(out.name, [])
        evaluate(*folders, out, workers=workers, on_progress=lambda *call, calls=calls: calls.append(call))
    for name in ("metrics.csv", "summary.json"):
        there = (tmp_path / "processes" / name).read_bytes()
        assert there == (tmp_path / "threads" / name).read_bytes()
    assert b"77" in there
    for calls in seen.values():
        assert [(done, total) for _, done, total in calls] == [(1, 3), (2, 3), (3, 3)]
        assert {case for case, _, _ in calls} == {"a", "b", "c"}


def test_a_process_that_dies_ends_the_evaluation_in_one_line(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "_leave_signals", os.abort)
    with pytest.raises(ZoomSegError, match="a process that scores was killed"):
        evaluate(*folders, tmp_path / "out", workers=1)
    assert not list((tmp_path / "out").iterdir())


def test_an_interrupted_evaluation_stops_and_writes_nothing(folders, tmp_path):
    def interrupt(case: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(*folders, tmp_path / "out", on_progress=interrupt)
    assert list((tmp_path / "out").iterdir()) == []


def test_unwritable_place_is_found_before_the_work(folders, tmp_path):
    (tmp_path / "out").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        evaluate(*folders, tmp_path / "out", on_progress=lambda *_: pytest.fail("scored in vain"))


@pytest.mark.parametrize("tolerance_mm", [-1.0, math.nan, math.inf])
def test_impossible_tolerance(folders, tmp_path, tolerance_mm):
    with pytest.raises(GeometryError, match="tolerance must be 0 mm or more"):
        evaluate(*folders, tmp_path / "out", tolerance_mm)


def test_rule_of_flare(folders, tmp_path):
    """Case c has no spleen in either map, which counts as 1; its CSV files are the challenge's."""
    took = {"b": {"seconds": {"total": 2.5}}, "gone": {"seconds": {"total": 1}}}
    (folders[0] / "run.json").write_text(json.dumps({"cases": took}))
    evaluation = evaluate(*folders, tmp_path / "out", FLARE22_TOLERANCES)
    spleen, _ = evaluation.summary
    assert (spleen.organ, spleen.cases) == ("spleen", 3)
    assert spleen.dice == pytest.approx((1 + 0 + 1) / 3)
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["tolerance_mm"] == {
        "liver": 5.0,
        "spleen": 3.0,
    }
    assert read_scores(tmp_path / "out").tolerances == FLARE22_TOLERANCES
    assert (tmp_path / "out" / "Efficiency.csv").read_text().splitlines()[1:] == ["b.nii.gz,2.5,,,,,,"]
    with (tmp_path / "out" / "DSC_NSD.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert (head[0], head[1], head[13], head[14], head[26]) == (
        *("Name", "Liver_DSC", "LK_DSC", "Liver_NSD", "LK_NSD"),
    )
    scores = {line[0]: {key: cell for key, cell in zip(head, line, strict=True) if cell} for line in lines}
    assert list(scores) == ["a.nii.gz", "b.nii.gz", "c.nii.gz"]
    assert scores["a.nii.gz"]["Liver_DSC"] == "0.8"
    assert scores["b.nii.gz"] == {
        "Name": "b.nii.gz",
        "Liver_DSC": "1.0",
        "Spleen_DSC": "0.0",
        "Liver_NSD": "1.0",
        "Spleen_NSD": "0.0",
    }
    assert "mean NSD at flare22" in (tmp_path / "out" / "report.html").read_text()


def test_the_challenge_s_files_are_never_those_of_an_earlier_evaluation(folders, tmp_path):
    """Neither of a later one at 1 mm, nor of predictions without measures."""
    out, account = tmp_path / "out", folders[0] / "run.json"
    written = {}
    for name, rules, measured in (
        ("first", FLARE22_TOLERANCES, True),
        ("without measures", FLARE22_TOLERANCES, False),
        ("first again", FLARE22_TOLERANCES, True),
        ("at 1 mm", 1.0, True),
    ):
        account.write_text(json.dumps({"cases": {"b": {"seconds": {"total": 2.5}}}} if measured else {}))
        evaluate(*folders, out, rules)
        written[name] = {path.name for path in out.iterdir()}
    always = {"metrics.csv", "summary.json", "report.html"}
    assert written["first"] == written["first again"] == always | {"DSC_NSD.csv", "Efficiency.csv"}
    assert written["without measures"] == always | {"DSC_NSD.csv"}
    assert written["at 1 mm"] == always


def test_organs_without_a_tolerance_are_named(folders, tmp_path):
    rules = Tolerances.by_organ("mine.csv", {"liver": 1.0, "aorta": 2.0})
    evaluation = evaluate(*folders, tmp_path / "out", rules)
    assert "no NSD, as mine.csv has no tolerance of them: spleen" in evaluation.warnings
    spleen, liver = evaluation.summary
    assert math.isnan(spleen.nsd)
    assert spleen.dice == 0.5
    assert liver.nsd > 0.9
    assert not (tmp_path / "out" / "DSC_NSD.csv").exists()
    assert not (tmp_path / "out" / "Efficiency.csv").exists()
    assert read_scores(tmp_path / "out").tolerances == Tolerances.by_organ("mine.csv", {"liver": 1.0})
    with pytest.raises(DatasetError, match=r"mine\.csv has no tolerance of any organ here: spleen, liver"):
        evaluate(*folders, tmp_path / "none", Tolerances.by_organ("mine.csv", {"aorta": 2.0}))
    assert not (tmp_path / "none").exists()


def keep_stages(folder: Path, case: str, region: np.ndarray, coarse: np.ndarray) -> None:
    labels = {"liver": 6, "spleen": 1}
    stages = [
        {"name": "coarse", "labels": labels, "everywhere": True, "placed_by": None, "spacing_mm": [3, 3, 3]},
        {
            "name": "fine",
            "labels": labels,
            "everywhere": False,
            "placed_by": "coarse",
            "spacing_mm": [2, 2, 3],
        },
    ]
    deciding = {"liver": ["fine"], "spleen": ["fine"]}
    save(folder / f"{case}-coarse.nii.gz", coarse)
    save(folder / f"{case}-fine-region.nii.gz", region.astype(np.uint8))
    (folder / f"{case}.json").write_text(json.dumps({"stages": stages, "deciding": deciding}))


@pytest.fixture
def kept(folders):
    """The region contains everything in case a, and all but a third of the liver in b; c has no outputs."""
    stages = folders[0] / "stages"
    region = organs(None).astype(bool)
    keep_stages(stages, "a", ~region, organs(LIVER, SPLEEN))
    region[2:8, 2:8, 2:6] = True
    region[2:4] = False
    keep_stages(stages, "b", region, organs(LIVER))
    return folders


def test_errors_are_attributed_where_stages_were_kept(kept, tmp_path):
    """In case a, two slices of 3 mm too many are labelled: the first within a voxel of the liver, the second
    not. The spleen of b was not found by the coarse stage, and is outside the region."""
    evaluation = evaluate(*kept, tmp_path / "out")
    parts = ("region_recall", "lost_coarse", "lost_region", "lost_boundary", "lost_elsewhere")
    found = {
        key: [float(row[part] or "nan") for part in parts]
        for key, row in rows(tmp_path / "out" / "metrics.csv").items()
    }
    assert found["a", "liver"] == pytest.approx([1, 0, 0, 36 / 360, 36 / 360], rel=1e-5)
    assert found["a", "spleen"] == [1, 0, 0, 0, 0]
    assert found["b", "liver"] == pytest.approx([2 / 3, 0, 0, 0, 0], rel=1e-5)  # an earlier stage found it
    assert found["b", "spleen"] == [0, 1, 0, 0, 0]
    assert np.isnan(found["c", "liver"]).all()
    by_organ = {row.organ: row for row in evaluation.summary}
    liver, spleen = by_organ["liver"], by_organ["spleen"]
    assert (liver.region_recall, liver.region_recall_worst) == (pytest.approx(5 / 6), pytest.approx(2 / 3))
    assert (liver.lost_boundary, liver.lost_elsewhere) == (pytest.approx(0.05), pytest.approx(0.05))
    assert (spleen.region_recall, spleen.lost_coarse, spleen.lost_region) == (0.5, 0.5, 0)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["organs"]["liver"]["region_recall"] == pytest.approx(5 / 6)
    assert "errors not attributed, as stages were not kept: c" in evaluation.warnings
    assert "Where Dice is lost" in (tmp_path / "out" / "report.html").read_text()


def test_errors_are_attributed_whatever_the_reference_calls_an_organ(kept, tmp_path):
    """The same as with equal names."""
    expected = evaluate(*kept, tmp_path / "equal")
    (kept[0] / "labels.json").write_text(json.dumps(VALUES))
    save_description(kept[1], labels={"background": 0, "Liver": VALUES["liver"], "SPLEEN": VALUES["spleen"]})
    found = evaluate(*kept, tmp_path / "other")
    assert "taken for the same organ: liver and Liver, spleen and SPLEEN" in found.warnings
    for one, other in zip(expected.cases[:2], found.cases[:2], strict=True):
        assert one.attributions["liver"] == other.attributions["Liver"]
        assert one.attributions["spleen"] == other.attributions["SPLEEN"]
    page = (tmp_path / "other" / "report.html").read_text()
    assert "Shown without the region" not in page


def test_a_case_whose_stages_are_damaged_is_scored_and_named(kept, tmp_path):
    complete = evaluate(*kept, tmp_path / "complete")
    (kept[0] / "stages" / "b-fine-region.nii.gz").write_bytes(b"damaged")
    found = evaluate(*kept, tmp_path / "out")
    assert found.failures == ()
    assert [case.scores for case in found.cases[:2]] == [case.scores for case in complete.cases[:2]]
    assert [bool(case.attributions) for case in found.cases] == [True, False, False]
    (warning,) = (text for text in found.warnings if text.startswith("errors not attributed, as outputs"))
    assert "b-fine-region.nii.gz: damaged" in warning
    assert ": b (" in warning


def test_copies_of_the_references_are_told(folders, tmp_path):
    """But not if one case of several is perfect, like c here."""
    assert not any("copies" in warning for warning in evaluate(*folders, tmp_path / "out").warnings)
    for case in ("a", "b", "c"):
        copy = (folders[1] / "labelsTr" / f"{case}.nii.gz").read_bytes()
        (folders[0] / f"{case}.nii.gz").write_bytes(copy)
    warnings = evaluate(*folders, tmp_path / "again").warnings
    assert any(
        warning.startswith("all predictions are their references, voxel by voxel") for warning in warnings
    )


def test_without_stages_nothing_is_said_of_them(folders, tmp_path):
    (folders[0] / "stages").mkdir()
    evaluation = evaluate(*folders, tmp_path / "out")
    assert evaluation.warnings == ()
    assert "Where Dice is lost" not in (tmp_path / "out" / "report.html").read_text()


def test_a_region_that_is_damaged_after_scoring_is_only_missing_from_the_picture(kept, tmp_path):
    """As when the evaluations of folds are gathered."""
    evaluation = evaluate(*kept, tmp_path / "out")
    (kept[0] / "stages" / "b-fine-region.nii.gz").write_bytes(b"damaged")
    pairs = find_pairs(*kept, None, None)
    write_all(evaluation, pairs, tmp_path / "out", {})
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("Shown without the region: ") == 2  # worst organ, and largest distance
    assert page.index("<h3>b</h3>") < page.index("<h4>spleen</h4>") < page.index("<h3>a</h3>")


def test_the_report_has_the_recipe_and_the_model(folders, tmp_path):
    recipe = tiny_recipe(together=True)
    labels = {"background": 0, "liver": 6, "spleen": 1}
    run = {"labels": labels, "models": ["some/model"], "recipe": "tiny"}
    run["recipe_in_full"] = recipe.model_dump(mode="json")
    (folders[0] / "run.json").write_text(json.dumps(run))
    evaluate(*folders, tmp_path / "out")
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert "some/model" in page
    assert dump(recipe) in page
