"""How answers enter the label map: the block-wise running argmax against the naive one."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lattices import SIGNED_PERMUTATIONS, boxes_in, indices, oriented
from zoomseg.core.case import StagePrediction
from zoomseg.core.components import largest_component
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.resample import nearest_index, resample_data
from zoomseg.pipeline import fusion
from zoomseg.pipeline.fusion import FusedLabelMap
from zoomseg.recipe.spec import ArgmaxPlace, FusionKind

SOURCE = oriented((9, 8, 7), (3.0, 3.0, 5.0), (-12.0, 30.0, 8.0))


def answers(shape: tuple[int, int, int], classes: int = 40, seed: int = 0) -> torch.Tensor:
    """Probabilities ``[classes, ...]`` as networks give them: background nearly everywhere, a few blobs of
    each class, sharp in places and undecided in others."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, *shape, generator=generator) * 3
    sharpness = torch.rand(shape, generator=generator) * 4
    logits[0] += 2
    return (logits * sharpness).softmax(dim=0)


def naive(probabilities: torch.Tensor, source: Grid, target: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Full-size argmax, and by how much the winner won."""
    full = resample_data(probabilities, source, target, antialias=False)
    top = full.topk(2, dim=0).values
    return full.argmax(dim=0).byte(), top[0] - top[1]


def agrees(probabilities: torch.Tensor, source: Grid, target: Grid) -> bool:
    """Equal, but where two classes are closer than rounding in a matrix product could tell apart."""
    wanted, lead = naive(probabilities, source, target)
    best, found = fusion.max_on(probabilities, source, target)
    assert found.dtype == torch.uint8
    assert torch.equal(fusion.argmax_on(probabilities, source, target), found)
    full = resample_data(probabilities, source, target, antialias=False)
    assert float((best - full.amax(dim=0)).abs().max()) < 1e-6
    return bool(((found == wanted) | (lead < 1e-6)).all()) and float((lead < 1e-6).float().mean()) < 0.01


TARGETS = {
    "same": SOURCE,
    "twice as fine": SOURCE.with_shape((18, 16, 14)),
    "coarser": SOURCE.downsampled((2, 2, 1.5)),
    "anisotropic": SOURCE.with_spacing((0.8, 2.9, 11.0)),
    "part of it": SOURCE.with_shape((18, 16, 14)).crop(Box((5, 2, 3), (13, 15, 9))),
    "larger than it": SOURCE.with_spacing((2.0, 2.5, 3.0)).crop(Box((-6, -3, -8), (21, 14, 17))),
    "beside it": SOURCE.crop(Box((12, 0, 0), (15, 8, 7))),
    "oblique": oriented((16, 15, 14), (2.0, 2.0, 3.0), (-14.0, 26.0, 10.0), angles_deg=(8, -5, 12)),
}


@pytest.mark.parametrize("name", TARGETS)
def test_argmax_equals_the_naive_one(name: str) -> None:
    assert agrees(answers(SOURCE.shape), SOURCE, TARGETS[name])


@pytest.mark.parametrize(("order", "flip"), SIGNED_PERMUTATIONS[::5])
def test_argmax_equals_the_naive_one_in_any_orientation(
    order: tuple[int, int, int], flip: tuple[int, int, int]
) -> None:
    target = oriented((13, 12, 11), (2.0, 2.2, 2.6), (0.0, 42.0, 25.0), order, flip)
    assert agrees(answers(SOURCE.shape, seed=1), SOURCE, target)


@settings(max_examples=40)
@given(st.data())
def test_argmax_equals_the_naive_one_wherever_classes_lie(data: st.DataObject) -> None:
    """Classes that exist in a box only, which may touch the source's edges."""
    probabilities = answers(SOURCE.shape, classes=6, seed=data.draw(st.integers(0, 1000)))
    logits = probabilities.log()
    for c in range(1, 6):
        outside = torch.ones(SOURCE.shape, dtype=torch.bool)
        outside[data.draw(boxes_in(SOURCE.shape)).slices] = False
        logits[c][outside] = -30
    spacing = data.draw(st.tuples(*(st.floats(1.0, 9.0) for _ in range(3))))
    grid = SOURCE.with_spacing(spacing)
    margin = data.draw(st.tuples(*(st.integers(0, 4) for _ in range(3))))
    assert agrees(logits.softmax(dim=0), SOURCE, grid.crop(grid.box.expand(margin)))


def test_ties_go_to_the_lower_class_as_in_argmax() -> None:
    """Two classes that share a scan half and half; halves and quarters are exact in floating point."""
    source = Grid.from_spacing((4, 4, 4), (2.0, 2.0, 2.0))
    probabilities = torch.zeros(4, *source.shape)
    probabilities[2, :2], probabilities[1, 2:] = 1, 1
    probabilities[:, 1, 1] = torch.tensor([0.25, 0.25, 0.25, 0.25])[:, None]
    probabilities[:, 3, 3] = torch.tensor([0.0, 0.0, 0.5, 0.5])[:, None]
    target = source.crop(Box((-1, 0, 0), (4, 4, 4))).with_shape((5, 8, 8))
    wanted, lead = naive(probabilities, source, target)
    assert (lead == 0).sum() > 10
    assert torch.equal(fusion.max_on(probabilities, source, target)[1], wanted)


def test_a_class_that_wins_with_exactly_its_share_is_found() -> None:
    """All 40 classes alike: 1/40 each, which is not exact in floating point."""
    probabilities = torch.full((40, 2, 2, 2), 1 / 40)
    probabilities[0] -= 1e-3
    probabilities[17] += 1e-3
    grid = Grid.from_spacing((2, 2, 2), (1.0, 1.0, 1.0))
    assert (fusion.max_on(probabilities, grid, grid.with_shape((5, 5, 5)))[1] == 17).all()


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


def canvas_of(classes: int = 4) -> FusedLabelMap:
    """A scan full of earlier answers."""
    return FusedLabelMap(SCAN, SCHEMA, torch.full(SCAN.shape, classes, dtype=torch.uint8))


def prior(
    region: Region, classes: torch.Tensor, labels: tuple[str, ...] = ("liver", "spleen")
) -> StagePrediction:
    hot = torch.nn.functional.one_hot(classes.long(), 1 + len(labels)).movedim(-1, 0).float()
    return StagePrediction(hot, SOURCE, labels, region, "fine")


def pattern(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", ["scan_grid", "stage_grid"])
def test_answers_enter_as_the_case_s_classes(place: str) -> None:
    canvas, classes = canvas_of(), torch.ones(SOURCE.shape)
    for factor, expected in ((1, "liver"), (2, "spleen"), (0, None)):
        answer = fusion.FusionInput(prior(Region.whole(SOURCE), factor * classes), place)  # type: ignore[arg-type]
        fusion.fuse("replace_in_roi", canvas, [answer])
        assert (canvas.labels == (SCHEMA.class_of(expected) if expected else 0)).all()


@pytest.mark.parametrize("place", ["scan_grid", "stage_grid"])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("thickness", [1, 2, 5])
def test_slab_by_slab_is_the_same_as_at_once(place: ArgmaxPlace, masked: bool, thickness: int) -> None:
    """Forty classes whose whole answer is never there."""
    scan = Grid.from_spacing((26, 22, 31), (1.1, 1.3, 0.9))
    stage = scan.with_spacing((3.0, 3.0, 2.3))
    names = tuple(f"organ {n}" for n in range(39))
    probabilities = answers(stage.shape)
    mask = torch.rand(stage.shape, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    region = Region(stage, stage.box, mask)
    whole, painted = (FusedLabelMap.blank(scan, LabelSchema.consecutive(names)) for _ in range(2))
    fusion.replace_in_roi(whole, StagePrediction(probabilities, stage, names, region, "fine"), place)
    painter = fusion.SlabFusion(painted, stage, names, region, place)
    for slab in probabilities.split(thickness, dim=3):
        painter.add(slab)
    assert len(whole.labels.unique()) > 20
    assert np.array_equal(painted.labels, whole.labels)


def test_a_stage_that_is_not_fused_leaves_the_canvas() -> None:
    canvas = canvas_of()
    fusion.fuse("none", canvas, [fusion.FusionInput(prior(Region.whole(SOURCE), torch.ones(SOURCE.shape)))])
    assert (canvas.labels == 4).all()


@pytest.mark.parametrize("place", ["scan_grid", "stage_grid"])
@pytest.mark.parametrize("voxels", [50, 1000, 10**9], ids="blocks of {}".format)
def test_outside_the_region_nothing_changes(place: str, voxels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion.blocks, "__defaults__", (voxels,))
    box = Box((2, 1, 3), (8, 7, 6))
    mask = torch.rand(box.shape, generator=torch.Generator().manual_seed(1)) < 0.5
    answer = prior(Region(SOURCE, box, mask), pattern(SOURCE.shape))
    canvas = canvas_of()
    fusion.replace_in_roi(canvas, answer, place)  # type: ignore[arg-type]
    inside = Region(SOURCE, box, mask).mask_in(SOURCE.box)
    inside = inside.repeat_interleave(2, 0).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (canvas.labels[~inside] == 4).all()
    decided = (
        answer.probabilities.argmax(dim=0)
        .byte()
        .repeat_interleave(2, 0)
        .repeat_interleave(2, 1)
        .repeat_interleave(2, 2)
        if place == "stage_grid"
        else naive(answer.probabilities, SOURCE, SCAN)[0]
    )
    wanted = torch.tensor([0, SCHEMA.class_of("liver"), SCHEMA.class_of("spleen")], dtype=torch.uint8)
    assert np.array_equal(canvas.labels[inside], wanted[decided.long()][inside])


def test_a_box_without_a_mask_is_replaced_whole() -> None:
    box = Box((2, 1, 3), (8, 7, 6))
    canvas = canvas_of()
    fusion.replace_in_roi(canvas, prior(Region(SOURCE, box), torch.ones(SOURCE.shape)))
    at = torch.from_numpy(indices(SCAN))
    inside = ((at >= 2 * torch.tensor(box.start)) & (at < 2 * torch.tensor(box.stop))).all(dim=-1)
    assert (canvas.labels[inside] == 2).all()
    assert (canvas.labels[~inside] == 4).all()


def test_blank_canvas_is_background() -> None:
    canvas = FusedLabelMap.blank(SCAN, SCHEMA)
    assert canvas.labels.shape == SCAN.shape
    assert not canvas.labels.any()


# --- several stages: paste, most probable, majority vote ------------------------------------------

BOX = Box((2, 1, 1), (8, 7, 6))
GRIDS = {
    "whole": SOURCE,
    "part": SOURCE.crop(BOX.expand((1, 1, 1))),
    "thick": SOURCE.with_spacing((4.0, 2.5, 7.0)),
    "oblique": oriented((16, 15, 9), (2.0, 2.0, 4.0), (-14.0, 26.0, 10.0), angles_deg=(8, -5, 12)),
}
PLACES: tuple[ArgmaxPlace, ...] = ("scan_grid", "stage_grid")


def undecided(grid: Grid, labels: tuple[str, ...], seed: int, masked: bool = True) -> StagePrediction:
    """Organs in a third of the voxels or so, with probabilities of all sizes, asked for in half of them."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(1 + len(labels), *grid.shape, generator=generator) * 1.5
    logits[0] += 0.5 * len(labels)
    mask = torch.rand(grid.shape, generator=generator) < 0.5
    region = Region.of_mask(grid, mask) if masked else Region.whole(grid)
    assert region is not None
    return StagePrediction(logits.softmax(dim=0), grid, labels, region, f"stage{seed}")


def three(masked: bool = True) -> list[StagePrediction]:
    return [
        undecided(GRIDS["whole"], ("liver", "spleen"), 1, masked),
        undecided(GRIDS["thick"], ("aorta", "liver", "pancreas"), 2, masked),
        undecided(GRIDS["oblique" if masked else "whole"], ("spleen",), 3, masked),
    ]


def full_size(answer: StagePrediction, place: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class, winning probability and whether asked, of every voxel of the scan, at once."""
    inside = answer.region.on(SCAN).mask_in(SCAN.box)
    if place == "stage_grid":
        probabilities = torch.stack(
            [nearest_index(channel, answer.grid, SCAN) for channel in answer.probabilities]
        ).numpy()
    else:
        probabilities = resample_data(answer.probabilities, answer.grid, SCAN, antialias=False).numpy()
    classes = np.array([0, *(SCHEMA.class_of(name) for name in answer.labels)])
    return classes[probabilities.argmax(axis=0)], probabilities.max(axis=0), inside


def random_canvas(seed: int = 9) -> FusedLabelMap:
    generator = torch.Generator().manual_seed(seed)
    return FusedLabelMap(SCAN, SCHEMA, torch.randint(0, 5, SCAN.shape, generator=generator).byte())


def naive_most_probable(before: np.ndarray, priors: Sequence[StagePrediction], place: str) -> np.ndarray:
    own = [SCHEMA.class_of(name) for answer in priors for name in answer.labels]
    after = np.where(np.isin(before, own), 0, before)
    heard = [full_size(answer, place) for answer in priors]
    scores = np.stack([np.where(asked & (label > 0), p, -1) for label, p, asked in heard])
    labels = np.stack([label for label, _, _ in heard])
    winner = np.take_along_axis(labels, scores.argmax(axis=0)[None], axis=0)[0]
    return np.where(scores.max(axis=0) > 0, winner, after)


def naive_vote(before: np.ndarray, priors: Sequence[StagePrediction], place: str) -> np.ndarray:
    after = before.copy()
    heard = [full_size(answer, place) for answer in priors]
    for at in np.ndindex(before.shape):
        votes = [(int(label[at]), float(p[at])) for label, p, asked in heard if asked[at]]
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
    def fused(self, kind: FusionKind, priors: Sequence[StagePrediction], place: ArgmaxPlace) -> np.ndarray:
        canvas = random_canvas()
        fusion.fuse(kind, canvas, [fusion.FusionInput(answer, place) for answer in priors])
        return canvas.labels.numpy()

    def test_paste(self, place: ArgmaxPlace, masked: bool) -> None:
        wanted = random_canvas().labels.numpy()
        for answer in three(masked):
            wanted = naive_most_probable(wanted, [answer], place)
        assert np.array_equal(self.fused("paste", three(masked), place), wanted)

    def test_most_probable(self, place: ArgmaxPlace, masked: bool) -> None:
        before = random_canvas().labels.numpy()
        wanted = naive_most_probable(before, three(masked), place)
        assert set(np.unique(wanted)) == set(range(5))
        assert np.array_equal(self.fused("most_probable", three(masked), place), wanted)
        # Not what pasting one after the other gives: there are places where they disagree.
        assert not np.array_equal(self.fused("paste", three(masked), place), wanted)

    def test_most_probable_in_any_order(self, place: ArgmaxPlace, masked: bool) -> None:
        forward, backward = three(masked), three(masked)[::-1]
        assert np.array_equal(
            self.fused("most_probable", forward, place), self.fused("most_probable", backward, place)
        )

    def test_majority_vote(self, place: ArgmaxPlace, masked: bool) -> None:
        """Three stages that all predict all, and a fourth that predicts one label."""
        grids = [SOURCE, GRIDS["thick"], GRIDS["oblique" if masked else "whole"], GRIDS["part"]]
        labels = [SCHEMA.names] * 3 + [("liver",)]
        priors = [
            undecided(g, names, n, masked) for n, (g, names) in enumerate(zip(grids, labels, strict=True))
        ]
        before = random_canvas().labels.numpy()
        wanted = naive_vote(before, priors, place)
        assert set(np.unique(wanted)) == set(range(5))
        assert np.array_equal(self.fused("majority_vote", priors, place), wanted)


def certain(
    classes: Sequence[float], labels: tuple[str, ...], probability: float, name: str = "a"
) -> StagePrediction:
    """On a row of voxels: a label (1, 2, ...) with ``probability``, background with the rest; or surely
    background."""
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


def after(kind: FusionKind, canvas: FusedLabelMap, *priors: StagePrediction) -> list[int]:
    fusion.fuse(kind, canvas, [fusion.FusionInput(answer) for answer in priors])
    return canvas.labels.flatten().tolist()


AORTA, LIVER, PANCREAS, SPLEEN = range(1, 5)


def test_paste_erases_its_labels_everywhere_and_leaves_all_others_under_its_background() -> None:
    grid = row(0, 0, 0, 0, 0, 0).grid
    answer = certain([0, 1, 0, 1, 0, 0], ("liver",), 0.9)
    inside = Region(grid, Box((0, 0, 0), (4, 1, 1)))
    limited = dataclasses.replace(answer, region=inside)
    found = after("paste", row(LIVER, SPLEEN, SPLEEN, 0, LIVER, AORTA), limited)
    assert found == [0, LIVER, SPLEEN, LIVER, 0, AORTA]


def test_paste_keeps_to_its_region() -> None:
    grid = row(0, 0, 0).grid
    answer = certain([1, 1, 1], ("liver",), 0.9)
    limited = dataclasses.replace(answer, region=Region(grid, Box((1, 0, 0), (2, 1, 1))))
    assert after("paste", row(SPLEEN, SPLEEN, SPLEEN), limited) == [SPLEEN, LIVER, SPLEEN]


def test_the_last_of_several_that_paste_one_label_decides() -> None:
    first, second = certain([1, 1, 0], ("liver",), 0.9), certain([0, 1, 1], ("liver",), 0.6)
    assert after("paste", row(0, 0, 0), first, second) == [0, LIVER, LIVER]


def test_the_higher_probability_wins_and_background_is_no_answer() -> None:
    liver = certain([1, 1, 1, 0, 0], ("liver",), 0.7, "a")
    spleen = certain([0, 1, 0, 1, 0], ("spleen",), 0.9, "b")
    canvas = row(SPLEEN, AORTA, AORTA, 0, AORTA)
    assert after("most_probable", canvas, liver, spleen) == [LIVER, SPLEEN, LIVER, SPLEEN, AORTA]


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
    found = fusion.times_atlas(own, atlas)
    # The aorta is background to a stage that predicts the liver only: 0.7, 0.9, 0.6 and 1 for background.
    liver = [0.4 * 0.3 / (0.6 * 0.7 + 0.4 * 0.3), 0.06 / (0.36 + 0.06), 0.2 / (0.3 + 0.2), 0.0]
    assert found.probabilities[1].flatten().tolist() == pytest.approx(liver, abs=1e-6)
    assert found.probabilities[0].flatten().tolist() == pytest.approx([1 - p for p in liver], abs=1e-6)
    canvas = FusedLabelMap(grid, SCHEMA, torch.full(grid.shape, SPLEEN, dtype=torch.uint8))
    fusion.fuse("replace_times_atlas", canvas, [fusion.FusionInput(own)], atlas)
    assert not canvas.labels.any()


@pytest.mark.usefixtures("block_voxels")
@pytest.mark.parametrize("place", PLACES)
def test_replace_times_atlas_equals_the_naive_full_size_computation(place: ArgmaxPlace) -> None:
    own = undecided(GRIDS["thick"], ("liver", "spleen"), 4)
    atlas = undecided(GRIDS["oblique"], SCHEMA.names, 5, masked=False)
    shares = resample_data(atlas.probabilities, atlas.grid, own.grid)
    liver, spleen = (shares[1 + SCHEMA.names.index(name)] for name in ("liver", "spleen"))
    product = own.probabilities * torch.stack([1 - liver - spleen, liver, spleen])
    product = product / product.sum(dim=0)
    label, _, asked = full_size(dataclasses.replace(own, probabilities=product), place)
    canvas = random_canvas()
    wanted = np.where(asked, label, canvas.labels.numpy())
    fusion.fuse("replace_times_atlas", canvas, [fusion.FusionInput(own, place)], atlas)
    assert np.array_equal(canvas.labels.numpy(), wanted)
    plain = random_canvas()
    fusion.fuse("replace_in_roi", plain, [fusion.FusionInput(own, place)])
    assert not np.array_equal(plain.labels, canvas.labels)


# --- connected parts --------------------------------------------------------------------------------


def test_only_the_largest_component_of_the_labels_named_stays() -> None:
    grid = Grid.from_spacing((12, 10, 8), (1.0, 1.0, 3.0))
    labels = torch.zeros(grid.shape, dtype=torch.uint8)
    labels[1:4, 1:4, 1:3] = LIVER
    labels[4, 4, 3] = LIVER  # touches by a corner: one with the above
    labels[8:10, 1:4, 1:4] = LIVER  # as large, but for that corner
    labels[9, 2, 2] = SPLEEN  # in the middle of the lesser liver
    labels[0, 9, 7] = labels[11, 9, 7] = AORTA
    canvas = FusedLabelMap(grid, SCHEMA, labels.clone())
    fusion.keep_parts(canvas, ("liver", "pancreas", "spleen"), largest_component)
    wanted = labels.clone()
    wanted[8:10, 1:4, 1:4] = 0
    wanted[9, 2, 2] = SPLEEN
    assert np.array_equal(canvas.labels, wanted)
    assert int((wanted == LIVER).sum()) == 19
    assert int((wanted == AORTA).sum()) == 2


def test_no_labels_to_keep_parts_of_and_none_there() -> None:
    canvas = random_canvas()
    fusion.keep_parts(canvas, (), np.zeros_like)
    assert np.array_equal(canvas.labels, random_canvas().labels)
    blank = FusedLabelMap.blank(SCAN, SCHEMA)
    fusion.keep_parts(blank, SCHEMA.names, largest_component)
    assert not blank.labels.any()
