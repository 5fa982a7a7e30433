"""Regions of stages, compared with brute force: every voxel with every other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from helpers.grids import indices, oriented
from zoomseg.core.case import StagePrediction
from zoomseg.core.errors import LabelError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.volume import Volume
from zoomseg.datasets.phantom import phantom_case
from zoomseg.pipeline import roi
from zoomseg.recipe.spec import (
    ATLAS,
    BodyMask,
    BoxAround,
    DilatedForeground,
    ProbabilityTimesAtlas,
    WholeVolume,
)

NAMES = ("liver", "spleen", "pancreas")


def prior_of(classes: np.ndarray, grid: Grid, region: Region | None = None) -> StagePrediction:
    """A prior that is certain of ``classes [I, J, K]``."""
    hot = np.stack([classes == c for c in range(1 + len(NAMES))]).astype(np.float32)
    return StagePrediction(hot, grid, NAMES, region or Region.whole(grid), "coarse")


def blobs(shape: tuple[int, int, int], seed: int, share: float = 0.02) -> np.ndarray:
    """At least one and at most a few labelled voxels at random positions."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(1, 4, shape) * (rng.random(shape) < share)
    classes[tuple(rng.integers(n) for n in shape)] = 2
    return classes


def scan(hu: np.ndarray, grid: Grid) -> Volume:
    return Volume(hu.astype(np.float32)[None], grid)


def full(region: Region | None) -> np.ndarray:
    assert region is not None
    return region.mask_in(region.grid.box)


# --- body mask ------------------------------------------------------------------------------------


@pytest.fixture
def torso() -> tuple[Volume, np.ndarray]:
    """A round body (0 HU) with two lungs (-850) that are open above and below, gas in the bowel, on a table;
    and the expected mask."""
    grid = Grid.from_spacing((40, 32, 12), (8.0, 8.0, 10.0))
    i, j, _ = np.moveaxis(indices(grid), -1, 0)
    body = np.hypot((i - 20) / 15, (j - 17) / 11) < 1
    hu = np.where(body, 0.0, -1000.0)
    hu[(np.hypot(i - 13, j - 17) < 4) | (np.hypot(i - 27, j - 17) < 4)] = -850
    hu[20, 24, 5] = -900
    hu[5:35, 1:3] = 100
    return scan(hu, grid), body


def test_body_mask_keeps_lungs_and_drops_the_table(torso: tuple[Volume, np.ndarray]) -> None:
    image, body = torso
    found = roi.body_mask(image, image.grid, -200.0)
    assert np.array_equal(full(found), body)


def test_body_mask_leaves_the_cavity_of_the_chest_no_gap_at_the_ends(
    torso: tuple[Volume, np.ndarray],
) -> None:
    image, body = torso
    found = full(roi.body_mask(image, image.grid, -200.0))
    assert found[13, 17, [0, -1]].all()
    assert body[13, 17, 0]


def test_an_opened_body_mask_lets_go_of_what_touches_it_in_passing() -> None:
    """A table connected by a bridge of four voxels, and a corner that an opening by a cube preserves."""
    grid = Grid.from_spacing((24, 24, 11), (8.0, 8.0, 10.0))
    body, table = np.zeros(grid.shape, dtype=bool), np.zeros(grid.shape, dtype=bool)
    body[4:20, 9:22, 1:10] = True
    table[2:22, 2:4, :] = table[10:14, 4:9, :] = True
    hu = np.where(body | table, 0.0, -1000.0)
    hu[9:12, 14:17, :] = -900.0
    image = scan(hu, grid)
    assert full(roi.body_mask(image, grid, -500.0))[table].all()
    assert np.array_equal(full(roi.body_mask(image, grid, -500.0, 2)), body)
    found = roi.find_region(BodyMask(threshold=-500, opening_vox=2), grid, image, {}, "empty")
    assert np.array_equal(full(found), body)
    assert roi.body_mask(image, grid, -500.0, 7) is None


def test_body_mask_takes_what_is_over_the_threshold() -> None:
    grid = Grid.from_spacing((3, 3, 1), (1.0, 1.0, 1.0))
    hu = np.array([[-199.0, -199.0, -200.0], [-201.0, -199.0, -1000.0], [-1000.0, -1000.0, 40.0]])
    found = full(roi.body_mask(scan(hu[..., None], grid), grid, -200.0))
    # 40 HU at the corner touches only by an edge: another component, and a smaller one.
    assert found[..., 0].astype(int).tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_body_mask_looks_at_the_first_channel_on_the_stage_s_grid(torso: tuple[Volume, np.ndarray]) -> None:
    image, body = torso
    both = Volume(np.concatenate([image.data, np.full_like(image.data, 500)]), image.grid)
    half = image.grid.downsampled((2, 2, 2))
    found = full(roi.body_mask(both, half, -200.0))
    assert found.shape == half.shape
    eighths = body.reshape(20, 2, 16, 2, 6, 2)
    assert found[eighths.all(axis=(1, 3, 5))].all()
    # The antialiased interpolation reaches into the next voxel, and no further.
    reached = binary_dilation(eighths.any(axis=(1, 3, 5)), np.ones((3, 3, 3)))
    assert not found[~reached].any()


def test_body_mask_of_a_phantom_holds_organs_and_lungs_but_no_table() -> None:
    # This patient does not touch the table; otherwise no threshold could separate them.
    case = phantom_case(0, Grid.from_spacing((80, 72, 24), (4.5, 4.5, 12.0), (-178.0, -160.0, -141.0)))
    assert case.labels is not None
    mask = full(roi.body_mask(case.image, case.image.grid, -200.0))
    assert mask[case.labels.data > 0].all()
    hu = case.image.data[0]
    back = np.flatnonzero(mask.any(axis=(0, 2)))[0]
    assert (hu[:, :back] > -200).sum() > 1000, "the table"
    assert ((hu < -700) & mask).sum() > 0.05 * mask.sum(), "the lungs"
    assert 0.35 < mask.mean() < 0.55  # of the scan, as in Roth et al. 2018: about 40 %


def test_body_mask_of_air_is_nothing_or_everything() -> None:
    grid = Grid.from_spacing((4, 4, 4), (1.0, 1.0, 1.0))
    air = scan(np.full(grid.shape, -1000.0), grid)
    assert roi.body_mask(air, grid, -200.0) is None
    assert roi.find_region(BodyMask(), grid, air, {}, "empty") is None
    everywhere = roi.find_region(BodyMask(), grid, air, {}, "whole_volume")
    assert everywhere is not None
    assert everywhere.mask is None
    assert everywhere.box == grid.box


# --- dilated foreground ---------------------------------------------------------------------------


def dilated_by_brute_force(prior: StagePrediction, grid: Grid, radius: float) -> np.ndarray:
    """Foreground on the stage's grid (centre on, or centre of, a foreground voxel), then every voxel
    that is no farther than ``radius`` voxels from one of these."""
    found = prior.probabilities.argmax(axis=0) > 0
    at = np.floor(prior.grid.index(grid.world(indices(grid))) + 0.5 + 1e-9).astype(int)
    inside = ((at >= 0) & (at < np.array(prior.grid.shape))).all(axis=-1)
    seeds = inside & found[tuple(np.where(inside[..., None], at, 0)[..., a] for a in range(3))]
    for centre in np.argwhere(found):
        i, j, k = np.floor(grid.index(prior.grid.world(centre)) + 0.5 + 1e-9).astype(int)
        seeds[min(i, grid.shape[0] - 1), min(j, grid.shape[1] - 1), min(k, grid.shape[2] - 1)] = True
    every, some = indices(grid).reshape(-1, 3), np.argwhere(seeds)
    nearest = (((every[:, None] - some[None]) ** 2).sum(axis=-1)).min(axis=1)
    return (nearest <= radius**2).reshape(grid.shape)


STAGE = oriented((18, 15, 12), (2.0, 2.0, 3.0), (-11.0, 7.0, 40.0))
PRIOR_GRIDS = {
    "same": STAGE,
    "half": STAGE.downsampled((2, 2, 2)),
    "third, thick": STAGE.with_spacing((6.0, 6.0, 9.0)),
    "other factors": STAGE.with_spacing((5.0, 3.1, 3.0)),
    "finer": STAGE.with_spacing((0.9, 1.2, 3.0)),
    "a box of it": STAGE.downsampled((2, 2, 2)).crop(Box((2, 1, 1), (7, 6, 5))),
    "far coarser than the radius": STAGE.with_shape((3, 3, 3)),
}


@pytest.mark.parametrize("name", PRIOR_GRIDS)
@pytest.mark.parametrize("radius", [0.0, 1.0, 1.5, 3.0, 4.3])
def test_dilation_is_a_ball_of_voxels_of_the_stage_s_grid(name: str, radius: float) -> None:
    grid = PRIOR_GRIDS[name]
    prior = prior_of(blobs(grid.shape, seed=int(10 * radius)), grid)
    spec = DilatedForeground(of="coarse", radius_vox=radius)
    found = roi.find_region(spec, STAGE, VOID, {"coarse": prior}, "empty")
    assert np.array_equal(full(found), dilated_by_brute_force(prior, STAGE, radius))


@pytest.mark.parametrize("margin_mm", [0.0, 3.0, 7.5])
def test_a_margin_in_millimetres_is_the_same_in_every_direction(margin_mm: float) -> None:
    assert len(set(STAGE.spacing_mm)) > 1
    classes = np.zeros(STAGE.shape, dtype=int)
    classes[8, 7, 6] = 1
    spec = DilatedForeground(of="coarse", margin_mm=margin_mm)
    found = full(roi.find_region(spec, STAGE, VOID, {"coarse": prior_of(classes, STAGE)}, "empty"))
    away = STAGE.world(np.argwhere(np.ones(STAGE.shape))) - STAGE.world(np.array([[8, 7, 6]]))
    expected = (np.linalg.norm(away, axis=1) <= margin_mm + 1e-6).reshape(STAGE.shape)
    assert np.array_equal(found, expected)


VOID = scan(np.zeros((1, 1, 1)), Grid((1, 1, 1), np.eye(4)))
"""An image that these kinds of region do not read."""


def test_the_ball_goes_beyond_the_prior_s_box_and_ends_with_the_scan() -> None:
    box = Box((1, 8, 5), (3, 10, 7))
    prior = prior_of(np.ones(box.shape, dtype=int), STAGE.crop(box))
    found = roi.dilated_foreground(prior, STAGE, 3.0)
    assert found is not None
    assert found.box == Box((0, 5, 2), (6, 13, 10))
    # 3 voxels away from the box along the axes, but less along diagonals, as for a ball.
    assert found.mask_in(STAGE.box)[5, 8, 5]
    assert found.mask_in(STAGE.box)[4, 11, 5]
    assert not found.mask_in(STAGE.box)[5, 12, 5]


def test_a_thin_organ_is_not_lost_between_the_voxels_of_a_coarser_grid() -> None:
    fine = Grid.from_spacing((30, 30, 30), (1.0, 1.0, 1.0))
    classes = np.zeros(fine.shape, dtype=int)
    classes[3, 4:20, 3] = 1  # does not contain the centres (1.5 + 4 n) of the coarse voxels
    coarse = fine.downsampled((4, 4, 4))
    found = full(roi.dilated_foreground(prior_of(classes, fine), coarse, 0.0))
    assert np.argwhere(found).tolist() == [[0, j, 0] for j in range(1, 5)]


def test_what_the_prior_says_beside_its_region_does_not_count() -> None:
    classes = np.zeros(STAGE.shape, dtype=int)
    classes[4, 4, 4], classes[12, 10, 9] = 1, 2
    mask = np.zeros(STAGE.shape, dtype=np.bool_)
    mask[:8] = True
    prior = prior_of(classes, STAGE, Region.of_mask(STAGE, mask))
    found = roi.dilated_foreground(prior, STAGE, 1.0)
    assert found is not None
    assert found.box == Box((3, 3, 3), (6, 6, 6))
    assert found.voxels == 7
    around = roi.find_region(BoxAround(of="coarse", margin_mm=0.0), STAGE, VOID, {"coarse": prior}, "empty")
    assert around is not None
    assert around.box == Box((4, 4, 4), (5, 5, 5))


def test_a_threshold_takes_in_background_that_the_stage_is_not_sure_of() -> None:
    """In one voxel, a label is the most probable with less than half; in another, background has 0.8."""
    prior = prior_of(np.zeros(STAGE.shape, dtype=int), STAGE)
    prior.probabilities[:3, 3, 3, 3] = np.array([0.3, 0.4, 0.3])
    prior.probabilities[:3, 5, 6, 7] = np.array([0.8, 0.15, 0.05])
    seen = {
        threshold: np.argwhere(full(roi.dilated_foreground(prior, STAGE, 0.0, threshold))).tolist()
        for threshold in (None, 0.15, 0.25, 0.9)
    }
    # The sum over labels is compared; a threshold never removes voxels predicted as foreground.
    won = [[3, 3, 3]]
    assert seen == {None: won, 0.15: [*won, [5, 6, 7]], 0.25: won, 0.9: won}
    spec = DilatedForeground(of="coarse", radius_vox=0.0, threshold=0.15)
    assert full(roi.find_region(spec, STAGE, VOID, {"coarse": prior}, "empty")).sum() == 2


# --- box ------------------------------------------------------------------------------------------


def test_the_foreground_may_be_that_of_some_labels() -> None:
    probabilities = np.zeros((4, 4, 1, 1), dtype=np.float32)
    probabilities[:, :, 0, 0] = [[0.1, 0.7, 0.9, 1.0], [0.9, 0.0, 0.0, 0.0], [0.0, 0.3, 0.1, 0.0], [0] * 4]
    grid = Grid((4, 1, 1), np.eye(4))
    prior = StagePrediction(probabilities, grid, NAMES, Region.whole(grid), "coarse")

    def at(threshold: float | None, *labels: str) -> list[int]:
        found = roi.dilated_foreground(prior, grid, 0.0, threshold, labels)
        return np.flatnonzero(full(found)).tolist()

    assert (at(None, "liver"), at(None, "liver", "spleen")) == ([0], [0])
    assert (at(0.2, "spleen"), at(0.05, "spleen"), at(0.05, "liver", "spleen")) == ([1], [1, 2], [0, 1, 2])
    assert roi.dilated_foreground(prior, grid, 0.0, None, ("spleen",)) is None
    spec = DilatedForeground(of="coarse", labels=("spleen",), radius_vox=0.0, threshold=0.2)
    image = scan(np.zeros(grid.shape), grid)
    found = roi.find_region(spec, grid, image, {"coarse": prior}, "empty")
    assert np.flatnonzero(full(found)).tolist() == [1]


def test_box_margin_is_in_millimetres() -> None:
    coarse = Grid.from_spacing((10, 10, 10), (8.0, 8.0, 8.0), (-100.0, 0.0, 50.0))
    classes = np.zeros(coarse.shape, dtype=int)
    classes[3:5, 4:7, 5] = 1
    stage = coarse.with_spacing((2.0, 4.0, 5.0))
    found = roi.find_region(
        BoxAround(of="coarse", margin_mm=9.0), stage, VOID, {"coarse": prior_of(classes, coarse)}, "empty"
    )
    assert found is not None
    assert found.mask is None
    # Faces at 24..40, 32..56 and 40..48 mm from the first corner; 9 mm are 5, 3 and 2 voxels.
    assert found.box == Box((12 - 5, 8 - 3, 8 - 2), (20 + 5, 14 + 3, 10 + 2))


def test_box_of_some_labels_ends_with_the_scan() -> None:
    grid = Grid.from_spacing((12, 12, 12), (2.0, 2.0, 2.0))
    classes = np.zeros(grid.shape, dtype=int)
    classes[1, 2, 3], classes[9, 9, 9], classes[3, 3, 5] = 1, 2, 3
    prior = {"coarse": prior_of(classes, grid)}
    spec = BoxAround(of="coarse", labels=("liver", "pancreas"), margin_mm=4.0)
    found = roi.find_region(spec, grid, VOID, prior, "empty")
    assert found is not None
    assert found.box == Box((0, 0, 1), (6, 6, 8))
    every = roi.find_region(BoxAround(of="coarse", margin_mm=0.0), grid, VOID, prior, "empty")
    assert every is not None
    assert every.box == Box((1, 2, 3), (10, 10, 10))


def test_box_of_a_label_that_the_prior_does_not_have() -> None:
    grid = Grid.from_spacing((4, 4, 4), (2.0, 2.0, 2.0))
    priors = {"coarse": prior_of(np.zeros(grid.shape), grid), ATLAS: prior_of(np.zeros(grid.shape), grid)}
    kinds: tuple[type[BoxAround | ProbabilityTimesAtlas], ...] = (BoxAround, ProbabilityTimesAtlas)
    for kind in kinds:
        with pytest.raises(
            LabelError, match="stage 'coarse' does not predict 'heart'; it has: liver, spleen"
        ):
            roi.find_region(kind(of="coarse", labels=("heart",)), grid, VOID, priors, "empty")


# --- probability times atlas ----------------------------------------------------------------------


def soft_prior(grid: Grid, **at: tuple[tuple[int, int, int], float]) -> StagePrediction:
    """Background nearly everywhere, and probabilities of labels in single voxels."""
    probabilities = np.zeros((1 + len(NAMES), *grid.shape), dtype=np.float32)
    for name, (index, p) in at.items():
        probabilities[(1 + NAMES.index(name), *index)] = p
    probabilities[0] = 1 - probabilities[1:].sum(axis=0)
    return StagePrediction(probabilities, grid, NAMES, Region.whole(grid), "coarse")


def times_atlas(prior: StagePrediction, atlas: StagePrediction, **settings: object) -> Region | None:
    spec = ProbabilityTimesAtlas.model_validate({"of": "coarse", **settings})
    return roi.find_region(spec, STAGE, VOID, {"coarse": prior, ATLAS: atlas}, "empty")


def test_where_probability_times_atlas_exceeds_the_threshold() -> None:
    coarse = soft_prior(STAGE, liver=((4, 5, 6), 0.5), spleen=((9, 9, 9), 0.9), pancreas=((12, 3, 2), 0.9))
    atlas = soft_prior(STAGE, liver=((4, 5, 6), 0.4), spleen=((9, 9, 9), 0.4), pancreas=((1, 1, 1), 1.0))
    # 0.5 * 0.4 = 0.2 and 0.9 * 0.4 = 0.36; the atlas has no pancreas where the network finds one.
    spots = {0.1: Box((4, 5, 6), (10, 10, 10)), 0.3: Box((9, 9, 9), (10, 10, 10))}
    for threshold, box in spots.items():
        found = times_atlas(coarse, atlas, labels="all", threshold=threshold, margin_mm=0)
        assert found is not None
        assert (found.box, found.mask) == (box, None)
    assert times_atlas(coarse, atlas, labels="all", threshold=0.37) is None
    liver = times_atlas(coarse, atlas, labels=("liver",), threshold=0.1, margin_mm=4.0)
    assert liver is not None
    assert liver.box == Box((2, 3, 4), (7, 8, 9))  # two voxels of 2 mm on each side, and two of 3 mm
    assert times_atlas(coarse, atlas, labels=("pancreas",), threshold=0.01) is None


def test_the_products_of_labels_are_summed() -> None:
    """In a voxel shared by two neighbours, neither reaches the threshold alone, but their sum does."""
    both = soft_prior(STAGE, liver=((4, 5, 6), 0.5), spleen=((4, 5, 6), 0.5))
    for names, expected in ((("liver",), None), (("liver", "spleen"), Box((4, 5, 6), (5, 6, 7)))):
        found = times_atlas(both, both, labels=names, threshold=0.3, margin_mm=0)
        assert (found and found.box) == expected


def test_the_atlas_prior_comes_to_the_coarse_prior_s_grid_by_linear_interpolation() -> None:
    """An atlas prior on another grid that decreases linearly from one end of the scan to the other, and a
    stage with probability 1: the box ends where the atlas prior equals the threshold."""
    coarse = STAGE.with_spacing((2.0, 3.0, 6.0))
    sure = prior_of(np.ones(coarse.shape), coarse)
    wide = STAGE.with_shape((9, 5, 4)).crop(Box((-2, 0, 0), (11, 5, 4)))
    x = wide.world(indices(wide))[..., 0]
    share = ((x - x.min()) / (x.max() - x.min())).astype(np.float32)
    atlas = StagePrediction(
        np.stack([1 - share, share, 0 * share, 0 * share]), wide, NAMES, Region.whole(wide), "atlas"
    )
    here = coarse.world(indices(coarse))[:, 0, 0, 0]
    first = int(np.flatnonzero((here - x.min()) / (x.max() - x.min()) > 0.45)[0])
    assert 2 < first < 15
    found = times_atlas(sure, atlas, labels=("liver",), threshold=0.45, margin_mm=0)
    assert found is not None
    assert found.box == Box((first, 0, 0), STAGE.shape)


def test_an_unlikely_organ_is_not_found_beside_the_prior_s_region() -> None:
    mask = np.zeros(STAGE.shape, dtype=np.bool_)
    mask[:8] = True
    region = Region.of_mask(STAGE, mask)
    assert region is not None
    both = soft_prior(STAGE, liver=((12, 5, 6), 1.0))
    assert times_atlas(both, both, labels=("liver",)) is not None
    assert times_atlas(replace(both, region=region), both, labels=("liver",)) is None


# --- nothing found --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec",
    [
        DilatedForeground(of="coarse"),
        BoxAround(of="coarse", labels=("spleen",)),
        ProbabilityTimesAtlas(of="coarse", labels=("spleen",)),
    ],
    ids=lambda spec: spec.kind,
)
def test_an_organ_that_was_not_found(spec: DilatedForeground | BoxAround | ProbabilityTimesAtlas) -> None:
    classes = np.zeros(STAGE.shape, dtype=int)
    if spec.kind != "dilated_foreground":
        classes[4, 4, 4] = 1  # a liver, but no spleen
    priors = {"coarse": prior_of(classes, STAGE), ATLAS: prior_of(np.full(STAGE.shape, 2), STAGE)}
    assert roi.find_region(spec, STAGE, VOID, priors, "empty") is None
    everywhere = roi.find_region(spec, STAGE, VOID, priors, "whole_volume")
    assert everywhere is not None
    assert everywhere.box == STAGE.box
    assert everywhere.mask is None


def test_whole_volume() -> None:
    found = roi.find_region(WholeVolume(), STAGE, VOID, {}, "empty")
    assert found is not None
    assert full(found).all()


def test_body_mask_of_a_scan_stored_clipped_is_the_same() -> None:
    """Clipped above the threshold, air has the lowest value, and still does not belong to the body."""
    grid = Grid.from_spacing((20, 20, 4), (2.0, 2.0, 2.0))
    image = np.full((1, 20, 20, 4), -1000.0, dtype=np.float32)
    image[:, 5:15, 6:14] = 40.0
    whole = roi.body_mask(Volume(image, grid), grid, -200.0)
    clipped = roi.body_mask(Volume(image.clip(-125.0, 275.0), grid), grid, -200.0)
    assert whole is not None
    assert clipped is not None
    assert clipped.box == whole.box == Box((5, 6, 0), (15, 14, 4))
