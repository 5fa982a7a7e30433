"""Fusion block by block is the naive argmax of everything at full size."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from helpers.grids import oriented
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.export.runner import fusion, resample
from zoomseg.export.runner.fusion import Canvas, Voice, fuse
from zoomseg.export.runner.region import Answer, Region
from zoomseg.export.runner.roi import CORNERS, largest_component

SCAN = oriented((19, 17, 13), (1.0, 0.9, 2.0), angles_deg=(5, 0, 10))
NAMES = tuple(f"organ {n}" for n in range(40))
SCHEMA = LabelSchema.consecutive(NAMES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "BLOCK_VOXELS", 19 * 17 * 3)


def blobs(seed: int, labels: tuple[str, ...], grid: Grid, region: Region | None = None) -> Answer:
    """Smooth enough that every label wins somewhere, and none everywhere."""
    rng = np.random.default_rng(seed)
    coarse = grid.with_shape((5, 5, 5))
    logits = resample.linear(rng.normal(0, 4, (1 + len(labels), 5, 5, 5)), coarse, grid)
    shares = np.exp(logits) / np.exp(logits).sum(axis=0)
    return Answer(shares.astype(np.float32), grid, labels, region or Region.whole(grid))


def naive(answer: Answer) -> tuple[np.ndarray, np.ndarray]:
    """Winner and its probability over the whole scan, all classes at once; classes of the schema."""
    full = resample.linear(answer.probabilities, answer.grid, SCAN, antialias=False)
    classes = np.array([0, *(SCHEMA.class_of(name) for name in answer.labels)])
    return classes[full.argmax(axis=0)], full.max(axis=0)


def voice(canvas: Canvas, answer: Answer, place: str = "scan_grid") -> Voice:
    return Voice.of(canvas, answer, place)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 3.0), (0.7, 0.8, 1.1)])
def test_forty_classes_are_the_naive_argmax(spacing: tuple[float, float, float]) -> None:
    answer = blobs(0, NAMES, SCAN.with_spacing(spacing))
    canvas = Canvas.blank(SCAN, SCHEMA)
    fuse("replace_in_roi", canvas, [voice(canvas, answer)])
    assert np.array_equal(canvas.labels, naive(answer)[0])
    assert len(np.unique(canvas.labels)) > 20


def test_replacing_leaves_what_is_outside_the_region() -> None:
    grid = SCAN.with_spacing((2, 2, 3))
    box = Box((1, 2, 0), (9, 7, 6))
    mask = np.random.default_rng(1).random(box.shape) < 0.5
    region = Region(grid, box, mask)
    answer = blobs(1, NAMES[:4], grid, region)
    canvas = Canvas(SCAN, SCHEMA, np.full(SCAN.shape, 9, dtype=np.uint8))
    fuse("replace_in_roi", canvas, [voice(canvas, answer)])
    inside = region.on(SCAN).mask_in(SCAN.box)
    assert 0 < inside.sum() < inside.size
    assert np.array_equal(canvas.labels, np.where(inside, naive(answer)[0], 9))


def test_labels_decided_on_the_stage_grid_are_brought_over() -> None:
    grid = SCAN.with_spacing((2, 2, 3))
    answer = blobs(2, NAMES[:4], grid)
    canvas = Canvas.blank(SCAN, SCHEMA)
    fuse("replace_in_roi", canvas, [voice(canvas, answer, "stage_grid")])
    expected = resample.nearest(answer.probabilities.argmax(axis=0), grid, SCAN)
    assert np.array_equal(canvas.labels, expected)


@pytest.mark.parametrize("kind", ["paste", "most_probable"])
def test_pasting_erases_and_writes_what_was_found(kind: str) -> None:
    answer = blobs(3, NAMES[2:5], SCAN.with_spacing((2, 2, 3)))
    canvas = Canvas(SCAN, SCHEMA, np.random.default_rng(0).integers(0, 8, SCAN.shape, dtype=np.uint8))
    before = canvas.labels.copy()
    fuse(kind, canvas, [voice(canvas, answer)])
    found, _ = naive(answer)
    kept = np.where(np.isin(before, [3, 4, 5]), 0, before)
    assert np.array_equal(canvas.labels, np.where(found > 0, found, kept))


def test_the_higher_probability_wins_and_the_last_pasted() -> None:
    answers = [blobs(4, NAMES[:2], SCAN.with_spacing((2, 2, 3))), blobs(5, NAMES[2:4], SCAN)]
    (a, p), (b, q) = (naive(answer) for answer in answers)
    p, q = np.where(a > 0, p, 0), np.where(b > 0, q, 0)
    for kind, first in (("most_probable", p >= q), ("paste", q == 0)):
        canvas = Canvas.blank(SCAN, SCHEMA)
        fuse(kind, canvas, [voice(canvas, answer) for answer in answers])
        assert np.array_equal(canvas.labels, np.where(first, a, b)), kind


def test_only_the_largest_component_of_some_labels_stays() -> None:
    canvas = Canvas.blank(SCAN, SCHEMA)
    for c in (1, 2):
        canvas.labels[:3, c * 4, 0] = c
        canvas.labels[10:12, c * 4, 0] = c
    fusion.keep_parts(
        canvas, NAMES[1:3], partial(largest_component, neighbours=CORNERS)
    )  # the third is nowhere
    assert np.argwhere(canvas.labels == 1)[:, 0].tolist() == [0, 1, 2, 10, 11]
    assert np.argwhere(canvas.labels == 2)[:, 0].tolist() == [0, 1, 2]


def test_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="'shuffle'"):
        fuse("shuffle", Canvas.blank(SCAN, SCHEMA), [])


def test_blocks_cover_a_box_once() -> None:
    box = Box((2, 0, 1), (19, 17, 12))
    found = fusion.blocks(box)
    assert len(found) > 1
    assert max(b.voxels for b in found) <= fusion.BLOCK_VOXELS
    assert sum(b.voxels for b in found) == box.voxels
    assert fusion.blocks(Box((0, 0, 0), (0, 5, 5))) == []
