"""How answers enter the label map: the block-wise running argmax against the naive one."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lattices import SIGNED_PERMUTATIONS, boxes_in, indices, oriented
from zoomseg.core.case import Prior
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.region import Region
from zoomseg.core.resample import resample_data
from zoomseg.stage import fusion
from zoomseg.stage.fusion import Canvas

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
    found = fusion.argmax_on(probabilities, source, target)
    assert found.dtype == torch.uint8
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
    assert torch.equal(fusion.argmax_on(probabilities, source, target), wanted)


def test_a_class_that_wins_with_exactly_its_share_is_found() -> None:
    """All 40 classes alike: 1/40 each, which is not exact in floating point."""
    probabilities = torch.full((40, 2, 2, 2), 1 / 40)
    probabilities[0] -= 1e-3
    probabilities[17] += 1e-3
    grid = Grid.from_spacing((2, 2, 2), (1.0, 1.0, 1.0))
    assert (fusion.argmax_on(probabilities, grid, grid.with_shape((5, 5, 5))) == 17).all()


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


def canvas_of(classes: int = 4) -> Canvas:
    """A scan full of earlier answers."""
    return Canvas(SCAN, SCHEMA, torch.full(SCAN.shape, classes, dtype=torch.uint8))


def prior(region: Region, classes: torch.Tensor, labels: tuple[str, ...] = ("liver", "spleen")) -> Prior:
    hot = torch.nn.functional.one_hot(classes.long(), 1 + len(labels)).movedim(-1, 0).float()
    return Prior(hot, SOURCE, labels, region, "fine")


def pattern(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randint(0, 3, shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("place", ["scan_grid", "stage_grid"])
def test_answers_enter_as_the_case_s_classes(place: str) -> None:
    canvas, classes = canvas_of(), torch.ones(SOURCE.shape)
    fusion.fuse("replace_in_roi", place, canvas, prior(Region.whole(SOURCE), classes))  # type: ignore[arg-type]
    assert (canvas.labels == SCHEMA.class_of("liver")).all()
    fusion.fuse("replace_in_roi", place, canvas, prior(Region.whole(SOURCE), 2 * classes))  # type: ignore[arg-type]
    assert (canvas.labels == SCHEMA.class_of("spleen")).all()
    fusion.fuse("replace_in_roi", place, canvas, prior(Region.whole(SOURCE), 0 * classes))  # type: ignore[arg-type]
    assert not canvas.labels.any()


def test_a_stage_that_is_not_fused_leaves_the_canvas() -> None:
    canvas = canvas_of()
    fusion.fuse("none", "scan_grid", canvas, prior(Region.whole(SOURCE), torch.ones(SOURCE.shape)))
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
    assert torch.equal(canvas.labels[inside], wanted[decided.long()][inside])


def test_a_box_without_a_mask_is_replaced_whole() -> None:
    box = Box((2, 1, 3), (8, 7, 6))
    canvas = canvas_of()
    fusion.replace_in_roi(canvas, prior(Region(SOURCE, box), torch.ones(SOURCE.shape)))
    at = torch.from_numpy(indices(SCAN))
    inside = ((at >= 2 * torch.tensor(box.start)) & (at < 2 * torch.tensor(box.stop))).all(dim=-1)
    assert (canvas.labels[inside] == 2).all()
    assert (canvas.labels[~inside] == 4).all()


def test_blank_canvas_is_background() -> None:
    canvas = Canvas.blank(SCAN, SCHEMA)
    assert canvas.labels.shape == SCAN.shape
    assert not canvas.labels.any()


# --- confidence -----------------------------------------------------------------------------------


def test_confidence_is_the_mean_winning_probability() -> None:
    grid = Grid.from_spacing((5, 1, 1), (1.0, 1.0, 1.0))
    probabilities = torch.tensor(
        [[0.1, 0.2, 0.9, 0.4, 0.0], [0.9, 0.5, 0.05, 0.25, 0.2], [0.0, 0.3, 0.05, 0.35, 0.8]]
    ).reshape(3, 5, 1, 1)
    answer = Prior(probabilities, grid, ("liver", "spleen"), Region.whole(grid), "fine")
    assert fusion.confidence(answer) == pytest.approx({"liver": (0.9 + 0.5) / 2, "spleen": 0.8})


def test_confidence_looks_into_the_region_only_and_leaves_out_what_was_not_found() -> None:
    grid = Grid.from_spacing((4, 1, 1), (1.0, 1.0, 1.0))
    probabilities = torch.tensor([[0.2, 0.4, 0.9, 0.0], [0.8, 0.6, 0.1, 0.0], [0.0, 0.0, 0.0, 1.0]])
    region = Region(grid, Box((0, 0, 0), (2, 1, 1)))
    answer = Prior(probabilities.reshape(3, 4, 1, 1), grid, ("liver", "spleen"), region, "fine")
    assert fusion.confidence(answer) == pytest.approx({"liver": 0.7})
    assert np.isclose(fusion.confidence(answer)["liver"], 0.7)
