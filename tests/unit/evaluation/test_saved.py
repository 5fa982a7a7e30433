"""Scores are read back from disk, and several evaluations are merged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.label_files import LIVER, SPLEEN, organs, save, save_description, save_scan
from zoomseg.datasets.layouts import open_dataset
from zoomseg.evaluation.attribution import Attribution
from zoomseg.evaluation.evaluate import evaluate, write_metrics
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation, UnscoredCase
from zoomseg.evaluation.saved import gather, pool, read_scores
from zoomseg.evaluation.tolerances import Tolerances


@pytest.mark.parametrize("text", ["", "{", '{"cases": 1}', '{"cases": 1, "organs": 3}'])
def test_damaged_scores_are_made_again(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_text(text)
    (tmp_path / "metrics.csv").write_text("case,organ\n")
    assert read_scores(tmp_path, 1) is None


def test_scores_come_back_from_disk(tmp_path: Path) -> None:
    cases = (
        CaseResult("a", (OrganScore("liver", 0.5, 0.25, 3.0, 1.5, 10.0, 12.0),)),
        CaseResult("b", (OrganScore("liver", 0.0, 0.0, float("inf"), float("inf"), 0.0, 12.0),)),
    )
    made = Evaluation(("liver",), Tolerances.same(1.0), cases)
    write_metrics(tmp_path / "metrics.csv", made)
    (tmp_path / "summary.json").write_text(json.dumps(made.as_json()))
    assert read_scores(tmp_path, 2) == made
    assert read_scores(tmp_path, 3) is None


def test_what_was_lost_and_what_failed_comes_back(tmp_path: Path) -> None:
    told = {"liver": Attribution(0.5, 0.0, 0.25, 0.125, 0.125)}
    case = CaseResult("a", (OrganScore("liver", 0.5, 0.25, 3.0, 1.5, 10.0, 12.0),), told)
    made = Evaluation(("liver",), Tolerances.same(1.0), (case,), (UnscoredCase("b", "is no scan"),))
    write_metrics(tmp_path / "metrics.csv", made)
    (tmp_path / "summary.json").write_text(json.dumps(made.as_json()))
    assert read_scores(tmp_path) == made


def test_names_that_would_be_formulas_come_back_as_they_were(tmp_path: Path) -> None:
    told = {"@x": Attribution(0.5, 0.0, 0.25, 0.125, 0.125)}
    case = CaseResult("=1+2", (OrganScore("@x", 0.5, 0.25, 3.0, 1.5, 10.0, 12.0),), told)
    made = Evaluation(("@x",), Tolerances.same(1.0), (case,))
    write_metrics(tmp_path / "metrics.csv", made)
    (tmp_path / "summary.json").write_text(json.dumps(made.as_json()))
    assert (tmp_path / "metrics.csv").read_text().splitlines()[1].startswith("'=1+2,'@x,")
    assert read_scores(tmp_path) == made


def test_pooled_scores_are_those_of_all_cases() -> None:
    def scored(case: str, dice: float) -> CaseResult:
        return CaseResult(case, (OrganScore("liver", dice, dice, 1.0, 1.0, 1.0, 1.0),))

    one = Evaluation(("liver",), Tolerances.same(1.0), (scored("c", 0.9), scored("a", 0.6)))
    two = replace(one, cases=(scored("b", 0.3),), failures=(UnscoredCase("d", "why"),))
    both = pool([one, two])
    assert [case.id for case in both.cases] == ["a", "b", "c"]
    assert math.isclose(both.mean["dice"], 0.6)
    assert both.failures == (UnscoredCase("d", "why"),)


def test_gathered_folds_tell_where_dice_was_lost_and_who_predicted(tmp_path: Path) -> None:
    """A region that was damaged since is missing from one picture, and from nothing else."""
    save_description(tmp_path / "set")
    folders = []
    for fold, case in enumerate("ab"):
        folder = tmp_path / f"fold-{fold}"
        save(folder / "predictions" / f"{case}.nii.gz", organs(LIVER))
        save(tmp_path / "set" / "labelsTr" / f"{case}.nii.gz", organs(LIVER, SPLEEN))
        save_scan(tmp_path / "set" / "imagesTr" / f"{case}_0000.nii.gz")
        run = {"recipe": "tiny", "models": [f"fold-{fold}"]}
        (folder / "predictions" / "run.json").write_text(json.dumps(run))
        _keep_stages(folder / "predictions" / "stages", case)
        folders.append(folder)
    dataset = open_dataset(tmp_path / "set")
    for folder, case in zip(folders, "ab", strict=True):
        evaluate(folder / "predictions", dataset.subset([case]), folder)
    (folders[1] / "predictions" / "stages" / "b-fine-region.nii.gz").write_bytes(b"damaged")
    found = gather(folders, dataset, tmp_path / "all")
    spleen = next(row for row in found.summary if row.organ == "spleen")
    assert (spleen.region_recall, spleen.lost_coarse, spleen.lost_region) == (0, 0, 1)
    both = read_scores(tmp_path / "all", 2)
    assert both is not None
    assert [case.attributions["spleen"].lost_region for case in both.cases] == [1, 1]
    page = (tmp_path / "all" / "report.html").read_text()
    assert "Where Dice is lost" in page
    assert page.count("Shown without the region: ") == 2  # worst organ, and largest distance
    assert "<dt>recipe</dt><dd>tiny</dd>" in page
    assert "<dt>model</dt>" not in page  # another one in every fold


def _keep_stages(folder: Path, case: str) -> None:
    """One stage with the liver alone as its region."""
    about = {"labels": {"liver": 6, "spleen": 1}, "spacing_mm": [3, 3, 3], "placed_by": None}
    kept = {
        "stages": [{"name": "fine", "everywhere": False, **about}],
        "deciding": {"liver": ["fine"], "spleen": ["fine"]},
    }
    save(folder / f"{case}-fine.nii.gz", organs(LIVER))
    save(folder / f"{case}-fine-region.nii.gz", (organs(LIVER) > 0).astype(np.uint8))
    (folder / f"{case}.json").write_text(json.dumps(kept))
