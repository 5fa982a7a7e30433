"""Packed cases contain the input of prediction, and the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.network_inputs import network_input
from helpers.tiny_dataset import SCHEMA, tiny_case, tiny_recipe
from zoomseg.core.case import Case, StagePrediction
from zoomseg.core.geometry import Box
from zoomseg.core.labels import IGNORE
from zoomseg.core.region import Region
from zoomseg.core.resample import affine_coordinates, resample_data, resample_labels
from zoomseg.io.cache import ChunkedArray
from zoomseg.pipeline import stage_input
from zoomseg.recipe.spec import DilatedForeground, ImageInput, PriorInput, Recipe, Stage, Unchanged
from zoomseg.training.data import packed_cases

RECIPE = tiny_recipe(together=False)
COARSE, FINE = RECIPE.stages
SMALL_PATCH = FINE.model_copy(update={"training": FINE.training.model_copy(update={"patch": (2, 2, 2)})})
HALF = 2.0**-11
"""Relative rounding of the stored image."""


@pytest.fixture(scope="module")
def scan() -> stage_input.PreparedScan:
    return stage_input.prepare(Case("a", *tiny_case(0)), RECIPE)


@pytest.fixture(scope="module")
def priors(scan: stage_input.PreparedScan) -> dict[str, StagePrediction]:
    return packed_cases.reference_priors(RECIPE, ("coarse",), scan)


def packed(
    stage: Stage,
    scan: stage_input.PreparedScan,
    priors: Mapping[str, StagePrediction],
    folder: Path,
    labels: tuple[str, ...] = SCHEMA.names,
) -> packed_cases.PackedCase:
    out = packed_cases.pack(stage, RECIPE, scan, priors, labels, folder, np.random.default_rng(0))
    assert out is not None
    return out


def masked(stage: Stage) -> Stage:
    return stage.model_copy(update={"training": stage.training.model_copy(update={"mask_loss": True})})


def indices(box: Box) -> torch.Tensor:
    matrix = np.eye(4)
    matrix[:3, 3] = box.start
    return torch.from_numpy(affine_coordinates(matrix, box.shape))


def test_reference_priors_are_the_reference_as_certainties(scan: stage_input.PreparedScan) -> None:
    priors = packed_cases.reference_priors(RECIPE, ("coarse", "fine"), scan)
    assert list(priors) == ["coarse", "fine"]
    assert scan.labels is not None
    for prior in priors.values():
        assert prior.labels == SCHEMA.names
        assert prior.grid == prior.region.grid
        truth = resample_labels(scan.labels, prior.grid).data
        assert np.array_equal(prior.probabilities.argmax(axis=0), truth)
        assert (prior.probabilities.max(axis=0) == 1).all()
        assert (prior.probabilities.sum(axis=0) == 1).all()


def test_only_the_stages_asked_for_get_reference_priors(scan: stage_input.PreparedScan) -> None:
    assert list(packed_cases.reference_priors(RECIPE, ("fine",), scan)) == ["fine"]


def test_stored_image_is_what_prediction_reads(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    held = packed(FINE, scan, priors, tmp_path)
    seen = stage_input.view(FINE, RECIPE, scan, priors)
    assert seen is not None
    assert held.grid == seen.grid
    shown = torch.from_numpy(network_input(seen, scan, priors, held.box))
    torch.testing.assert_close(held.image_at(indices(held.box)), shown[:1], rtol=HALF, atol=1e-6)
    stored = held.prior_at("coarse", indices(held.box))
    torch.testing.assert_close(stored[1:], shown[1:], rtol=HALF, atol=1e-5)


def test_no_two_cases_and_stages_share_a_file(priors: dict[str, StagePrediction], tmp_path: Path) -> None:
    """Stages that are trained together store their cases in one folder."""
    named = [("fine", "x-1"), ("fine-x", "1"), ("fine", "1"), ("fine", "x.1"), ("fine-x", "1.image")]
    held = []
    for seed, (stage, case) in enumerate(named):
        scan = stage_input.prepare(Case(case, *tiny_case(seed)), RECIPE)
        held.append(packed(FINE.model_copy(update={"name": stage}), scan, priors, tmp_path))
    paths = [array.path for one in held for array in one.arrays]
    assert len(set(paths)) == len(paths) == 3 * len(named)
    for one, (_, case) in zip(held, named, strict=True):
        assert one.case == case
        whole, again = Box((0, 0, 0), one.box.shape), ChunkedArray.open(one.image.path)
        assert np.array_equal(again.read(whole), one.image.read(whole))


def test_unchanged_intensities_are_stored_in_single_precision(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    """Half precision ends at 65504."""
    image, labels = tiny_case(0)
    bright = Case("bright", replace(image, data=image.data + 70_000), labels)
    recipe = RECIPE.model_copy(update={"intensity": Unchanged()})
    seen = stage_input.prepare(bright, recipe)
    held = packed_cases.pack(COARSE, recipe, seen, {}, SCHEMA.names, tmp_path, np.random.default_rng(0))
    assert held is not None
    assert held.image.dtype == np.float32
    assert float(held.image_at(indices(held.box)).max()) == pytest.approx(
        float(seen.raw.data.max()), rel=1e-3
    )
    assert packed(COARSE, scan, priors, tmp_path).image.dtype == np.float16


def test_only_the_region_and_a_patch_around_it_are_stored(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    held = packed(SMALL_PATCH, scan, priors, tmp_path)
    seen = stage_input.view(SMALL_PATCH, RECIPE, scan, priors)
    assert seen is not None
    assert held.box == seen.region.box.expand((2, 2, 2)).intersect(seen.grid.box)
    assert held.box.voxels < seen.grid.box.voxels  # a part was left out
    assert held.image.shape == (1, *held.box.shape)
    assert held.labels.shape == held.box.shape


def test_what_the_earlier_stage_missed_is_in_the_region_that_includes_the_reference(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    """It found only the left kidney. The right one then counts, but not the voxels around it."""
    half = priors["coarse"].probabilities.copy()
    half[0] += half[2]
    half[2] = 0
    missed = {"coarse": replace(priors["coarse"], probabilities=half)}
    look = {"of": "coarse", "radius_vox": 1}
    stages = [
        masked(FINE.model_copy(update={"roi": DilatedForeground(**look, include_reference=asked)}))
        for asked in (False, True)
    ]
    without, included = (packed(s, scan, missed, tmp_path / str(n)) for n, s in enumerate(stages))
    assert scan.labels is not None
    truth = resample_labels(scan.labels, included.grid).data
    assert without.counts[2] == 0
    assert included.counts.tolist()[1:] == [(truth == c).sum() for c in (1, 2)]
    assert included.counts[0] == without.counts[0]
    seen = stage_input.view(stages[1], RECIPE, scan, missed)
    assert seen is not None
    region = seen.region.mask_in(included.box)
    counted = included.labels_at(indices(included.box)).numpy() != IGNORE
    assert np.array_equal(counted, region | (truth[included.box.slices] > 0))
    assert (counted & ~region).any()


def test_reading_beyond_what_is_stored(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    """The image's edge is repeated; labels do not count there."""
    held = packed(SMALL_PATCH, scan, priors, tmp_path)
    i, j, k = held.box.start
    assert j > 0
    at = indices(Box((i, j - 2, k), (i + 3, j + 2, k + 3)))
    image, labels = held.image_at(at)[0], held.labels_at(at)
    for outside in (0, 1):
        assert torch.equal(image[:, outside], image[:, 2])
        assert bool((labels[:, outside] == IGNORE).all())
    assert not torch.equal(image[:, 3], image[:, 2])
    assert not bool((labels[:, 2:] == IGNORE).any())


def test_between_voxels_the_image_is_blended_and_labels_are_not(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    held = packed(COARSE, scan, priors, tmp_path)
    box = Box((2, 3, 4), (6, 7, 9))
    shifted = indices(box) + torch.tensor([0.25, 0.0, 0.0])
    here, following = (held.image_at(indices(b))[0] for b in (box, box.shift((1, 0, 0))))
    torch.testing.assert_close(held.image_at(shifted)[0], 0.75 * here + 0.25 * following, rtol=0, atol=1e-6)
    assert torch.equal(held.labels_at(shifted), held.labels_at(indices(box)))


def test_labels_are_the_nearest_of_the_reference(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    held = packed(COARSE, scan, priors, tmp_path)
    assert scan.labels is not None
    truth = resample_labels(scan.labels, held.grid).data
    assert np.array_equal(torch.from_numpy(held.labels.read(held.grid.box)), truth)
    assert held.counts.tolist() == np.bincount(truth.flatten(), minlength=3).tolist()
    assert held.counts.min() > 0


def test_labels_of_other_stages_are_background(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    both = packed(COARSE, scan, priors, tmp_path / "both")
    held = packed(COARSE, scan, priors, tmp_path / "one", labels=("right kidney",))
    expected = np.where(both.labels.read(both.box) == 2, 1, 0)
    assert np.array_equal(held.labels.read(held.box), expected)
    assert held.counts.tolist() == [both.counts[0] + both.counts[1], both.counts[2]]


@pytest.mark.parametrize(
    ("drawn", "labels", "expected"),
    [
        (None, SCHEMA.names, [True, True, True]),
        ({"right kidney"}, SCHEMA.names, [True, False, True]),
        ({"right kidney"}, ("right kidney",), [True, True]),
        ({"right kidney"}, ("left kidney",), [True, False]),
    ],
)
def test_which_of_a_stages_labels_were_drawn(
    tmp_path: Path, drawn: set[str] | None, labels: tuple[str, ...], expected: list[bool]
) -> None:
    case = Case("a", *tiny_case(0), None if drawn is None else frozenset(drawn))
    held = packed(COARSE, stage_input.prepare(case, RECIPE), {}, tmp_path, labels)
    assert held.annotated.tolist() == expected
    assert (held.counts > 0).tolist() == expected  # unannotated labels are merged with background
    assert sorted(held.candidates.classes) == np.flatnonzero(expected).tolist()


def test_regions_lie_around_what_was_drawn(scan: stage_input.PreparedScan) -> None:
    partly = stage_input.prepare(Case("a", *tiny_case(0), frozenset({"left kidney"})), RECIPE)
    whole, left = (packed_cases.reference_priors(RECIPE, ("coarse",), s)["coarse"] for s in (scan, partly))
    assert left.labels == whole.labels
    assert np.array_equal(left.probabilities[1], whole.probabilities[1])
    assert not left.probabilities[2].any()
    assert np.array_equal(left.probabilities[0], whole.probabilities[0] + whole.probabilities[2])


@pytest.mark.parametrize("mask_loss", [True, False])
def test_outside_the_region_labels_count_only_without_mask_loss(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path, mask_loss: bool
) -> None:
    held = packed(masked(FINE) if mask_loss else FINE, scan, priors, tmp_path)
    seen = stage_input.view(FINE, RECIPE, scan, priors)
    assert seen is not None
    inside = seen.region.mask_in(held.box)
    assert 0 < inside.sum() < inside.size
    stored = held.labels.read(held.box)
    assert np.array_equal(stored == IGNORE, ~inside if mask_loss else np.zeros_like(inside))
    assert held.counts.sum() == inside.sum()


def test_candidates_lie_in_the_region_and_have_their_class(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    held = packed(SMALL_PATCH, scan, priors, tmp_path)
    seen = stage_input.view(SMALL_PATCH, RECIPE, scan, priors)
    assert seen is not None
    assert scan.labels is not None
    inside = seen.region.mask_in(seen.grid.box)
    truth = resample_labels(scan.labels, seen.grid).data
    assert inside[tuple(held.candidates.region.T)].all()
    assert len(held.candidates.region) == inside.sum()
    for c in (1, 2):
        voxels = held.candidates.classes[c]
        assert (truth[tuple(voxels.T)] == c).all()
        assert len(voxels) == (inside & (truth == c)).sum()


def test_a_stage_with_nowhere_to_look_is_not_packed(scan: stage_input.PreparedScan, tmp_path: Path) -> None:
    recipe: Recipe = RECIPE.model_copy(update={"on_missing": "empty"})
    priors = {"coarse": stage_input.background_prediction(COARSE, scan, SCHEMA.names)}
    assert isinstance(FINE.roi, DilatedForeground)
    rng = np.random.default_rng(0)
    assert packed_cases.pack(FINE, recipe, scan, priors, SCHEMA.names, tmp_path, rng) is None
    assert list(tmp_path.iterdir()) == []


def test_stored_priors_lie_where_the_earlier_stage_said_them(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    held = packed(FINE, scan, priors, tmp_path)
    box = Box((4, 6, 2), (12, 14, 10))
    expected = resample_data(priors["coarse"].probabilities, priors["coarse"].grid, held.grid.crop(box))
    np.testing.assert_allclose(held.prior_at("coarse", indices(box)), expected, rtol=0, atol=1e-3)
    assert held.priors["coarse"].labels == SCHEMA.names


def test_priors_finer_than_their_stage_are_antialiased_as_in_prediction(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    grid, labels = scan.grid.downsampled((0.4, 0.4, 1.0)), SCHEMA.names
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(1 + len(labels), *grid.shape, generator=generator).softmax(dim=0).numpy()
    fine = {"coarse": StagePrediction(noise, grid, labels, Region.whole(grid), "coarse")}
    held = packed(FINE, scan, fine, tmp_path)
    assert held.grid.spacing_mm[0] > 2 * grid.spacing_mm[0]
    seen = stage_input.view(FINE, RECIPE, scan, fine)
    assert seen is not None
    shown = network_input(seen, scan, fine, held.box)[1:]
    stored = held.prior_at("coarse", indices(held.box))[1:]
    np.testing.assert_allclose(stored, shown, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("read", "kept"),
    [
        (("spleen",), ("spleen",)),
        (("right kidney",), ("left kidney", "right kidney")),  # swapped in mirrored patches
        (("spleen", "left kidney"), ("left kidney", "right kidney", "spleen")),
        ("all", ("liver", "left kidney", "right kidney", "spleen")),
    ],
)
def test_only_labels_that_the_stage_reads_are_stored(
    scan: stage_input.PreparedScan,
    priors: dict[str, StagePrediction],
    tmp_path: Path,
    read: tuple[str, ...],
    kept: tuple[str, ...],
) -> None:
    labels = ("liver", *SCHEMA.names, "spleen")
    drawn = priors["coarse"].probabilities
    shares = np.stack([0.75 * drawn[0], 0.25 * drawn[0], drawn[1], drawn[2], 0 * drawn[0]]).astype(np.float32)
    shares[4, 3] = 0.5
    several = {"coarse": replace(priors["coarse"], probabilities=shares, labels=labels)}
    stage = FINE.model_copy(update={"inputs": (ImageInput(), PriorInput(of="coarse", labels=read))})
    stored = packed(stage, scan, several, tmp_path).priors["coarse"]
    assert stored.labels == kept == packed_cases.stored_labels(stage, "coarse", labels)
    expected = shares[[0, *(1 + labels.index(label) for label in kept)]]
    assert np.array_equal(stored.data.read(stored.grid.box), expected)


def test_arrays_that_are_held_answer_as_those_on_disk(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    """Including patches that extend beyond the stored box."""
    case = packed(FINE, scan, priors, tmp_path)
    held = packed_cases.load_to_device([case], torch.device("cpu"), 1 << 20)
    assert [held[a.path].shape for a in case.arrays] == [a.shape for a in case.arrays]
    at = indices(Box((3, 2, 1), (15, 12, 9))) * 1.7 - 4.3
    assert torch.equal(case.labels_at(at, held), case.labels_at(at))
    torch.testing.assert_close(case.image_at(at, held), case.image_at(at), rtol=0, atol=1e-5)
    stored = case.prior_at("coarse", at, held)
    torch.testing.assert_close(stored, case.prior_at("coarse", at), rtol=0, atol=1e-5)


def test_no_more_is_held_than_there_is_room_for(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    """In the cases' order; images have two bytes a voxel, labels one."""
    live = FINE.model_copy(update={"inputs": FINE.inputs[:1]})
    cases = [packed(live, replace(scan, id=f"case_{n}"), priors, tmp_path) for n in range(9)]
    voxels, place = cases[0].box.voxels, torch.device("cpu")
    arrays = [array.path for case in cases for array in case.arrays]
    assert packed_cases.load_to_device(cases, place, 0) == {}
    assert list(packed_cases.load_to_device(cases, place, 27 * voxels)) == arrays
    without = arrays[:16] + arrays[17:]  # the ninth's image is left
    assert list(packed_cases.load_to_device(cases, place, 25 * voxels)) == without


def test_what_would_take_a_tenth_of_the_room_by_itself_is_not_held(
    scan: stage_input.PreparedScan, priors: dict[str, StagePrediction], tmp_path: Path
) -> None:
    case = packed(FINE, scan, priors, tmp_path)
    image, labels, stored = case.arrays
    voxels = case.box.voxels
    assert list(packed_cases.load_to_device([case], torch.device("cpu"), 19 * voxels)) == [
        labels.path,
        stored.path,
    ]
    assert image.path in packed_cases.load_to_device([case], torch.device("cpu"), 20 * voxels)
