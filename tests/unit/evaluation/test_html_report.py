"""The report as a page: self-contained, escaped, with the given numbers."""

from __future__ import annotations

import base64
import math
import re
from html.parser import HTMLParser

import pytest

from zoomseg.core.errors import DatasetError
from zoomseg.evaluation.attribution import Attribution
from zoomseg.evaluation.html_report import CasePictures, Picture, read_curves, render
from zoomseg.evaluation.metrics import OrganScore
from zoomseg.evaluation.result import CaseResult, Evaluation, UnscoredCase
from zoomseg.evaluation.tolerances import Tolerances

NASTY = "<script>alert('x')</script>"
LIVER = OrganScore("liver", 0.9123, 0.8, 4.04, 1.234, 1510.0, 1500.0)
MISSED = OrganScore(NASTY, 0.0, 0.0, math.inf, math.inf, 0.0, 20.0)
CASE = CaseResult("case_1", (LIVER, MISSED))
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
PNG, JPEG = b"\x89PNG not really", b"\xff\xd8 no more"


def pictures(case: CaseResult, organ: OrganScore, **more: str) -> CasePictures:
    picture = Picture(organ, PNG, more.pop("organ_note", ""))
    return CasePictures(case, JPEG, JPEG, "axial, k = 4", (picture,), **more)


def evaluation(**more: object) -> Evaluation:
    return Evaluation(("liver", NASTY), Tolerances.same(1.0), (CASE,), **more)


class Text(HTMLParser):
    """Visible text, and whether tags are balanced."""

    VOID = ("meta", "img", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] != "style":
            self.words.append(data)


def test_numbers_of_the_table():
    text = Text(render(evaluation(), [])).text
    assert "liver 1 0.912 0.800 4.0 1.23 +10.0 +1 0 0" in text
    assert f"1 0.000 0.000 {DASH} {DASH} {MINUS}20.0 {MINUS}100 1 0" in text
    assert "Mean of organs 0.456 0.400 4.0 1.23" in text
    assert "Research use only, not for diagnosis" in text


def test_page_is_whole_and_needs_nothing_from_outside():
    page = Text(render(evaluation(), [pictures(CASE, LIVER)]))
    assert page.open == []
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    kinds = [source.partition(";")[0] for source in sources]
    assert kinds == ["data:image/png", "data:image/jpeg", "data:image/jpeg", "data:image/png"]
    assert [base64.b64decode(source.partition(",")[2]) for source in sources[1:]] == [JPEG, JPEG, PNG]
    assert not [tag for tag, attributes in page.tags if tag in ("script", "link") or "href" in attributes]


def test_everything_from_outside_is_escaped():
    page = render(
        evaluation(failures=(UnscoredCase(NASTY, NASTY),), warnings=(NASTY,)),
        [pictures(CaseResult(NASTY, (MISSED,)), MISSED, note=NASTY, organ_note=NASTY)],
        provenance={NASTY: NASTY, "nested": {"model": [NASTY, 1]}},
    )
    assert "<script" not in page
    assert Text(page).text.count(NASTY) >= 8


def test_provenance_is_shown():
    text = Text(render(evaluation(), [], provenance={"model": "runs/a", "seed": 3, "folds": [1, 2]})).text
    assert "made by ZoomSeg" in text
    assert "model runs/a seed 3 folds 1, 2" in text


def test_case_without_any_organ():
    empty = OrganScore("liver", math.nan, math.nan, math.nan, math.nan, 0.0, 0.0)
    text = Text(render(Evaluation(("liver",), Tolerances.same(1.0), (CaseResult("a", (empty,)),)), [])).text
    assert "No case has any of the organs." in text
    assert "liver 0 " + 6 * f"{DASH} " + "0 0" in text


def test_a_model_of_one_stage_loses_nothing_by_regions():
    told = {"liver": Attribution(math.nan, 0.0, 0.0, 0.075, 0.0137)}
    case = CaseResult("case_1", (LIVER,), told)
    text = Text(render(Evaluation(("liver",), Tolerances.same(1.0), (case,)), [])).text
    assert "Organ Lost: boundary Lost: elsewhere liver 0.075 0.014" in text
    assert "coarse" not in text
    assert "egion" not in text


def test_fewer_cases_are_shown_than_there_are():
    cases = tuple(CaseResult(f"case_{n}", (LIVER,)) for n in (1, 2))
    evaluated = Evaluation(("liver",), Tolerances.same(1.0), cases)
    text = Text(render(evaluated, [pictures(CASE, LIVER)])).text
    assert "1 of 2 cases, in order of their mean Dice" in text
    assert "case_1 mean Dice 0.456, worst" in text


def test_where_dice_is_lost():
    told = {"liver": Attribution(0.99874, 0.0, 0.0126, 0.075, 0.001)}
    case = CaseResult("case_1", (LIVER, MISSED), told)
    text = Text(render(Evaluation(("liver", NASTY), Tolerances.same(1.0), (case,)), [])).text
    assert "within 2 mm (or one voxel)" in text
    assert "liver 99.87 99.87 0.000 0.013 0.075 0.001" in text
    assert f"{NASTY} {DASH} {DASH} {DASH} {DASH} {DASH} {DASH}" in text
    assert "Where Dice is lost" not in Text(render(evaluation(), [])).text


class TestTrainingLog:
    def test_one_curve_per_stage_and_split(self, tmp_path):
        log = tmp_path / "metrics.csv"
        log.write_text(
            "unit,step,stage,split,loss,dice\n0,10,coarse,train,2.5,0.1\n0,10,fine,train,1.5,nan\n"
            "0,20,coarse,train,2,0.2\n0,20,coarse,validation,3,0.05\n0,30,coarse,tra\n"
        )
        coarse, fine, validation = read_curves(log)
        assert (coarse.name, coarse.steps, coarse.loss, coarse.dice) == (
            "coarse · train", (10.0, 20.0), (2.5, 2.0), (0.1, 0.2),
        )  # fmt: skip
        assert fine.name == "fine · train"
        assert math.isnan(fine.dice[0])
        assert validation.name == "coarse · validation"
        assert "Training" in Text(render(evaluation(), [], training_log=log)).text

    def test_the_groups_of_a_stage_follow_each_other(self, tmp_path):
        log = tmp_path / "metrics.csv"
        rows = [(0, 1, "coarse", "train"), (0, 30, "coarse", "validation"), (1, 1, "coarse", "train")]
        rows += [(1, 1, "fine", "train"), (1, 20, "coarse", "train"), (1, 22, "coarse", "validation")]
        lines = [",".join(map(str, row)) + ",0.5,0.6" for row in rows]
        log.write_text("\n".join(["group,step,stage,split,loss,dice", *lines]))
        steps = {curve.name: curve.steps for curve in read_curves(log)}
        assert steps == {
            "coarse · train": (1.0, 31.0, 50.0), "coarse · validation": (30.0, 52.0), "fine · train": (1.0,),
        }  # fmt: skip

    def test_no_curves_no_section(self, tmp_path):
        log = tmp_path / "metrics.csv"
        log.write_text("step,loss,dice\n")
        assert "Training" not in Text(render(evaluation(), [], training_log=log)).text

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"a,b\n1,2\n", "has the columns step, loss and dice"), (b"step,\xff", "cannot be read")],
    )
    def test_other_files_are_refused(self, tmp_path, content, message):
        (tmp_path / "metrics.csv").write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            read_curves(tmp_path / "metrics.csv")

    def test_missing_file(self, tmp_path):
        with pytest.raises(DatasetError, match="cannot be read"):
            read_curves(tmp_path / "metrics.csv")
