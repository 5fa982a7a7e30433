"""The candidate region's curve: counted by hand on a small example, growing with the radius, computed once
per case."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from helpers.tiny_dataset import CPU, SCHEMA, tiny_dataset, tiny_recipe
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.volume import LabelMap
from zoomseg.datasets.layouts import Dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.pipeline.cascade import Prediction
from zoomseg.recipe.load import dump
from zoomseg.study import candidate_region
from zoomseg.study.ablations import RegionCurve, StudyTraining
from zoomseg.study.candidate_region import MEAN, Point, coverage, plot, run_curve, summarise
from zoomseg.study.recipe_edits import only
from zoomseg.study.trainings import StudySettings, open_trainings

TOY = LabelSchema.consecutive(["liver", "spleen", "kidney"])
LINE = Grid.from_spacing((10, 1, 1), (1.0, 1.0, 1.0))
ONE = (1, 1, 1)


def reference(classes: Sequence[int]) -> LabelMap:
    return LabelMap(np.array(classes, dtype=np.uint8).reshape(10, 1, 1), LINE, TOY)


def answer(found: Sequence[int]) -> StagePrediction:
    """A stage with probability 1 of liver at these voxels of the line."""
    probabilities = np.zeros((4, 10, 1, 1), dtype=np.float32)
    probabilities[0] = 1.0
    for voxel in found:
        probabilities[:, voxel] = np.array([0.0, 1.0, 0.0, 0.0]).reshape(4, 1, 1)
    return StagePrediction(probabilities, LINE, TOY.names, Region.whole(LINE), "stage1")


def test_a_line_counted_by_hand() -> None:
    """Predicted foreground: voxel 3. Liver: 2 to 4. Spleen: 6 and 7. No kidney."""
    found = coverage(
        answer([3]), reference([0, 0, 1, 1, 1, 0, 2, 2, 0, 0]), TOY, (0, 1, 2, 3), TOY.names, ONE
    )
    assert list(found) == ["liver", "spleen"]
    # r = 0: {3}; r = 1: {2, 3, 4}; r = 2: {1..5}; r = 3: {0..6}.
    assert found["liver"] == ((1 / 3, 0 / 7), (1.0, 0 / 7), (1.0, 2 / 7), (1.0, 4 / 7))
    assert found["spleen"] == ((0.0, 1 / 8), (0.0, 3 / 8), (0.0, 5 / 8), (0.5, 6 / 8))


def test_a_stage_that_finds_nothing_catches_nothing() -> None:
    found = coverage(answer([]), reference([1] * 5 + [0] * 5), TOY, (0, 3), ["liver"], ONE)
    assert found == {"liver": ((0.0, 0.0), (0.0, 0.0))}


def test_an_organ_that_fills_the_grid_has_nothing_beside_it() -> None:
    found = coverage(answer([3]), reference([1] * 10), TOY, (1,), ["liver"], ONE)
    assert found == {"liver": ((0.3, 0.0),)}


def test_means_are_over_the_cases_that_have_the_organ() -> None:
    cases = [
        {"liver": ((0.2, 0.1), (0.4, 0.3))},
        {"liver": ((0.6, 0.3), (0.8, 0.5)), "spleen": ((1.0, 0.0), (1.0, 0.2))},
    ]
    points = summarise("validation", cases, (0, 2))
    assert [(p.organ, p.radius_vox, p.cases) for p in points] == [
        (o, r, n) for r in (0, 2) for o, n in ((MEAN, 2), ("liver", 2), ("spleen", 1))
    ]
    values = [(p.sensitivity, p.false_positive_rate) for p in points]
    expected = [(0.7, 0.1), (0.4, 0.2), (1.0, 0.0), (0.8, 0.3), (0.6, 0.4), (1.0, 0.2)]
    assert [v for pair in values for v in pair] == pytest.approx([v for pair in expected for v in pair])
    assert summarise("training", [], (0, 2)) == []


def test_the_plot_has_a_column_per_split() -> None:
    points = [Point(split, o, r, 0.5, 0.1, 1) for split in ("a", "b") for o in (MEAN, "x") for r in (0, 1)]
    wide, narrow = (int.from_bytes(plot(p)[16:20], "big") for p in (points, points[:4]))
    assert math.isclose(wide, 2 * narrow, rel_tol=0.01)


def test_organs_are_in_the_legend_by_their_names_whatever_these_contain() -> None:
    names = ("a $\\x b$", "_b")
    figure = Figure()
    panel = figure.subplots()
    points = [Point("a", o, r, 0.5, 0.1, 1) for o in names for r in (0, 1)]
    candidate_region._draw(panel, points, "sensitivity")
    assert panel.get_legend_handles_labels()[1] == ["a \\$\\x b\\$", " _b"]
    assert plot(points).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("region"), cases=3)


def test_a_real_curve_grows_with_the_radius_and_is_made_once(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(dump(tiny_recipe(together=False, iterations=12)))
    study = RegionCurve("tiny", str(path), "Fig. 0", StudyTraining("c", only("coarse")), "coarse", (0, 2), 3)
    out = tmp_path / "out"
    predict = Predictor.predict

    def memory_is_full(self: Predictor, case: Case) -> Prediction:
        if case.id == "case_0":
            raise MemoryError
        return predict(self, case)

    with monkeypatch.context() as patch:
        patch.setattr(Predictor, "predict", memory_is_full)
        (problem,) = run_curve(study, open_trainings(study, data, out, StudySettings(), CPU))[1]
    assert problem.startswith("case_0, fold 0: ")
    assert problem.endswith("does not fit in memory")
    points, failed = run_curve(study, open_trainings(study, data, out, StudySettings(), CPU))
    assert failed == ()
    assert {(p.split, p.cases) for p in points} == {("training", 2), ("validation", 1)}
    for split in ("training", "validation"):
        for organ in (MEAN, *SCHEMA.names):
            own = [p for p in points if (p.split, p.organ) == (split, organ)]
            assert [p.radius_vox for p in own] == [0, 2]
            for value in ("sensitivity", "false_positive_rate"):
                curve = [getattr(p, value) for p in own]
                assert curve == sorted(curve)
                assert curve[-1] > curve[0]
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [float(r["sensitivity"]) for r in rows] == pytest.approx([p.sensitivity for p in points], abs=1e-5)
    assert "r (voxels)" in (out / "table.md").read_text()
    assert "data:image/png;base64," in (out / "report.html").read_text()
    assert json.loads((out / "study.json").read_text())["ablation"] == "tiny"

    def never(*arguments: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(Predictor, "predict", never)
    assert run_curve(study, open_trainings(study, data, out, StudySettings(), CPU))[0] == points
