"""A region that cut an organ: the organs that count, the expansion, and the repeated prediction."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, SCHEMA, tiny_case, tiny_recipe
from zoomseg.core.case import Case
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.tiling import Tile
from zoomseg.core.volume import Volume
from zoomseg.pipeline import stage_input
from zoomseg.pipeline.cascade import Cascade, Prediction
from zoomseg.pipeline.roi_expansion import cut_organs, expanded, extended, grown, open_sides, sides_at
from zoomseg.pipeline.sliding_window import StageNetwork
from zoomseg.pipeline.uncertainty import OpenSides, Uncertainty, UncertaintyEstimator
from zoomseg.recipe.spec import BodyMask, BoxAround, DilatedForeground, FixedShape, ImageInput

RECIPE = tiny_recipe(together=True)
COARSE, FINE = RECIPE.stages
GRID = Grid.from_spacing((40, 40, 40), (4.0, 4.0, 4.0))
CLOSED: OpenSides = ((False, False),) * 3


def view_of(region: Region) -> stage_input.StageView:
    return stage_input.StageView(FINE, region.grid, region)


def scan() -> stage_input.PreparedScan:
    return stage_input.prepare(
        Case("a", Volume(np.random.default_rng(0).normal(size=(1, *GRID.shape)).astype(np.float32), GRID)),
        RECIPE,
    )


def gathered(view: stage_input.StageView, *voxels: tuple[int, int, int]) -> UncertaintyEstimator:
    """The uncertainty of a left kidney in these voxels alone."""
    estimator = UncertaintyEstimator(SCHEMA.names, view.region, open_sides(view.grid, scan().grid))
    probabilities = np.zeros((3, *view.grid.shape), dtype=np.float32)
    probabilities[0] = 1.0
    for at in voxels:
        probabilities[(slice(None), *at)] = [0.0, 1.0, 0.0]
    estimator.add(probabilities, view.grid.box)
    return estimator


@pytest.mark.parametrize(
    ("voxels", "at_end", "cut"), [(100, 19, False), (100, 20, True), (9000, 89, False), (9000, 90, True)]
)
def test_a_few_voxels_at_the_end_are_chance(voxels: int, at_end: int, cut: bool) -> None:
    signs = {"left kidney": Uncertainty(voxels, 1.0, 0.9, at_end)}
    view = view_of(Region(GRID, Box((5, 5, 5), (30, 30, 30))))
    assert bool(cut_organs(view, signs)) == cut
    whole = replace(view, stage=COARSE)
    assert cut_organs(whole, signs) == ()  # its region does not depend on another stage
    body = BodyMask(kind="body_mask", threshold=0.0)
    assert cut_organs(replace(view, stage=FINE.model_copy(update={"roi": body})), signs) == ()


def test_a_box_grows_only_on_the_sides_touched_and_no_farther_than_the_scan() -> None:
    view = view_of(Region(GRID, Box((10, 2, 10), (30, 30, 30))))
    wider = expanded(view, scan(), gathered(view, (10, 15, 15), (20, 2, 29)), ("left kidney",))
    assert wider.region.box == Box((5, 0, 10), (30, 30, 35))  # 20 mm are 5 voxels
    assert wider.region.mask is None


def test_a_mask_grows_by_a_ball_where_it_was_touched() -> None:
    mask = np.ones((10, 10, 10), dtype=np.bool_)
    view = view_of(Region(GRID, Box((10, 10, 10), (20, 20, 20)), mask))
    wider = expanded(view, scan(), gathered(view, (19, 15, 15)), ("left kidney",)).region
    expected = np.zeros(GRID.shape, dtype=np.bool_)
    expected[10:20, 10:20, 10:20] = True
    index = np.stack(np.meshgrid(*[np.arange(40)] * 3, indexing="ij"), axis=-1)
    expected |= ((index - np.array([19, 15, 15])) ** 2).sum(axis=-1) <= 25
    assert np.array_equal(wider.mask_in(GRID.box), expected)


def test_a_crop_of_fixed_shape_is_taken_of_a_larger_box() -> None:
    grid = FINE.grid.model_dump(include={"tile", "padding", "overlap"})
    stage = FINE.model_copy(update={"grid": FixedShape(**grid, kind="shape", shape=(16, 16, 16))})
    crop = GRID.crop(Box((10, 10, 10), (26, 26, 26))).with_shape((16, 16, 16))
    view = stage_input.StageView(stage, crop, Region.whole(crop))
    wider = expanded(view, scan(), gathered(view, (0, 7, 15)), ("left kidney",))
    assert wider.grid == GRID.crop(Box((5, 10, 10), (26, 26, 31))).with_shape((16, 16, 16))
    assert wider.region.voxels == 16**3


def answer(classes: np.ndarray) -> np.ndarray:
    certain = np.stack([classes == c for c in range(3)], axis=1).astype(np.float32)
    return certain.clip(0.0001, 0.9998)


def drive(farther: bool, keep: bool, fine: StageNetwork | None = None) -> Prediction:
    """A coarse stage that finds only the first bright plane, of the left kidney, and a fine one that finds
    both kidneys inside its region."""

    def half(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        bright = (x_BCIJK[:, 0] > 0.55).astype(int)
        for found in bright:
            first = int(found.max(axis=(1, 2)).argmax())
            found[first + 1 :] = 0
        return answer(bright)

    def all_of_it(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        return answer((x_BCIJK[:, 0] > 0.55).astype(int) + (x_BCIJK[:, 0] > 0.75))

    roi = DilatedForeground(kind="dilated_foreground", of="coarse", radius_vox=1.0)
    stages = (COARSE, FINE.model_copy(update={"roi": roi}))
    recipe = RECIPE.model_copy(update={"stages": stages, "roi_expansion": farther})
    networks = {"coarse": half, "fine": fine or all_of_it}
    case = Case("a", tiny_case(0)[0])
    return Cascade(recipe, SCHEMA, lambda view: networks[view.stage.name], CPU).run(case, keep=keep)


@pytest.mark.parametrize("keep", [True, False])
def test_what_the_region_cut_is_found_the_second_time(keep: bool) -> None:
    first, second = drive(False, keep), drive(True, keep)
    truth = tiny_case(0)[1].data == 1
    missed = [int((truth & (result.labels.data == 0)).sum()) for result in (first, second)]
    assert missed[0] > 0.2 * int(truth.sum())
    assert missed[1] < 0.05 * int(truth.sum())
    coarse, fine = second.records
    assert (coarse.widened, fine.widened) == ((), ("left kidney",))
    assert fine.tiles > first.records[1].tiles
    assert fine.region_share > first.records[1].region_share
    assert first.records[1].widened == ()
    assert first.uncertainty["left kidney"].cut
    assert not second.uncertainty["left kidney"].cut


def painted(tile: Tile, *parts: Box) -> np.ndarray:
    """``[1, 1 + parts, *tile.inner.shape]``: certain of every part, where they overlap of the later one."""
    classes = np.zeros((1, *tile.inner.shape), dtype=int)
    for c, part in enumerate(parts, start=1):
        here = part.intersect(tile.inner)
        if not here.empty:
            classes[0][here.relative_to(tile.inner.start).slices] = c
    return np.stack([classes == c for c in range(1 + len(parts))], axis=1).astype(np.float32)


@pytest.mark.parametrize("keep", [True, False])
def test_an_organ_over_which_only_the_first_pass_pasted_stays(keep: bool) -> None:
    """The fine stage takes all of the coarse one's box for the left kidney, but in the wider region only a
    half of it; the right kidney in the other half is the coarse stage's."""
    left, right = Box((6, 5, 4), (12, 15, 12)), Box((9, 10, 4), (12, 15, 12))
    half = Box((6, 5, 4), (9, 15, 12))
    sides = COARSE.grid.model_copy(update={"mm": (2.0, 2.0, 3.0)})
    fine = {
        "labels": ("left kidney",),
        "fusion": "paste",
        "roi": BoxAround(of="coarse", labels=("left kidney",), margin_mm=0),
        "inputs": (ImageInput(),),
    }
    stages = (COARSE.model_copy(update={"grid": sides}), FINE.model_copy(update=fine))

    def network_of(view: stage_input.StageView) -> StageNetwork:
        if view.stage.name == "coarse":
            parts: tuple[Box, ...] = (left, right)
        else:
            parts = (left if view.region.box == left else half,)
        return lambda x_BCIJK, tiles: np.concatenate([painted(tile, *parts) for tile in tiles])

    recipe = RECIPE.model_copy(update={"stages": stages})
    result = Cascade(recipe, SCHEMA, network_of, CPU).run(Case("a", tiny_case(0)[0]), keep=keep)
    assert result.records[1].widened == ("left kidney",)
    expected = np.zeros((24, 20, 16), dtype=np.uint8)
    expected[right.slices], expected[half.slices] = 2, 1
    assert np.array_equal(result.labels.data, expected)


def test_there_is_no_third_time() -> None:
    """A network that finds an organ everywhere is computed twice."""
    asked = []

    def everywhere(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        asked.extend(tiles)
        return answer(np.ones_like(x_BCIJK[:, 0]))

    result = drive(True, True, everywhere)
    assert result.records[1].widened == ("left kidney",)
    assert len(asked) == result.records[1].tiles
    assert result.uncertainty["left kidney"].cut


def test_nothing_is_computed_twice_where_nothing_touches() -> None:
    def nothing(x_BCIJK: np.ndarray, tiles: tuple[Tile, ...]) -> np.ndarray:
        return answer(np.zeros_like(x_BCIJK[:, 0]))

    once, watched = drive(False, True, nothing), drive(True, True, nothing)
    assert watched.records[1].tiles == once.records[1].tiles
    assert watched.records[1].widened == ()


def test_beyond_which_sides_the_scan_goes_on() -> None:
    scan = Grid.from_spacing((20, 20, 20), (1.0, 1.0, 1.0))
    assert open_sides(scan.with_spacing((3.0, 3.0, 3.0)), scan) == CLOSED
    crop = scan.crop(Box((0, 3, 5), (20, 20, 15))).with_shape((4, 4, 4))
    assert open_sides(crop, scan) == ((False, False), (True, False), (True, True))


def test_a_box_grows_only_on_the_sides_touched_and_no_farther_than_the_grid() -> None:
    box, at = Box((10, 2, 10), (30, 30, 30)), np.array([[10, 15, 15], [20, 2, 29]])
    assert sides_at(at, box) == ((True, False), (True, False), (False, True))
    expected = Box((5, 0, 10), (30, 30, 35))  # 20 mm are 5 voxels
    assert grown(box, sides_at(at, box), GRID) == expected
    assert extended(box, None, at, GRID) == (expected, None)


def test_spacings_off_in_the_seventh_digit_do_not_add_a_voxel() -> None:
    grid = Grid.from_spacing((40, 40, 40), (3.9999999, 4.0000001, 4.0))
    grew = grown(Box((10, 10, 10), (30, 30, 30)), ((True, True),) * 3, grid)
    assert grew == Box((5, 5, 5), (35, 35, 35))
