"""Upper bounds of cases so small that every Dice can be counted by hand."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, tiny_dataset
from zoomseg.core.case import Case
from zoomseg.core.errors import DatasetError, RecipeError
from zoomseg.core.geometry import Box, Grid, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.tiling import Tile
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.evaluation.upper_bound import (
    UpperBound,
    atlas_oracle,
    check,
    last_stage_by_organ,
    measure,
    oracle,
    place_of,
    table,
    write,
)
from zoomseg.pipeline import stage_input
from zoomseg.recipe import graph
from zoomseg.recipe.spec import (
    AtlasSpec,
    BodyMask,
    BoxAround,
    DilatedForeground,
    Downsample,
    FixedShape,
    FixedSpacing,
    GridSpec,
    ImageInput,
    ProbabilityTimesAtlas,
    Recipe,
    Stage,
    Training,
    UNet3D,
    WholeVolume,
    Window,
)

SCHEMA = LabelSchema(("liver", "spleen"), (4, 9))
LIVER, SPLEEN = 1, 2
SAME = Downsample(factor=(1, 1, 1), tile=(8, 8, 8))
HALF = Downsample(factor=(2, 2, 2), tile=(4, 4, 4))


def stage(name: str, grid: GridSpec = SAME, **more: object) -> Stage:
    training = Training(patch=(8, 8, 8), iterations=1)
    answers = {"argmax_on": "stage_grid", **more}
    return Stage(name=name, grid=grid, network=UNet3D(channels=(4, 8)), training=training, **answers)  # type: ignore[arg-type]


def recipe(*stages: Stage, **more: object) -> Recipe:
    keys = {"roi_expansion": False, **more}
    made = Recipe(name="r", intensity=Window(lower=0, upper=1), stages=stages, **keys)  # type: ignore[arg-type]
    graph.validate(made)
    return graph.expand(made, SCHEMA)


def case(*organs: tuple[int, tuple[slice, slice, slice]], size: int = 8) -> Case:
    """A scan with blocks of class indices at slices, voxels of 1 mm."""
    data = np.zeros((size, size, size), dtype=np.uint8)
    for c, where in organs:
        data[where] = c
    grid = Grid.from_spacing((size, size, size), (1.0, 1.0, 1.0))
    return Case("a", Volume(data[None].astype(np.float32), grid), LabelMap(data, grid, SCHEMA))


def block(*edges: tuple[int, int]) -> tuple[slice, slice, slice]:
    i, j, k = edges
    return slice(*i), slice(*j), slice(*k)


ALIGNED = case((LIVER, block((2, 6), (2, 6), (2, 6))))
SHIFTED = case((LIVER, block((1, 5), (1, 5), (1, 5))))
"""At half the voxels, 7 blocks of 8 voxels are at least half liver: the one in the middle and those on its
six faces. They have 56 voxels, of which 32 are the organ's."""
ITS_HALF = 2 * 32 / (56 + 64)
STRADDLING = case(
    (LIVER, block((0, 4), (0, 2), (0, 4))),
    (LIVER, block((0, 2), (2, 4), (0, 4))),
    (SPLEEN, block((2, 8), (2, 4), (0, 4))),
)
"""A third of the spleen lies in the liver's bounding box, [0, 4) along each axis."""


class TestGrid:
    def test_an_organ_on_the_grid_loses_nothing(self) -> None:
        (row,) = measure(ALIGNED, recipe(stage("only", HALF)), CPU)
        assert row == UpperBound("a", "liver", "only", "", 1.0, 0.0, 0.0, 0.0, 0.0)

    def test_an_organ_off_the_grid_loses_what_sampling_loses(self) -> None:
        (row,) = measure(SHIFTED, recipe(stage("only", HALF)), CPU)
        assert (row.dice, row.grid, row.region, row.other) == (ITS_HALF, 1 - ITS_HALF, 0.0, 0.0)

    def test_the_last_stage_that_answers_decides(self) -> None:
        two = recipe(stage("coarse", HALF), stage("fine"), stage("more", HALF, fusion="none"))
        (row,) = measure(SHIFTED, two, CPU)
        assert (row.stage, row.dice, row.grid) == ("fine", 1.0, 0.0)

    def test_a_fixed_shape_is_a_grid_of_the_box(self) -> None:
        """The box [0, 6) with sides of 3 voxels: voxels of 2 mm, whose labels are the nearest ones, of which
        the liver has those at 1 and 3."""
        body = case((LIVER, block((1, 5), (1, 5), (1, 5))), (SPLEEN, block((0, 6), (5, 6), (0, 6))))
        shape = FixedShape(shape=(3, 3, 3), tile=(4, 4, 4))
        around = BoxAround(of="coarse", labels=("liver",), margin_mm=1)
        made = recipe(stage("coarse", fusion="none"), stage("fine", shape, roi=around, labels=("liver",)))
        (row,) = measure(body, made, CPU)
        assert (row.place, row.dice, row.grid, row.region, row.outside) == ("box", 27 / 64, 37 / 64, 0, 0)

    def test_slices_that_are_interpolated_apart_keep_their_corners(self) -> None:
        """A corner has 0.75 of the block along i and j each, and 0.625 along k: 0.56 in its own slice, but
        0.35 if slices were mixed."""
        grid = FixedSpacing(mm=(2, 2, 4), tile=(4, 4, 4), slices_apart_above=1.5)
        body = case((LIVER, block((2, 6), (2, 6), (0, 4))))
        (row,) = measure(body, recipe(stage("only", grid, argmax_on="scan_grid")), CPU)
        assert row == UpperBound("a", "liver", "only", "", 1.0, 0.0, 0.0, 0.0, 0.0)

    def test_neither_orientation_nor_direction_matters(self) -> None:
        turn = Orientation((2, 0, 1), (False, True, True))
        assert STRADDLING.labels is not None
        turned = Case("a", STRADDLING.image.reoriented(turn), STRADDLING.labels.reoriented(turn))
        around = BoxAround(of="coarse", labels=("liver",), margin_mm=0)
        made = recipe(stage("coarse", fusion="none"), stage("fine", roi=around))
        assert measure(turned, made, CPU) == measure(STRADDLING, made, CPU)


class TestRegion:
    AROUND_LIVER = BoxAround(of="coarse", labels=("liver",), margin_mm=0)

    def test_what_lies_outside_the_box_is_lost_there(self) -> None:
        made = recipe(stage("coarse", fusion="none"), stage("fine", roi=self.AROUND_LIVER))
        liver, spleen = measure(STRADDLING, made, CPU)
        assert (liver.dice, liver.region, liver.outside) == (1.0, 0.0, 0.0)
        assert spleen.outside == pytest.approx(2 / 3)
        # 16 of 48 voxels: 2 * 16 / (48 + 16)
        assert (spleen.dice, spleen.grid, spleen.region, spleen.other) == (0.5, 0.0, 0.5, 0.0)

    def test_an_earlier_answer_gives_it_back(self) -> None:
        made = recipe(stage("coarse"), stage("fine", roi=self.AROUND_LIVER))
        _, spleen = measure(STRADDLING, made, CPU)
        assert (spleen.stage, spleen.dice, spleen.region, spleen.other) == ("fine", 1.0, 0.5, -0.5)

    def test_a_region_that_cuts_an_organ_is_expanded_where_the_recipe_says_so(self) -> None:
        """Of the spleen's 12 layers 4 lie in the liver's box, 32 voxels at its end."""
        wide = case(
            (LIVER, block((0, 8), (0, 4), (0, 8))),
            (LIVER, block((0, 4), (4, 8), (0, 8))),
            (SPLEEN, block((4, 16), (4, 8), (0, 8))),
            size=24,
        )
        stages = (stage("coarse", fusion="none"), stage("fine", roi=self.AROUND_LIVER))
        as_it_is = measure(wide, recipe(*stages, roi_expansion=False), CPU)[1]
        assert (as_it_is.dice, as_it_is.region) == (2 * 4 / (12 + 4), 0.5)
        assert as_it_is.outside == pytest.approx(2 / 3)
        expanded = measure(wide, recipe(*stages, roi_expansion=True), CPU)[1]
        assert (expanded.dice, expanded.region, expanded.outside) == (1.0, 0.0, 0.0)

    def test_one_voxel_of_margin_brings_one_more_layer(self) -> None:
        around = self.AROUND_LIVER.model_copy(update={"margin_mm": 1})
        made = recipe(stage("coarse", fusion="none"), stage("fine", roi=around))
        spleen = measure(STRADDLING, made, CPU)[1]
        assert spleen.outside == pytest.approx(0.5)
        assert spleen.dice == 2 * 24 / (48 + 24)

    def test_a_candidate_region_of_what_the_coarse_stage_can_see(self) -> None:
        """At half the voxels, half of the shifted block is seen; dilated by two voxels it is complete."""
        for radius, outside in ((0, 1 / 2), (2, 0)):
            shell = DilatedForeground(of="coarse", radius_vox=radius)
            made = recipe(stage("coarse", HALF, fusion="none"), stage("fine", roi=shell))
            (row,) = measure(SHIFTED, made, CPU)
            assert row.place == "candidate region"
            assert row.outside == pytest.approx(outside)
            assert row.region == pytest.approx(1 - 2 * (1 - outside) / (2 - outside))

    def test_an_organ_that_the_coarse_grid_misses_is_lost_in_the_region(self) -> None:
        dot = case((LIVER, block((2, 3), (2, 3), (2, 3))), (SPLEEN, block((5, 8), (5, 8), (5, 8))))
        around = BoxAround(of="coarse", labels=("liver",), margin_mm=2)
        stages = stage("coarse", HALF), stage("fine", roi=around, labels=("liver",), fusion="paste")
        row = measure(dot, recipe(*stages, on_missing="empty"), CPU)[0]
        assert row == UpperBound("a", "liver", "fine", "box", 0.0, 0.0, 1.0, 0.0, 1.0)
        everywhere = measure(dot, recipe(*stages), CPU)[0]
        assert (everywhere.dice, everywhere.outside) == (1.0, 0.0)

    @pytest.mark.parametrize(
        ("roi", "place"),
        [
            (WholeVolume(), ""),
            (BodyMask(), "candidate region"),
            (DilatedForeground(of="c"), "candidate region"),
            (BoxAround(of="c"), "box"),
            (ProbabilityTimesAtlas(of="c"), "box"),
        ],
        ids=lambda x: getattr(x, "kind", ""),
    )
    def test_names(self, roi: object, place: str) -> None:
        assert place_of(roi) == place  # type: ignore[arg-type]


def test_of_stages_that_vote_the_last_one_is_named() -> None:
    made = recipe(*(stage(name, fusion="majority_vote") for name in ("axial", "coronal", "sagittal")))
    assert [s.name for s in last_stage_by_organ(made, SCHEMA).values()] == ["sagittal", "sagittal"]


def test_stages_apart_by_organ_answer_each_for_its_own() -> None:
    """A stage of all organs and another for the spleen: each organ's figures are those of its last stage."""
    made = recipe(
        stage("coarse", HALF),
        stage("fine", labels=("spleen",), per_label=True, fusion="paste"),
    )
    assert {organ: s.name for organ, s in last_stage_by_organ(made, SCHEMA).items()} == {
        "liver": "coarse",
        "spleen": "fine-spleen",
    }
    both = case((LIVER, block((1, 5), (1, 5), (1, 5))), (SPLEEN, block((5, 8), (5, 8), (5, 8))))
    liver, spleen = measure(both, made, CPU)
    assert (liver.stage, liver.grid) == ("coarse", 1 - ITS_HALF)
    assert (spleen.stage, spleen.grid, spleen.dice) == ("fine-spleen", 0.0, 1.0)


def test_an_oracle_answers_in_its_stage_s_own_classes() -> None:
    assert STRADDLING.labels is not None
    grid = STRADDLING.labels.grid
    spleen = stage_input.StageView(stage("s", labels=("spleen",)), grid, Region.whole(grid))
    box = Box((1, 2, 0), (3, 4, 2))
    sure = oracle(STRADDLING.labels)(spleen)(np.zeros((1, 1, 2, 2, 2), dtype=np.float32), (Tile(box, box),))
    assert tuple(sure.shape) == (1, 2, 2, 2, 2)
    assert sure[0, 1, :, 0, 0].tolist() == [0, 1]


def test_the_oracle_s_atlas_is_the_reference_on_the_atlas_s_grid() -> None:
    scan = stage_input.prepare(ALIGNED, recipe(stage("only")))
    prior = atlas_oracle(AtlasSpec(spacing_mm=(2.0, 0.5, 4.0)))(scan)
    assert prior.grid.spacing_mm == (2.0, 1.0, 4.0)  # never finer than the scan
    assert prior.labels == SCHEMA.names
    assert np.unique(prior.probabilities.sum(axis=0)).tolist() == [1.0]
    # Along k, layers 2 and 6 are sampled, and the block has layers 2 to 5.
    assert int(prior.probabilities[LIVER][1:3, 2:6, 0].sum()) == 2 * 4
    assert int(prior.probabilities[LIVER].sum()) == 2 * 4


class TestWhatIsLeftOut:
    def test_organs_that_the_case_does_not_show(self) -> None:
        assert [row.organ for row in measure(ALIGNED, recipe(stage("only")), CPU)] == ["liver"]

    def test_organs_that_were_not_drawn_in_it(self) -> None:
        partly = replace(STRADDLING, annotated=frozenset({"spleen"}))
        assert [row.organ for row in measure(partly, recipe(stage("only")), CPU)] == ["spleen"]

    def test_organs_that_no_stage_answers_for_are_named(self, tmp_path: Path) -> None:
        data = tiny_dataset(tmp_path / "data", 1)
        one = recipe(stage("only")).model_copy(update={"stages": (stage("only", labels=("right kidney",)),)})
        assert check(one, data) == ("left kidney",)

    def test_a_case_without_labels(self) -> None:
        with pytest.raises(DatasetError, match="case a has no labels"):
            measure(replace(ALIGNED, labels=None), recipe(stage("only")), CPU)

    def test_channels_that_the_scans_do_not_have(self, tmp_path: Path) -> None:
        data = tiny_dataset(tmp_path / "data", 1)
        with pytest.raises(RecipeError, match="scans have no channel 3"):
            check(recipe(stage("only", inputs=(ImageInput(channel=3),))), data)


ROWS = (
    UpperBound("a", "liver", "fine", "box", 0.9, 0.04, 0.05, 0.01, 0.02),
    UpperBound("a", "sp|een", "coarse", "", 0.8, 0.2, 0.0, 0.0, 0.0),
    UpperBound("b", "liver", "fine", "box", 0.7, 0.06, 0.25, -0.01, 0.04),
)


class TestTable:
    def test_means_over_cases_then_over_organs(self) -> None:
        assert table(ROWS) == [
            ["organ", "cases", "best Dice", "lost: grid", "lost: box", "lost: other", "outside"],
            ["liver", "2", "0.800", "0.050", "0.150", "0.000", "3.00%"],
            ["sp|een", "1", "0.800", "0.200", "-", "0.000", "0.00%"],
            ["mean of organs", "", "0.800", "0.125", "0.075", "0.000", "1.50%"],
        ]

    def test_each_kind_of_region_has_its_column(self) -> None:
        rows = (*ROWS, replace(ROWS[1], organ="aorta", place="candidate region", region=0.3))
        heading, *lines = table(rows)
        assert heading[4:6] == ["lost: candidate region", "lost: box"]
        assert [line[4:6] for line in lines] == [
            ["-", "0.150"],
            ["-", "-"],
            ["0.300", "-"],
            ["0.100", "0.050"],
        ]

    def test_a_little_below_zero_is_zero(self) -> None:
        assert table([replace(ROWS[0], other=-1e-5)])[1][5] == "0.000"

    def test_files(self, tmp_path: Path) -> None:
        write(ROWS, tmp_path / "out", "Ceiling of r on d")
        with (tmp_path / "out" / "ceiling.csv").open(newline="") as file:
            read = list(csv.DictReader(file))
        assert read[2] == {
            "case": "b",
            "organ": "liver",
            "stage": "fine",
            "place": "box",
            "dice": "0.7",
            "grid": "0.06",
            "region": "0.25",
            "other": "-0.01",
            "outside": "0.04",
        }
        text = (tmp_path / "out" / "ceiling.md").read_text()
        assert text.startswith("# Ceiling of r on d\n\n| organ | cases | best Dice |")
        assert "\n| --- | ---: | ---: |" in text
        assert "\n| sp\\|een | 1 | 0.800 |" in text
