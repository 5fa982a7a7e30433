"""Fusion of predictions into the label map compared with the naive one at full size, with numpy and torch."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.grids import indices, oriented
from helpers.probabilities import LIBRARIES, naive, random_probabilities
from zoomseg.core.arrays import Array, to_numpy
from zoomseg.core.case import StagePrediction
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.morphology import largest_component
from zoomseg.core.region import Region
from zoomseg.core.resample import nearest_index, resample_data
from zoomseg.pipeline import fusion
from zoomseg.pipeline.argmax import LabelDecision
from zoomseg.pipeline.fusion import FusedLabelMap
from zoomseg.recipe.spec import ArgmaxPlace, FusionKind

SOURCE = oriented((9, 8, 7), (3.0, 3.0, 5.0), (-12.0, 30.0, 8.0))


def with_arrays(one: StagePrediction, library: Callable[[torch.Tensor], Array]) -> StagePrediction:
    return dataclasses.replace(one, probabilities=library(one.probabilities))


# --- blocks ---------------------------------------------------------------------------------------


@given(st.tuples(*(st.integers(-5, 5) for _ in range(3))), st.tuples(*(st.integers(1, 9) for _ in range(3))))
def test_blocks_cover_every_voxel_once_and_are_small(
    start: tuple[int, int, int], shape: tuple[int, int, int]
) -> None:
    box = Box(start, (start[0] + shape[0], start[1] + shape[1], start[2] + shape[2]))
    parts = fusion.blocks(box, voxels=60)
    assert sum(part.voxels for part in parts) == box.voxels
    assert all(part.intersect(box) == part for part in parts)
    for a, b in itertools.combinations(parts, 2):
        assert a.intersect(b).empty
    assert all(part.voxels <= 60 or part.shape[2] == 1 for part in parts)


def test_an_empty_box_has_no_blocks() -> None:
    assert fusion.blocks(Box((3, 3, 3), (3, 5, 5))) == []


# --- replace in roi -------------------------------------------------------------------------------

SCHEMA = LabelSchema.consecutive(("aorta", "liver", "pancreas", "spleen"))
SCAN = oriented((18, 16, 14), (1.5, 1.5, 2.5), (-12.75, 29.25, 6.75))
"""Twice as fine as SOURCE, over the same field of view."""


def filled(c: int = 4) -> FusedLabelMap:
    """A label map in which an earlier stage assigned one class to all voxels."""
    return FusedLabelMap(SCAN, SCHEMA, torch.full(SCAN.shape, c, dtype=torch.uint8))


def labels_after(
    kind: FusionKind,
    before: FusedLabelMap,
    predictions: Sequence[StagePrediction],
    place: ArgmaxPlace = "scan_grid",
    atlas: StagePrediction | None = None,
) -> np.ndarray:
    """The label map after fusion into ``before``; it must be equal with numpy and torch."""
    found = []
    for library in LIBRARIES:
        fused = dataclasses.replace(before, labels=library(before.labels))
        how = LabelDecision(place)
        inputs = [fusion.FusionInput(with_arrays(one, library), how) for one in predictions]
        fusion.fuse(kind, fused, inputs, None if atlas is None else with_arrays(atlas, library))
        assert type(fused.labels) is type(library(before.labels))
        found.append(to_numpy(fused.labels))
    assert np.array_equal(*found)
    return found[0]


def certain_classes(
    region: Region, classes: torch.Tensor, labels: tuple[str, ...] = ("liver", "spleen")
) -> StagePrediction:
    hot = torch.nn.functional.one_hot(classes.long(), 1 + len(labels)).movedim(-1, 0).float()
    return StagePrediction(hot, SOURCE, labels, region, "fine")


def pattern(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", ["scan_grid", "stage_grid"])
def test_predictions_enter_as_the_case_s_classes(place: ArgmaxPlace) -> None:
    classes = torch.ones(SOURCE.shape)
    for factor, expected in ((1, "liver"), (2, "spleen"), (0, None)):
        prediction = certain_classes(Region.whole(SOURCE), factor * classes)
        found = labels_after("replace_in_roi", filled(), [prediction], place)
        assert (found == (SCHEMA.class_of(expected) if expected else 0)).all()


@pytest.mark.parametrize("place", ["scan_grid", "stage_grid"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("thickness", [1, 2, 5])
def test_slab_by_slab_is_the_same_as_at_once(place: ArgmaxPlace, masked: bool, thickness: int) -> None:
    """Forty classes, whose full-size prediction never exists at one time."""
    scan = Grid.from_spacing((26, 22, 31), (1.1, 1.3, 0.9))
    stage = scan.with_spacing((3.0, 3.0, 2.3))
    names = tuple(f"organ {n}" for n in range(39))
    probabilities = random_probabilities(stage.shape)
    mask = (torch.rand(stage.shape, generator=torch.Generator().manual_seed(1)) < 0.7).numpy()
    region = Region(stage, stage.box, mask if masked else None)
    blank = FusedLabelMap.blank(scan, LabelSchema.consecutive(names), probabilities)
    prediction = StagePrediction(probabilities, stage, names, region, "fine")
    whole = labels_after("replace_in_roi", blank, [prediction], place)
    assert len(np.unique(whole)) > 20
    for library in LIBRARIES:
        fused = FusedLabelMap.blank(scan, blank.schema, library(probabilities))
        slabs = fusion.SlabFusion(fused, stage, names, region, LabelDecision(place))
        for slab in probabilities.split(thickness, dim=3):
            slabs.add(library(slab))
        assert np.array_equal(to_numpy(fused.labels), whole)


def test_a_stage_that_is_not_fused_leaves_the_label_map() -> None:
    prediction = certain_classes(Region.whole(SOURCE), torch.ones(SOURCE.shape))
    assert (labels_after("none", filled(), [prediction]) == 4).all()


@pytest.mark.parametrize("place", ["scan_grid", "stage_grid"])
@pytest.mark.parametrize("voxels", [50, 1000, 10**9], ids="blocks of {}".format)
def test_outside_the_region_nothing_changes(
    place: ArgmaxPlace, voxels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fusion.blocks, "__defaults__", (voxels,))
    box = Box((2, 1, 3), (8, 7, 6))
    mask = (torch.rand(box.shape, generator=torch.Generator().manual_seed(1)) < 0.5).numpy()
    prediction = certain_classes(Region(SOURCE, box, mask), pattern(SOURCE.shape))
    found = torch.from_numpy(labels_after("replace_in_roi", filled(), [prediction], place))
    inside = torch.from_numpy(Region(SOURCE, box, mask).mask_in(SOURCE.box))
    inside = inside.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (found[~inside] == 4).all()
    decided = (
        prediction.probabilities.argmax(dim=0)
        .byte()
        .repeat_interleave(2, 0)
        .repeat_interleave(2, 1)
        .repeat_interleave(2, 2)
        if place == "stage_grid"
        else naive(prediction.probabilities, SOURCE, SCAN)[0]
    )
    wanted = torch.tensor([0, SCHEMA.class_of("liver"), SCHEMA.class_of("spleen")], dtype=torch.uint8)
    assert torch.equal(found[inside], wanted[decided.long()][inside])


def test_a_box_without_a_mask_is_replaced_whole() -> None:
    box = Box((2, 1, 3), (8, 7, 6))
    prediction = certain_classes(Region(SOURCE, box), torch.ones(SOURCE.shape))
    found = labels_after("replace_in_roi", filled(), [prediction])
    at = torch.from_numpy(indices(SCAN))
    inside = ((at >= 2 * torch.tensor(box.start)) & (at < 2 * torch.tensor(box.stop))).all(dim=-1)
    assert (found[inside] == 2).all()
    assert (found[~inside] == 4).all()


def test_nothing_is_erased_around_a_box_between_voxels() -> None:
    """The box lies from 3.5 to 6.7 in the scan's voxels, of which 7 is covered in part."""
    scan = Grid.from_spacing((12, 12, 12), (1.0, 1.0, 1.0))
    stage, box = scan.with_spacing((0.8, 0.8, 0.8)), Box((5, 5, 5), (9, 9, 9))
    wide = box.expand((1, 1, 1))
    spleen = torch.zeros(wide.shape)
    spleen[1:-1, 1:-1, 1:-1] = 1
    probabilities = torch.stack([1 - spleen, 0 * spleen, spleen])
    region = Region(stage, box)
    prediction = StagePrediction(probabilities, stage.crop(wide), ("liver", "spleen"), region, "fine")
    before = FusedLabelMap(scan, SCHEMA, torch.full(scan.shape, LIVER, dtype=torch.uint8))
    expected = np.full(scan.shape, LIVER)
    expected[4:7, 4:7, 4:7] = SPLEEN
    assert np.array_equal(labels_after("replace_in_roi", before, [prediction]), expected)


def test_a_blank_label_map_is_background_plane_by_plane_in_memory() -> None:
    for library in LIBRARIES:
        like = library(torch.zeros(1))
        fused = FusedLabelMap.blank(SCAN, SCHEMA, like)
        assert type(fused.labels) is type(like)
        labels = to_numpy(fused.labels)
        assert labels.shape == SCAN.shape
        assert labels.dtype == np.uint8
        assert labels.flags.f_contiguous
        assert not labels.any()


# --- several stages: paste, most probable, majority vote ------------------------------------------

BOX = Box((2, 1, 1), (8, 7, 6))
GRIDS = {
    "whole": SOURCE,
    "part": SOURCE.crop(BOX.expand((1, 1, 1))),
    "thick": SOURCE.with_spacing((4.0, 2.5, 7.0)),
    "shifted": oriented((16, 15, 9), (2.0, 2.0, 4.0), (-14.0, 26.0, 10.0)),
}
OBLIQUE = oriented((16, 15, 9), (2.0, 2.0, 4.0), (-14.0, 26.0, 10.0), angles_deg=(8, -5, 12))
PLACES: tuple[ArgmaxPlace, ...] = ("scan_grid", "stage_grid")


def undecided(grid: Grid, labels: tuple[str, ...], seed: int, masked: bool = True) -> StagePrediction:
    """Organs in about a third of the voxels, with arbitrary probabilities, half of them in the region."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1 + len(labels), *grid.shape, generator=generator) * 1.5
    logits[0] += 0.5 * len(labels)
    mask = (torch.rand(grid.shape, generator=generator) < 0.5).numpy()
    region = Region.of_mask(grid, mask) if masked else Region.whole(grid)
    assert region is not None
    return StagePrediction(logits.softmax(dim=0), grid, labels, region, f"stage{seed}")


def three(masked: bool = True) -> list[StagePrediction]:
    return [
        undecided(GRIDS["whole"], ("liver", "spleen"), 1, masked),
        undecided(GRIDS["thick"], ("aorta", "liver", "pancreas"), 2, masked),
        undecided(GRIDS["shifted" if masked else "whole"], ("spleen",), 3, masked),
    ]


def full_size(one: StagePrediction, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, highest probability and membership of the region, computed for all voxels at once."""
    inside = one.region.on(SCAN).mask_in(SCAN.box)
    if place == "stage_grid":
        probabilities = torch.stack(
            [nearest_index(channel, one.grid, SCAN) for channel in one.probabilities]
        ).numpy()
    else:
        probabilities = resample_data(one.probabilities, one.grid, SCAN, antialias=False).numpy()
    classes = np.array([0, *(SCHEMA.class_of(name) for name in one.labels)])
    return classes[probabilities.argmax(axis=0)], probabilities.max(axis=0), inside


def random_map(seed: int = 9) -> FusedLabelMap:
    generator = torch.Generator().manual_seed(seed)
    return FusedLabelMap(SCAN, SCHEMA, torch.randint(0, 5, SCAN.shape, generator=generator).byte())


def naive_most_probable(before: np.ndarray, predictions: Sequence[StagePrediction], place: str) -> np.ndarray:
    own = [SCHEMA.class_of(name) for one in predictions for name in one.labels]
    after = np.where(np.isin(before, own), 0, before)
    candidates = [full_size(one, place) for one in predictions]
    scores = np.stack([np.where(asked & (label > 0), p, -1) for label, p, asked in candidates])
    labels = np.stack([label for label, _, _ in candidates])
    winner = np.take_along_axis(labels, scores.argmax(axis=0)[None], axis=0)[0]
    return np.where(scores.max(axis=0) > 0, winner, after)


def naive_vote(before: np.ndarray, predictions: Sequence[StagePrediction], place: str) -> np.ndarray:
    after = before.copy()
    candidates = [full_size(one, place) for one in predictions]
    for at in np.ndindex(before.shape):
        votes = [(int(label[at]), float(p[at])) for label, p, asked in candidates if asked[at]]
        number = Counter(label for label, _ in votes)
        most = [(p, label) for label, p in votes if number[label] == max(number.values())]
        if most:
            after[at] = max(most, key=lambda vote: vote[0])[1]
    return after


@pytest.fixture(params=[1200, 10**9], ids="blocks of {}".format)
def block_voxels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(fusion, "BLOCK_VOXELS", request.param)
    monkeypatch.setattr(fusion.blocks, "__defaults__", (request.param,))
    return int(request.param)


@pytest.mark.usefixtures("block_voxels")
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("masked", [True, False], ids=["masks", "boxes"])
class TestEqualsTheNaiveFullSizeComputation:
    def test_paste(self, place: ArgmaxPlace, masked: bool) -> None:
        wanted = random_map().labels.numpy()
        for one in three(masked):
            wanted = naive_most_probable(wanted, [one], place)
        assert np.array_equal(labels_after("paste", random_map(), three(masked), place), wanted)

    def test_most_probable(self, place: ArgmaxPlace, masked: bool) -> None:
        before = random_map().labels.numpy()
        wanted = naive_most_probable(before, three(masked), place)
        assert set(np.unique(wanted)) == set(range(5))
        assert np.array_equal(labels_after("most_probable", random_map(), three(masked), place), wanted)
        # This differs from pasting one after the other, as they disagree at some voxels.
        assert not np.array_equal(labels_after("paste", random_map(), three(masked), place), wanted)

    def test_most_probable_in_any_order(self, place: ArgmaxPlace, masked: bool) -> None:
        forward, backward = three(masked), three(masked)[::-1]
        assert np.array_equal(
            labels_after("most_probable", random_map(), forward, place),
            labels_after("most_probable", random_map(), backward, place),
        )

    def test_majority_vote(self, place: ArgmaxPlace, masked: bool) -> None:
        """Three stages that all predict all, and a fourth that predicts one label."""
        grids = [SOURCE, GRIDS["thick"], GRIDS["shifted" if masked else "whole"], GRIDS["part"]]
        labels = [SCHEMA.names] * 3 + [("liver",)]
        predictions = [
            undecided(g, names, n, masked) for n, (g, names) in enumerate(zip(grids, labels, strict=True))
        ]
        before = random_map().labels.numpy()
        wanted = naive_vote(before, predictions, place)
        assert set(np.unique(wanted)) == set(range(5))
        assert np.array_equal(labels_after("majority_vote", random_map(), predictions, place), wanted)


def certain(
    classes: Sequence[float], labels: tuple[str, ...], probability: float, name: str = "a"
) -> StagePrediction:
    """A prediction for a row of voxels: a label (1, 2, ...) with ``probability`` and background with the
    rest, or background with probability 1."""
    hot = torch.zeros(1 + len(labels), len(classes), 1, 1)
    for n, c in enumerate(classes):
        hot[0, n] = 1.0
        if c:
            hot[0, n], hot[int(c), n] = 1 - probability, probability
    grid = Grid.from_spacing((len(classes), 1, 1), (1.0, 1.0, 1.0))
    return StagePrediction(hot, grid, labels, Region.whole(grid), name)


def row(*classes: int) -> FusedLabelMap:
    grid = Grid.from_spacing((len(classes), 1, 1), (1.0, 1.0, 1.0))
    return FusedLabelMap(grid, SCHEMA, torch.tensor(classes, dtype=torch.uint8).reshape(-1, 1, 1))


def after(kind: FusionKind, before: FusedLabelMap, *predictions: StagePrediction) -> list[int]:
    return [int(c) for c in labels_after(kind, before, predictions).flat]


AORTA, LIVER, PANCREAS, SPLEEN = range(1, 5)


def test_paste_erases_its_labels_everywhere_and_leaves_all_others_under_its_background() -> None:
    grid = row(0, 0, 0, 0, 0, 0).grid
    prediction = certain([0, 1, 0, 1, 0, 0], ("liver",), 0.9)
    inside = Region(grid, Box((0, 0, 0), (4, 1, 1)))
    limited = dataclasses.replace(prediction, region=inside)
    found = after("paste", row(LIVER, SPLEEN, SPLEEN, 0, LIVER, AORTA), limited)
    assert found == [0, LIVER, SPLEEN, LIVER, 0, AORTA]


def test_paste_keeps_to_its_region() -> None:
    grid = row(0, 0, 0).grid
    prediction = certain([1, 1, 1], ("liver",), 0.9)
    limited = dataclasses.replace(prediction, region=Region(grid, Box((1, 0, 0), (2, 1, 1))))
    assert after("paste", row(SPLEEN, SPLEEN, SPLEEN), limited) == [SPLEEN, LIVER, SPLEEN]


def test_the_last_of_several_that_paste_one_label_decides() -> None:
    first, second = certain([1, 1, 0], ("liver",), 0.9), certain([0, 1, 1], ("liver",), 0.6)
    assert after("paste", row(0, 0, 0), first, second) == [0, LIVER, LIVER]


def test_the_higher_probability_wins_and_background_is_no_finding() -> None:
    liver = certain([1, 1, 1, 0, 0], ("liver",), 0.7, "a")
    spleen = certain([0, 1, 0, 1, 0], ("spleen",), 0.9, "b")
    before = row(SPLEEN, AORTA, AORTA, 0, AORTA)
    assert after("most_probable", before, liver, spleen) == [LIVER, SPLEEN, LIVER, SPLEEN, AORTA]


def test_equally_probable_is_the_first() -> None:
    liver, spleen = certain([1], ("liver",), 0.7), certain([1], ("spleen",), 0.7)
    assert after("most_probable", row(0), liver, spleen) == [LIVER]
    assert after("most_probable", row(0), spleen, liver) == [SPLEEN]


def test_votes_come_before_probability_and_probability_before_order() -> None:
    names = ("liver", "spleen")
    votes = [
        certain([1, 1, 1, 0, 2], names, 0.6),
        certain([1, 2, 0, 0, 1], names, 0.7),
        certain([2, 0, 2, 1, 2], names, 1.0),
    ]
    # Two of three; all different: background is the surest; then background before a spleen as sure;
    # background may have the most votes; two of three.
    assert after("majority_vote", row(0, 0, 0, 3, 3), *votes) == [LIVER, 0, 0, 0, SPLEEN]


def test_who_was_not_asked_does_not_vote() -> None:
    grid = row(0, 0, 0).grid
    left = Region(grid, Box((0, 0, 0), (2, 1, 1)))
    one = dataclasses.replace(certain([1, 0, 1], ("liver",), 0.9), region=left)
    two = dataclasses.replace(certain([1, 1, 1], ("liver",), 0.8), region=left)
    assert after("majority_vote", row(SPLEEN, SPLEEN, SPLEEN), one, two) == [LIVER, 0, SPLEEN]


# --- times the atlas ------------------------------------------------------------------------------


def atlas_prior(rows: Sequence[Sequence[float]], labels: tuple[str, ...], grid: Grid) -> StagePrediction:
    probabilities = torch.tensor(rows).reshape(1 + len(labels), *grid.shape)
    return StagePrediction(probabilities, grid, labels, Region.whole(grid), "atlas")


def test_times_atlas_is_bayes_by_hand() -> None:
    grid = Grid.from_spacing((4, 1, 1), (1.0, 1.0, 1.0))
    atlas = atlas_prior(
        [[0.2, 0.9, 0.5, 1.0], [0.5, 0.0, 0.1, 0.0], [0.3, 0.1, 0.4, 0.0]], ("aorta", "liver"), grid
    )
    own = StagePrediction(
        torch.tensor([[0.6, 0.4, 0.5, 0.0], [0.4, 0.6, 0.5, 1.0]]).reshape(2, 4, 1, 1),
        grid,
        ("liver",),
        Region.whole(grid),
        "fine",
    )
    # The aorta is background to a stage that predicts the liver only: 0.7, 0.9, 0.6 and 1 for background.
    liver = [0.4 * 0.3 / (0.6 * 0.7 + 0.4 * 0.3), 0.06 / (0.36 + 0.06), 0.2 / (0.3 + 0.2), 0.0]
    for library in LIBRARIES:
        found = fusion.times_atlas(with_arrays(own, library), with_arrays(atlas, library))
        assert found.probabilities[1].reshape(-1).tolist() == pytest.approx(liver, abs=1e-6)
        assert found.probabilities[0].reshape(-1).tolist() == pytest.approx([1 - p for p in liver], abs=1e-6)
        mixed = fusion.times_atlas(with_arrays(own, library), with_arrays(atlas, to_numpy))
        assert isinstance(mixed.probabilities, type(found.probabilities))
        assert mixed.probabilities.reshape(-1).tolist() == found.probabilities.reshape(-1).tolist()
    spleen = FusedLabelMap(grid, SCHEMA, torch.full(grid.shape, SPLEEN, dtype=torch.uint8))
    assert not labels_after("replace_times_atlas", spleen, [own], atlas=atlas).any()


def test_what_neither_prediction_nor_atlas_allow_is_background() -> None:
    grid = Grid.from_spacing((2, 1, 1), (1.0, 1.0, 1.0))
    atlas = atlas_prior([[1.0, 0.5], [0.0, 0.5]], ("liver",), grid)
    own = atlas_prior([[0.0, 0.5], [1.0, 0.5]], ("liver",), grid)
    for library in LIBRARIES:
        found = fusion.times_atlas(with_arrays(own, library), with_arrays(atlas, library))
        assert found.probabilities.reshape(2, 2).tolist() == [[1.0, 0.5], [0.0, 0.5]]


@pytest.mark.usefixtures("block_voxels")
@pytest.mark.parametrize("place", PLACES)
def test_replace_times_atlas_equals_the_naive_full_size_computation(place: ArgmaxPlace) -> None:
    own = undecided(GRIDS["thick"], ("liver", "spleen"), 4)
    atlas = undecided(OBLIQUE, SCHEMA.names, 5, masked=False)
    shares = resample_data(atlas.probabilities, atlas.grid, own.grid)
    liver, spleen = (shares[1 + SCHEMA.names.index(name)] for name in ("liver", "spleen"))
    product = own.probabilities * torch.stack([1 - liver - spleen, liver, spleen])
    product = product / product.sum(dim=0)
    label, _, asked = full_size(dataclasses.replace(own, probabilities=product), place)
    wanted = np.where(asked, label, random_map().labels.numpy())
    found = labels_after("replace_times_atlas", random_map(), [own], place, atlas)
    assert np.array_equal(found, wanted)
    assert not np.array_equal(labels_after("replace_in_roi", random_map(), [own], place), found)


# --- connected parts --------------------------------------------------------------------------------


def test_only_the_largest_component_of_the_labels_named_stays() -> None:
    grid = Grid.from_spacing((12, 10, 8), (1.0, 1.0, 3.0))
    labels = torch.zeros(grid.shape, dtype=torch.uint8)
    labels[1:4, 1:4, 1:3] = LIVER
    labels[4, 4, 3] = LIVER  # touches by a corner: one with the above
    labels[8:10, 1:4, 1:4] = LIVER  # equally large except for that corner
    labels[9, 2, 2] = SPLEEN  # in the middle of the lesser liver
    labels[0, 9, 7] = labels[11, 9, 7] = AORTA
    wanted = labels.clone()
    wanted[8:10, 1:4, 1:4] = 0
    wanted[9, 2, 2] = SPLEEN
    for library in LIBRARIES:
        fused = FusedLabelMap(grid, SCHEMA, library(labels))
        fusion.keep_parts(fused, ("liver", "pancreas", "spleen"), largest_component)
        assert np.array_equal(to_numpy(fused.labels), wanted.numpy())
    assert int((wanted == LIVER).sum()) == 19
    assert int((wanted == AORTA).sum()) == 2


def test_no_labels_to_keep_parts_of_and_none_there() -> None:
    for library in LIBRARIES:
        labels = library(random_map().labels)
        fused = FusedLabelMap(SCAN, SCHEMA, labels)
        fusion.keep_parts(fused, (), np.zeros_like)
        assert np.array_equal(to_numpy(fused.labels), random_map().labels.numpy())
        blank = FusedLabelMap.blank(SCAN, SCHEMA, labels)
        fusion.keep_parts(blank, SCHEMA.names, largest_component)
        assert not blank.labels.any()


def test_only_the_labels_named_are_kept() -> None:
    for library in LIBRARIES:
        fused = FusedLabelMap(SCAN, SCHEMA, library(random_map().labels))
        fusion.keep_only(fused, ("liver", "spleen"))
        before = random_map().labels.numpy()
        assert np.array_equal(to_numpy(fused.labels), np.where(np.isin(before, (LIVER, SPLEEN)), before, 0))


@pytest.mark.parametrize("kind", ["replace_in_roi", "paste"])
@pytest.mark.parametrize("thickness", [3, 100])
def test_of_overlapping_labels_the_last_that_beats_background_stays(kind: str, thickness: int) -> None:
    """The most probable class by interpolated log-odds, computed for the whole scan."""
    scan = Grid.from_spacing((52, 22, 31), (1.1, 1.3, 0.9))  # more than one piece
    stage = scan.with_spacing((3.0, 3.0, 2.3))
    names = ("tumour", "core", "rim")
    logits = 3 * torch.randn((4, *stage.shape), generator=torch.Generator().manual_seed(2))
    logits[:, :5] = torch.tensor([6.0, 0, 0, 0])[:, None, None, None]  # background alone
    odds = resample_data((logits[1:] - logits[:1]).numpy(), stage, scan, antialias=False)
    expected = np.full(scan.shape, 0 if kind == "replace_in_roi" else 4)
    for c in range(3):
        expected[odds[c] > 0] = c + 1
    assert np.unique(expected).size == 4
    unlike = (np.abs(odds) < 1e-4).any(axis=0)  # float32 may decide differently
    schema, how = LabelSchema.consecutive((*names, "other")), LabelDecision(logs=True, overlap=True)
    for library in LIBRARIES:
        start = library(torch.full(scan.shape, 0 if kind == "replace_in_roi" else 4, dtype=torch.uint8))
        fused = FusedLabelMap(scan, schema, start)
        slabs = fusion.SlabFusion(fused, stage, names, Region.whole(stage), how, pasted=kind == "paste")
        for slab in logits.split(thickness, dim=3):
            slabs.add(library(slab))
        assert ((to_numpy(fused.labels) == expected) | unlike).all()
    prediction = StagePrediction(logits.softmax(dim=0), stage, names, Region.whole(stage), "fine")
    before = FusedLabelMap(
        scan, schema, torch.full(scan.shape, 0 if kind == "replace_in_roi" else 4, dtype=torch.uint8)
    )
    fusion.fuse(kind, before, [fusion.FusionInput(prediction, how)])  # type: ignore[arg-type]
    assert ((to_numpy(before.labels) == expected) | unlike).all()
