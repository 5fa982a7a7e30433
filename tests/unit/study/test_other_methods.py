"""Other groups' methods compared with a study's own result on an unseen data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from zoomseg.core.labels import LabelSchema
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation
from zoomseg.evaluation.tolerances import Tolerances
from zoomseg.io.files import write_json_atomic
from zoomseg.study.ablations import STUDIES, Ablation, OtherMethod, TableRow
from zoomseg.study.efficiency import FILE, MEASURES
from zoomseg.study.other_methods import sheet
from zoomseg.study.table import RowResult

SCHEMA = LabelSchema.consecutive(["spleen", "Pancreas"])
WHOLE = TableRow("whole recipe", None)
STUDY = Ablation(
    "test",
    None,
    "Table 1",
    (WHOLE,),
    WHOLE.name,
    others=(
        OtherMethod("A et al.", 82, "2D FCN", "4 folds", {"liver": (0.9, 0.1), "pancreas": (0.5, 0.25)}, 0.5),
    ),
    source_others="Table 3",
)


def result(unseen: bool) -> RowResult:
    cases = tuple(
        CaseResult(f"case_{n}", (OrganScore("Pancreas", dice, 1.0, 1.0, 1.0, 1.0, 1.0),))
        for n, dice in enumerate([0.5, 0.7])
    )
    return RowResult(WHOLE, Evaluation(("Pancreas",), Tolerances.same(1.0), cases), unseen=unseen)


def test_the_organs_that_the_data_set_has_stand_beside_those_of_the_paper(tmp_path: Path) -> None:
    seconds = {"a": 36.0, "b": 108.0}
    write_json_atomic(
        tmp_path / FILE,
        {case: dict.fromkeys(MEASURES, 0.0) | {"seconds": took} for case, took in seconds.items()},
    )
    found = sheet(STUDY, [result(unseen=True)], {WHOLE.name: [tmp_path]}, SCHEMA)
    assert found is not None
    assert found.rows == (
        ("whole recipe, here", "2", "", "test set", "pancreas", "60.0 ± 14.1", "0.0200"),
        ("A et al.", "82", "2D FCN", "4 folds", "pancreas", "50.0 ± 25.0", "0.5"),
    )


def test_there_is_none_of_cases_held_back_or_where_the_paper_lists_none() -> None:
    assert sheet(STUDY, [result(unseen=False)], {}, SCHEMA) is None
    assert sheet(replace(STUDY, others=()), [result(unseen=True)], {}, SCHEMA) is None


def test_the_papers_own_line_is_its_last_rows_of_table_2() -> None:
    study = STUDIES["roth2018-cascade"]
    assert isinstance(study, Ablation)
    unseen = study.rows[-1].published_unseen
    assert unseen is not None
    assert {organ: mean for organ, (mean, _) in study.others[0].dice.items()} == dict(unseen.dice)
