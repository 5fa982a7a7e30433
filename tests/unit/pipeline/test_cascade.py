"""One scan through a cascade of known networks: regions, computed tiles, results."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import nn

from helpers.known_networks import (
    COARSE,
    FINE,
    RECIPE,
    by_name,
    case,
    constant,
    each,
    softmax,
    stripes,
    threshold,
    thresholds,
    with_stages,
)
from helpers.network_inputs import network_input
from helpers.tiny_dataset import CPU, SCHEMA
from zoomseg.backends.torch_networks import as_network
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Box, Orientation
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.tiling import Tile
from zoomseg.inference import stage_outputs
from zoomseg.inference.confidence import organ_rows_of
from zoomseg.pipeline import fusion, stage_input
from zoomseg.pipeline.cascade import Cascade, Prediction
from zoomseg.pipeline.inputs import input_channels
from zoomseg.pipeline.probability_map import LEVELS, probability_map
from zoomseg.pipeline.sliding_window import SlidingWindow, StageNetwork
from zoomseg.recipe import graph
from zoomseg.recipe.spec import (
    ATLAS,
    AtlasInput,
    BodyMask,
    BoxAround,
    DilatedForeground,
    FixedShape,
    ImageInput,
    Islands,
    Presence,
    PriorInput,
    Recipe,
    Stage,
    UNet3D,
)

# --- fusion of several stages into the label map ----------------------------------------------------


NEAREST = {"argmax_on": "stage_grid"}
LEFT, MIDDLE, RIGHT = stripes("111110000000"), stripes("000111110000"), stripes("000000222000")


FINE_AROUND_RIGHT = BoxAround(of="coarse", labels=("right kidney",), margin_mm=4)


def drive(recipe: Recipe, coarse: StageNetwork, fine: StageNetwork, scan: Case | None = None) -> Prediction:
    return Cascade(recipe, SCHEMA, by_name({"coarse": coarse, "fine": fine}), CPU).run(scan or case())


def fine_region(result: Prediction) -> np.ndarray:
    region = result.stages["fine"].region
    return region.mask_in(region.grid.box)


def test_the_fine_stage_decides_where_it_looks_and_nothing_is_said_elsewhere() -> None:
    result = drive(RECIPE, threshold, threshold)
    truth = thresholds(stage_input.prepare(case(), RECIPE).image.data[0])
    region = fine_region(result)
    assert np.array_equal(result.labels.data.astype(np.int64), np.where(region, truth, 0))
    assert np.unique(result.labels.data).tolist() == [0, 1, 2]
    fixed = RECIPE.model_copy(update={"roi_expansion": False})
    everywhere = drive(fixed, threshold, constant(2)).labels.data
    assert np.array_equal(everywhere == 2, region)
    assert 0 < int(region.sum()) < region.size


def test_a_fine_stage_that_finds_nothing_wipes_out_what_the_coarse_one_found() -> None:
    assert int(drive(RECIPE, constant(1), constant(0)).labels.data.max()) == 0
    assert np.unique(drive(RECIPE, constant(1), constant(2)).labels.data).tolist() == [2]


def test_without_fusion_the_coarse_answer_stays() -> None:
    coarse_only = with_stages(fine={"fusion": "none"})
    assert np.unique(drive(coarse_only, constant(1), constant(2)).labels.data).tolist() == [1]


@pytest.mark.parametrize("axes", [(0,), (1, 2)], ids=["mirrored", "upside down"])
def test_labels_come_back_on_the_scans_own_grid(axes: tuple[int, ...]) -> None:
    image = case().image
    flip = (0 in axes, 1 in axes, 2 in axes)
    turned = image.reoriented(Orientation((2, 0, 1), (flip[2], flip[0], flip[1])))
    straight = drive(RECIPE, threshold, threshold).labels
    result = drive(RECIPE, threshold, threshold, Case("a", turned)).labels
    assert result.grid.same_as(turned.grid)
    back = result.reoriented(Orientation.to_canonical(turned.grid))
    assert np.array_equal(back.data, straight.data)


def test_nowhere_to_look_is_an_empty_label_map() -> None:
    recipe = RECIPE.model_copy(update={"on_missing": "empty"})
    result = drive(recipe, constant(0), constant(1))
    assert result.labels.grid.same_as(case().image.grid)
    assert int(result.labels.data.max()) == 0
    assert [r.stage for r in result.records] == ["coarse"]
    assert list(result.stages) == ["coarse"]
    assert result.confidence == {}


def test_missing_organs_may_mean_looking_everywhere() -> None:
    result = drive(RECIPE, constant(0), constant(1))
    assert result.records[1].region_share == 1.0
    assert np.unique(result.labels.data).tolist() == [1]


def test_no_stage_at_all_may_have_somewhere_to_look() -> None:
    recipe = with_stages(coarse={"roi": BodyMask(threshold=1000.0)}).model_copy(
        update={"on_missing": "empty"}
    )
    result = drive(recipe, constant(1), constant(1))
    assert result.probabilities is None
    assert (result.confidence, result.records, dict(result.stages)) == ({}, (), {})
    assert int(result.labels.data.max()) == 0


def chain(*stages: tuple[str, Mapping[str, object]], **changes: object) -> Recipe:
    """Stages by name, each the tiny coarse one with changes; its input is the whole scan."""
    made = tuple(COARSE.model_copy(update={"name": name, **change}) for name, change in stages)
    return RECIPE.model_copy(update={"stages": made, "train_together": (), **changes})


def along(recipe: Recipe, **networks: StageNetwork) -> str:
    """The label map along the scan's first axis, in the coarse stage's voxels; all rows must be alike."""
    labels = Cascade(recipe, SCHEMA, by_name(networks), CPU).run(case()).labels.data
    assert bool((labels == labels[:, :1, :1]).all())
    return "".join(str(int(c)) for c in labels[::2, 0, 0])


def test_stages_paste_their_labels_and_keep_off_others() -> None:
    one = {"labels": ("left kidney",), "fusion": "paste", **NEAREST}

    @each
    def two(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        return MIDDLE(x_BCIJK, (tile,))[:, :2]

    recipe = chain(("all", NEAREST), ("left", one))
    both = chain(("first", NEAREST), ("all", NEAREST), ("left", one))
    wanted = "000111112000"
    assert along(recipe, all=RIGHT, left=two) == wanted
    assert along(both, first=LEFT, all=RIGHT, left=two) == wanted
    assert along(chain(("left", one), ("all", NEAREST)), all=RIGHT, left=two) == "000000222000"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("mean", ["arithmetic", "geometric"])
def test_an_organ_that_fills_its_region_fills_it_to_the_ends(mean: str, keep: bool) -> None:
    """On a grid twice as coarse as the scan along the first axis."""
    roi = BoxAround(of="coarse", labels=("left kidney",), margin_mm=0)
    fine = {"roi": roi, "mean": mean}
    recipe = chain(("coarse", {"fusion": "none"}), ("fine", fine), roi_expansion=False)
    networks = by_name({"coarse": stripes("000111110000"), "fine": constant(1)})
    labels = Cascade(recipe, SCHEMA, networks, CPU).run(case(), keep=keep).labels.data
    expected = np.zeros((24, 20, 16), dtype=np.uint8)
    expected[6:16] = 1
    assert np.array_equal(labels, expected)


def test_where_a_stage_has_nowhere_to_look_the_earlier_answer_stays() -> None:
    nowhere = {"fusion": "paste", "roi": BodyMask(threshold=1000.0), **NEAREST}
    recipe = chain(("all", NEAREST), ("fine", nowhere), on_missing="empty")
    assert along(recipe, all=LEFT) == "111110000000"
    voting = {"fusion": "majority_vote", **NEAREST}
    nobody = chain(("all", NEAREST), ("fine", nowhere | voting), on_missing="empty")
    assert along(nobody, all=LEFT) == "111110000000"


def test_stages_that_follow_each_other_vote_together() -> None:
    vote, silent = {"fusion": "majority_vote", **NEAREST}, {"fusion": "none"}
    networks = {"a": LEFT, "b": MIDDLE, "c": RIGHT}
    two_of_three = "000110000000"
    recipe = chain(("a", vote), ("b", vote), ("c", vote))
    assert along(recipe, **networks) == two_of_three
    # A stage that is only read by others has no effect on the vote.
    assert (
        along(chain(("a", vote), ("n", silent), ("b", vote), ("c", vote)), n=RIGHT, **networks)
        == two_of_three
    )
    # A stage that is fused in between replaces the result of the earlier votes.
    later = chain(("a", vote), ("b", NEAREST), ("c", vote))
    assert along(later, **networks) == "000000222000"


def test_the_most_probable_of_stages_that_follow_each_other() -> None:
    surest = {"fusion": "most_probable", **NEAREST}
    unsure = stripes("000000222000", 2.0)
    recipe = chain(("a", surest), ("b", surest))
    assert along(recipe, a=MIDDLE, b=unsure) == "000111112000"
    assert along(recipe, a=unsure, b=MIDDLE) == "000111112000"
    assert along(recipe, a=stripes("000111110000", 2.0), b=RIGHT) == "000111222000"


def test_what_an_overwritten_stage_would_have_erased_is_erased() -> None:
    """The second stage replaces everything, then the third refines the prediction of the second. Foreground
    of the first elsewhere is lost."""
    closer = {"roi": DilatedForeground(of="b", radius_vox=0), **NEAREST}
    recipe = chain(("a", NEAREST), ("b", NEAREST), ("c", closer))
    assert along(recipe, a=LEFT, b=RIGHT, c=RIGHT) == "000000222000"


def test_an_answer_that_is_overwritten_is_not_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[str] = []

    def fuse(kind: str, fused: fusion.FusedLabelMap, inputs: list[fusion.FusionInput], atlas: object) -> None:
        entered.extend(f"{found.prediction.source} {kind}" for found in inputs)

    monkeypatch.setattr(fusion, "fuse", fuse)
    closer = {"roi": DilatedForeground(of="a", radius_vox=0)}
    networks = by_name(dict.fromkeys("abc", LEFT))

    def of(*stages: tuple[str, Mapping[str, object]]) -> list[str]:
        entered.clear()
        Cascade(chain(*stages), SCHEMA, networks, CPU).run(case())
        return list(entered)

    assert of(("a", {}), ("b", closer)) == ["b replace_in_roi"]
    assert of(("a", {"fusion": "paste"}), ("b", closer)) == ["b replace_in_roi"]
    # These affect the result although the region of a later stage contains all of their foreground.
    vote = {"fusion": "majority_vote"}
    assert of(("a", vote), ("b", vote), ("c", closer)) == [
        "a majority_vote",
        "b majority_vote",
        "c replace_in_roi",
    ]
    pasted = closer | {"fusion": "paste"}
    assert of(("a", {}), ("b", pasted)) == ["a replace_in_roi", "b paste"]
    assert of(("c", {}), ("a", {}), ("b", closer)) == [f"{name} replace_in_roi" for name in "cab"]


def test_the_atlas_prior_has_its_say_where_a_stage_asks_for_it() -> None:
    """An undecided network, and an atlas that has each kidney on its side."""
    scan = stage_input.prepare(case(), RECIPE)
    grid = scan.grid.with_shape((12, 10, 8))
    shares = np.zeros((3, *grid.shape), dtype=np.float32)
    shares[0], shares[1, :4], shares[2, 8:] = 0.5, 0.5, 0.5
    shares[0, 4:8] = 1
    atlas = StagePrediction(shares, grid, SCHEMA.names, Region.whole(grid), ATLAS)
    fusing = {"fusion": "replace_times_atlas", "grid": COARSE.grid.model_copy(update={"mm": (4.0, 4.0, 6.0)})}

    @each
    def unsure(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        logits = np.zeros((1, 3, *tile.inner.shape), dtype=np.float32)
        logits[:, 1:] = 0.1
        return softmax(logits)

    recipe = chain(("a", fusing | NEAREST))
    cascade = Cascade(recipe, SCHEMA, by_name({"a": unsure}), CPU, atlas_of=lambda scan: atlas)
    result = cascade.run(case())
    assert result.labels.data[::2, 0, 0].tolist() == [1] * 4 + [0] * 4 + [2] * 4
    assert result.atlas is atlas  # from which probability maps are made
    assert cascade.run(case(), keep=False).atlas is None
    assert list(result.stages) == ["a"]
    assert list(result.seconds) == ["prepare", ATLAS, "a", "fuse"]


def test_the_largest_component_is_kept_in_the_end() -> None:
    twice = stripes("110111222020")
    assert along(chain(("a", NEAREST)), a=twice) == "110111222020"
    left = chain(("a", NEAREST), largest_component=("left kidney",))
    assert along(left, a=twice) == "000111222020"
    both = chain(("a", NEAREST), largest_component="all")
    assert along(both, a=twice) == "000111222000"


def test_small_parts_that_lie_apart_go_in_the_end() -> None:
    parts = stripes("110111222020")

    def below(share: float, labels: str | tuple[str, ...] = "all") -> str:
        return along(chain(("a", NEAREST), islands=Islands(labels=labels, below=share)), a=parts)

    assert below(0.3) == "110111222020"
    assert below(0.5) == "110111222000"
    assert below(0.7) == "000111222000"
    assert below(0.7, ("left kidney",)) == "000111222020"


@pytest.mark.parametrize("keep", [True, False])
def test_an_organ_that_the_stage_of_the_whole_scan_finds_nowhere_goes_in_the_end(keep: bool) -> None:
    """That stage gives the left kidney a probability of 0.09, and the right one 0.61, everywhere."""

    @each
    def whole(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        shares = np.array([0.3, 0.09, 0.61], dtype=np.float32).reshape(1, 3, 1, 1, 1)
        return np.broadcast_to(shares, (1, 3, *tile.inner.shape))

    def run(presence: Presence, organs: tuple[str, ...] | None = None) -> tuple[str, Prediction]:
        recipe = chain(("whole", {"fusion": "none"}), ("fine", NEAREST), presence=presence)
        networks = by_name({"whole": whole, "fine": stripes("110111222020")})
        result = Cascade(recipe, SCHEMA, networks, CPU).run(case(), organs, keep=keep)
        return "".join(str(int(c)) for c in result.labels.data[::2, 0, 0]), result

    labels, result = run(Presence(of="whole"))
    assert labels == "000000222020"
    assert list(result.confidence) == ["right kidney"]
    assert result.notes == (
        "left kidney: removed, as stage 'whole', which sees the whole scan, finds it nowhere with a "
        "probability of 0.1 or more",
    )
    assert run(Presence(of="whole", at_least=0.08))[0] == "110111222020"
    assert run(Presence(of="whole", labels=("right kidney",), at_least=0.6))[0] == "110111222020"
    assert run(Presence(of="whole", labels=("right kidney",), at_least=0.7))[0] == "110111000000"
    labels, result = run(Presence(of="whole"), ("right kidney",))
    assert (labels, result.notes) == ("000000222020", ())


def test_an_organ_is_nowhere_in_a_stage_without_a_region() -> None:
    nowhere = {"roi": BodyMask(threshold=1000.0), "fusion": "none"}
    recipe = chain(("whole", nowhere), ("fine", NEAREST), on_missing="empty", presence=Presence(of="whole"))
    assert along(recipe, fine=LEFT) == "000000000000"


def test_only_the_organs_asked_for() -> None:
    networks = by_name({"coarse": threshold, "fine": threshold})
    both = Cascade(RECIPE, SCHEMA, networks, CPU).run(case()).labels.data
    one = Cascade(RECIPE, SCHEMA, networks, CPU).run(case(), ("right kidney",)).labels.data
    none = Cascade(RECIPE, SCHEMA, networks, CPU).run(case(), ()).labels.data
    assert np.array_equal(one, np.where(both == 2, 2, 0))
    assert 0 < int((one == 2).sum()) < int((both > 0).sum())
    assert int(none.max()) == 0


@pytest.mark.parametrize("keep", [True, False])
def test_overlapping_labels_have_one_rule(keep: bool) -> None:
    """The left kidney is likelier than background (0.6), the right one inside it is not (0.45)."""
    logits = np.log(np.array([1.0, 0.6 / 0.4, 0.45 / 0.55], dtype=np.float32)).reshape(1, 3, 1, 1, 1)

    @each
    def network(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        return np.broadcast_to(softmax(logits), (1, 3, *tile.inner.shape))

    recipe = chain(("a", {"mean": "geometric", "labels_overlap": True}))
    result = Cascade(recipe, SCHEMA, by_name({"a": network}), CPU).run(case(), keep=keep)
    assert bool((result.labels.data == 1).all())
    assert result.confidence == {"left kidney": pytest.approx(2 * 0.33 / (0.33 + 1), rel=1e-5)}
    if not keep:
        assert result.probabilities is None
        return
    alone = stage_outputs.label_map(recipe.stages[0], result.stages["a"], result.labels.grid, SCHEMA)
    assert np.array_equal(alone.data, result.labels.data)
    assert result.probabilities is not None
    shares = result.probabilities.probabilities[:, 3, 3, 3]
    assert shares == pytest.approx([0.4 * 0.55, 0.6 * 0.55, 0.45], rel=1e-5)
    shown = probability_map("left kidney", result.labels.grid, recipe, result.stages)
    assert np.unique(shown).tolist() == [round(0.33 * LEVELS)]


def test_a_last_stage_without_a_region_has_no_probabilities() -> None:
    """Those of the stage before it have other labels."""
    fine = {"labels": ("right kidney",), "fusion": "paste", "roi": FINE_AROUND_RIGHT}
    recipe = with_stages(fine=fine).model_copy(update={"on_missing": "empty"})
    result = drive(recipe, constant(1), constant(1))
    assert list(result.stages) == ["coarse"]
    assert result.probabilities is None


def test_positions_are_judged_with_organs_that_were_not_asked_for() -> None:
    networks = by_name({"coarse": threshold, "fine": threshold})
    mirrored = LabelSchema(SCHEMA.names[::-1], SCHEMA.values)  # the left kidney on the right
    one, all_, both = (
        Cascade(RECIPE, mirrored, networks, CPU).run(case(), organs)
        for organs in (("left kidney",), None, mirrored.names)
    )
    swapped = ("sides_swapped",)
    assert one.implausible == {"left kidney": swapped, "right kidney": swapped}
    assert one.labels.present == ("left kidney",)
    assert all_.implausible is both.implausible is None
    assert Cascade(RECIPE, SCHEMA, networks, CPU).run(case(), ("left kidney",)).implausible == {}
    for result, organs in ((one, ("left kidney",)), (all_, "all")):
        rows = organ_rows_of("a", result, case().image, None, organs)
        assert [row.flags[-1:] for row in rows] == [swapped] * len(rows)


def test_priors_are_kept_and_the_last_are_the_probabilities() -> None:
    result = drive(RECIPE, constant(1, 1.0), constant(2, 2.0))
    assert list(result.stages) == ["coarse", "fine"]
    assert result.probabilities is result.stages["fine"]
    for prior, c, logit in ((result.stages["coarse"], 1, 1.0), (result.stages["fine"], 2, 2.0)):
        assert prior.labels == SCHEMA.names
        expected = torch.zeros(3)
        expected[c] = logit
        for channel, p in zip(prior.probabilities, expected.softmax(dim=0), strict=True):
            np.testing.assert_allclose(channel, float(p), rtol=1e-5)
    sure = float(torch.tensor([0.0, 0, 2]).softmax(0)[2])
    assert result.confidence == {"right kidney": pytest.approx(2 * sure / (sure + 1))}


def test_confidence_is_that_of_the_last_stage_which_answers_for_an_organ() -> None:
    coarse, fine = RECIPE.stages
    right = fine.model_copy(update={"labels": ("right kidney",), "fusion": "paste"})
    recipe = RECIPE.model_copy(update={"stages": (coarse, right)})

    def halves(x_BCIJK: np.ndarray, tile: object) -> np.ndarray:
        logits = np.zeros((len(x_BCIJK), 3, *x_BCIJK.shape[2:]), dtype=np.float32)
        middle = x_BCIJK.shape[2] // 2
        logits[:, 1, :middle], logits[:, 2, middle:] = 1.0, 1.0
        return softmax(logits)

    def organ(x_BCIJK: np.ndarray, tile: object) -> np.ndarray:
        sure = softmax(np.array([[0.0, 2.0]], dtype=np.float32))
        return np.broadcast_to(sure.reshape(1, 2, 1, 1, 1), (len(x_BCIJK), 2, *x_BCIJK.shape[2:]))

    networks = by_name({"coarse": halves, "fine": organ})
    signs = Cascade(recipe, SCHEMA, networks, CPU).run(case()).uncertainty
    here, there = (float(p) for p in torch.tensor([0.0, 1, 0]).softmax(0)[[1, 2]])
    everywhere = float(torch.tensor([0.0, 2]).softmax(0)[1])
    assert {organ: own.own.expected_dice for organ, own in signs.items()} == {
        "left kidney": pytest.approx(2 * here / (here + there + 1)),
        "right kidney": pytest.approx(2 * everywhere / (everywhere + 1)),
    }


def test_prior_channels_reach_the_next_stage() -> None:
    """The coarse stage's probability of class 2 is the fine network's third input channel."""
    seen: list[np.ndarray] = []

    @each
    def watch(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        seen.append(x_BCIJK)
        return constant(1)(x_BCIJK, (tile,))

    drive(RECIPE, constant(2), watch)
    assert len(seen) > 1
    for x_BCIJK in seen:
        assert tuple(x_BCIJK.shape) == (1, 3, 16, 16, 12)
        assert float(x_BCIJK[:, 1].max()) < 1e-6
        assert float(x_BCIJK[:, 2].min()) > 1 - 1e-6


@pytest.mark.parametrize(("found", "stop"), [("000111110000", 16), ("000111111111", 24)])
def test_a_prior_of_fixed_shape_is_background_beyond_its_box(found: str, stop: int) -> None:
    """The box starts at 6 along the first axis, and ends inside the scan or with it. The middle stage is
    certain of the left kidney there, the last one reads it in a tile that extends four voxels beyond the
    scan."""
    seen: list[np.ndarray] = []

    @each
    def watch(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        seen.append(x_BCIJK[0, 1])
        return constant(1)(x_BCIJK, (tile,))

    middle = {
        "roi": BoxAround(of="first", labels=("left kidney",), margin_mm=0),
        "grid": FixedShape(shape=(stop - 6, 20, 16), tile=(12, 20, 16)),
    }
    last = {
        "grid": FINE.grid.model_copy(update={"tile": (32, 20, 16)}),
        "inputs": (ImageInput(), PriorInput(of="middle", labels=("left kidney",))),
    }
    recipe = chain(("first", {}), ("middle", middle), ("last", last), roi_expansion=False)
    networks = by_name({"first": stripes(found), "middle": constant(1), "last": watch})
    result = Cascade(recipe, SCHEMA, networks, CPU).run(case())
    expected = np.zeros((32, 20, 16))
    expected[4 + 6 : 4 + 16 if stop == 16 else 32] = 1  # beyond the scan its edge is repeated
    assert len(seen) == 1
    np.testing.assert_allclose(seen[0], expected, atol=1e-6)
    kept = result.stages["middle"]
    assert kept.grid == kept.region.grid  # without the added voxels, which only priors need


def test_only_tiles_that_touch_the_region_are_computed() -> None:
    """Two far corners of the scan: the tiles between them are skipped, and counted."""
    small = with_stages(fine={"grid": FINE.grid.model_copy(update={"tile": (4, 4, 4), "overlap": 0.0})})
    scan = stage_input.prepare(case(), small)
    mask = np.zeros(scan.grid.shape, dtype=np.bool_)
    mask[:4, :4, :4] = mask[-3:, -2:, -4:] = True
    region = Region.of_mask(scan.grid, mask)
    assert region is not None
    asked: list[Tile] = []

    @each
    def watch(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        asked.append(tile)
        return constant(1)(x_BCIJK, (tile,))

    stage = small.stages[1].model_copy(update={"inputs": (ImageInput(),)})
    course = SlidingWindow(
        stage_input.StageView(stage, scan.grid, region), scan, {}, SCHEMA.names, watch, CPU
    )
    prior, record = course.predict(), course.record
    assert [t.inner for t in asked] == [Box((0, 0, 0), (4, 4, 4)), Box((20, 16, 12), (24, 20, 16))]
    assert (record.stage, record.tiles, record.tiles_skipped) == ("fine", 2, 6 * 5 * 4 - 2)
    assert record.region_share == pytest.approx((64 + 24) / (24 * 20 * 16))
    winner = prior.probabilities.argmax(axis=0)
    # Whole tiles are predicted; voxels outside the region are background.
    assert int((winner == 1).sum()) == 2 * 64
    assert bool((winner[mask] == 1).all())


def test_a_ring_of_background_where_the_region_ends_inside_the_scan() -> None:
    """The edge values of a prior are repeated outside its grid, and must be background beyond the region."""
    scan = stage_input.prepare(case(), RECIPE)
    region = Region(scan.grid, Box((5, 0, 6), (15, 20, 16)))
    stage = FINE.model_copy(update={"inputs": (ImageInput(),)})
    view = stage_input.StageView(stage, scan.grid, region)
    prior = SlidingWindow(view, scan, {}, SCHEMA.names, constant(1), CPU).predict()
    assert prior.grid == scan.grid.crop(Box((4, 0, 5), (16, 20, 16)))  # no ring at the faces of the scan
    foreground = prior.probabilities[1]
    ring = np.ones(prior.grid.shape, dtype=np.bool_)
    ring[1:-1, :, 1:] = False
    assert float(foreground[ring].max()) == 0.0
    assert float(prior.probabilities[0][ring].min()) == 1.0
    assert float(foreground[~ring].min()) > 1 - 1e-6
    reader = stage_input.StageView(FINE, scan.grid, Region.whole(scan.grid))
    beyond = network_input(reader, scan, {"coarse": prior}, Box((16, 0, 0), (24, 20, 16)))
    assert float(np.abs(beyond[1:]).max()) == 0.0


def test_valid_convolutions_answer_for_the_middle_of_what_they_read() -> None:
    changes = {
        "network": UNet3D(channels=(4, 8)),
        "grid": FINE.grid.model_copy(update={"tile": (24, 24, 20), "padding": "valid", "overlap": 0.0}),
    }
    asked: list[Tile] = []

    @each
    def watch(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        asked.append(tile)
        return threshold(x_BCIJK, (tile,))

    valid = drive(with_stages(fine=changes), constant(1), watch)
    assert {t.outer.shape for t in asked} == {(24, 24, 20)}
    assert {t.inner.shape for t in asked} == {(8, 8, 4)}
    truth = thresholds(stage_input.prepare(case(), RECIPE).image.data[0])
    assert np.array_equal(valid.labels.data.astype(np.int64), truth)


def test_the_atlas_prior_is_made_once_per_scan_and_read_like_a_stage_s() -> None:
    asked: list[stage_input.PreparedScan] = []

    def atlas_of(scan: stage_input.PreparedScan) -> StagePrediction:
        asked.append(scan)
        probabilities = np.zeros((3, *scan.grid.shape), dtype=np.float32)
        probabilities[2] = 1.0
        return StagePrediction(probabilities, scan.grid, SCHEMA.names, Region.whole(scan.grid), ATLAS)

    seen: list[np.ndarray] = []

    @each
    def watch(x_BCIJK: np.ndarray, tile: Tile) -> np.ndarray:
        seen.append(x_BCIJK)
        return constant(1)(x_BCIJK, (tile,))

    recipe = with_stages(fine={"inputs": (ImageInput(), AtlasInput(labels="all"))})
    networks = by_name({"coarse": constant(1), "fine": watch})
    result = Cascade(recipe, SCHEMA, networks, CPU, atlas_of=atlas_of).run(case())
    assert [scan.id for scan in asked] == ["a"]
    assert {tuple(x.shape) for x in seen} == {(1, 3, 16, 16, 12)}
    assert {float(x[:, 1].max()) for x in seen} == {0.0}
    assert {float(x[:, 2].min()) for x in seen} == {1.0}
    assert list(result.seconds) == ["prepare", "atlas", "coarse", "fine", "fuse"]
    assert list(result.stages) == ["coarse", "fine"]  # stage predictions only


def test_every_step_has_its_seconds() -> None:
    result = drive(RECIPE, threshold, threshold)
    assert list(result.seconds) == ["prepare", "coarse", "fine", "fuse"]
    assert min(result.seconds.values()) > 0


def test_a_stage_with_the_name_of_a_step_does_not_replace_its_seconds() -> None:
    """As of a model called ``total`` that was combined with others."""
    recipe = graph.renamed(RECIPE, {"coarse": "prepare", "fine": "total"})
    networks = by_name({"prepare": constant(1), "total": constant(1)})
    result = Cascade(recipe, SCHEMA, networks, CPU).run(case())
    assert list(result.seconds) == ["prepare", "stage prepare", "stage total", "fuse"]


def test_a_module_answers_with_its_finest_probabilities_and_without_gradient() -> None:
    class Deep(nn.Module):
        def forward(self, x_BCIJK: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x_BCIJK * 2, x_BCIJK[:, :, ::2]

    tile = Tile(Box((0, 0, 0), (4, 4, 4)), Box((0, 0, 0), (4, 4, 4)))
    x_BCIJK = torch.rand(1, 2, 4, 4, 4, requires_grad=True)
    answer = as_network(Deep(), CPU)(x_BCIJK, (tile,))
    torch.testing.assert_close(answer, (x_BCIJK * 2).softmax(dim=1).detach(), rtol=1e-6, atol=1e-7)
    assert not answer.requires_grad


def test_channels_of_image_and_priors_add_up() -> None:
    def count(*specs: ImageInput | PriorInput, channels: int = 1) -> int:
        stage: Stage = FINE.model_copy(update={"inputs": specs})
        return input_channels(stage, RECIPE, SCHEMA, channels)

    assert count(ImageInput()) == 1
    assert count(ImageInput(), channels=3) == 3
    assert count(ImageInput(channel=1), channels=3) == 1
    assert count(ImageInput(), PriorInput(of="coarse")) == 3
    assert count(ImageInput(), PriorInput(of="coarse", labels=("right kidney",))) == 2


def test_a_scan_of_one_slice_is_segmented() -> None:
    image = case().image
    slice_ = Case("a", image.crop(Box((0, 0, 8), (24, 20, 9))))
    result = drive(RECIPE, constant(1), threshold, slice_)
    assert result.labels.grid.shape == (24, 20, 1)
    truth = thresholds(stage_input.prepare(slice_, RECIPE).image.data[0])
    assert np.array_equal(result.labels.data, truth)
