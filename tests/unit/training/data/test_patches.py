"""Patches: on the voxels of prediction, alike in every stage, and reproducible."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.network_inputs import network_input
from helpers.tiny_dataset import SCHEMA, tiny_case, tiny_recipe
from zoomseg.core.case import Case
from zoomseg.core.geometry import Box, Grid, Index3
from zoomseg.core.labels import IGNORE
from zoomseg.core.region import Region
from zoomseg.core.resample import resample_data
from zoomseg.core.tiling import cover
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.pipeline import grid as grids
from zoomseg.pipeline import roi, stage_input
from zoomseg.recipe.spec import (
    Augmentation,
    BoxAround,
    ClassBalanced,
    FixedShape,
    ImageInput,
    PriorInput,
    Recipe,
    Stage,
)
from zoomseg.training.data import packed_cases
from zoomseg.training.data.packed_cases import PackedCase
from zoomseg.training.data.patches import Batch, PatchSource
from zoomseg.training.data.sampler import Candidates

RECIPE = tiny_recipe(together=True)
COARSE, FINE = RECIPE.stages
HALF = 2.0**-11
SPATIAL = {
    "rotation_deg": (20.0, 20.0, 20.0),
    "scale": (0.8, 1.25),
    "translation_vox": 2.0,
    "elastic_vox": 1.0,
    "elastic_grid_vox": 6.0,
}


def scan_of(seed: int) -> stage_input.PreparedScan:
    return stage_input.prepare(Case(f"case_{seed}", *tiny_case(seed)), RECIPE)


def packs_of(
    stages: Sequence[Stage], scans: Sequence[stage_input.PreparedScan], folder: Path
) -> dict[str, list[PackedCase]]:
    """As the training loop packs: stages that run together have no stored prior."""
    names = {s.name for s in stages}
    out: dict[str, list[PackedCase]] = {s.name: [] for s in stages}
    for scan in scans:
        priors = packed_cases.reference_priors(RECIPE, ("coarse",), scan)
        for stage in stages:
            live = tuple(i for i in stage.inputs if not (i.kind == "prior" and i.of in names))
            shown = stage.model_copy(update={"inputs": live})
            rng = np.random.default_rng(0)
            held = packed_cases.pack(shown, RECIPE, scan, priors, SCHEMA.names, folder, rng)
            assert held is not None
            out[stage.name].append(held)
    return out


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[PackedCase]]:
    return packs_of((COARSE, FINE), [scan_of(0), scan_of(1)], tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[PackedCase]]:
    return packs_of((FINE,), [scan_of(1)], tmp_path_factory.mktemp("apart"))


def trained(stage: Stage, **changes: object) -> Stage:
    return stage.model_copy(update={"training": stage.training.model_copy(update=changes)})


def source(
    packs: Mapping[str, Sequence[PackedCase]],
    augmentation: Augmentation | None = None,
    recipe: Recipe = RECIPE,
    **training: object,
) -> PatchSource:
    """The packed stages; ``training`` changes the last one's section."""
    change = training if augmentation is None else {**training, "augmentation": augmentation}
    stages = [s for s in (COARSE, FINE) if s.name in packs]
    stages[-1] = trained(stages[-1], **change)
    schemas = {s.name: SCHEMA for s in stages}
    return PatchSource(recipe, stages, packs, schemas, augmented=augmentation is not None)


def centred(packs: Mapping[str, Sequence[PackedCase]], centre: Index3) -> dict[str, list[PackedCase]]:
    """Only the first case, with one voxel of the last stage to draw from."""
    *others, lead = packs
    only = replace(packs[lead][0], candidates=Candidates(np.array([centre], dtype=np.int32), {}))
    return {**{name: [packs[name][0]] for name in others}, lead: [only]}


def draw(packs: Mapping[str, Sequence[PackedCase]], seed: int = 0, **settings: object) -> Batch:
    return source(packs, **settings).draw(1, np.random.default_rng(seed))  # type: ignore[arg-type]


def placed(centre: Index3, patch: Index3, span: Index3 = (24, 20, 16)) -> Box:
    """A patch around a voxel, moved until it lies inside a grid of shape ``span``."""
    sizes = zip(centre, patch, span, strict=True)
    i, j, k = (min(max(c - n // 2, 0), m - n) for c, n, m in sizes)
    return Box((i, j, k), (i + patch[0], j + patch[1], k + patch[2]))


def read(stage: Stage, scan: stage_input.PreparedScan, box: Box) -> torch.Tensor:
    """The input of prediction there."""
    priors = packed_cases.reference_priors(RECIPE, ("coarse",), scan)
    seen = stage_input.view(stage, RECIPE, scan, priors)
    assert seen is not None
    return torch.from_numpy(network_input(seen, scan, priors, box))


@pytest.mark.parametrize("centre", [(9, 9, 7), (12, 10, 8), (0, 19, 15)])
def test_an_unaugmented_patch_is_a_crop_around_the_voxel_drawn(
    apart: dict[str, list[PackedCase]], centre: Index3
) -> None:
    """Inside the scan: the part beyond contains nothing new."""
    data = draw(centred(apart, centre)).stages["fine"]
    scan, box = scan_of(1), placed(centre, (16, 16, 12))
    shown = read(FINE, scan, box)
    torch.testing.assert_close(data.image_BCIJK[0], shown[:1], rtol=HALF, atol=1e-5)
    torch.testing.assert_close(data.stored["coarse"][0][1:], shown[1:], rtol=HALF, atol=1e-4)
    assert scan.labels is not None
    assert np.array_equal(data.target_BIJK[0], scan.labels.data[box.slices])


def test_beyond_the_scan_nothing_counts(apart: dict[str, list[PackedCase]]) -> None:
    """A patch larger than the scan contains it in its middle, like a tile in prediction."""
    wide = centred(apart, (3, 10, 8))
    target = draw(wide, patch=(32, 16, 12)).stages["fine"].target_BIJK[0]
    outside = torch.ones(32, 16, 12, dtype=torch.bool)
    outside[4:28] = False
    assert torch.equal(target == IGNORE, outside)


def test_beyond_the_scan_a_patch_is_zero_where_tiles_are(apart: dict[str, list[PackedCase]]) -> None:
    zero = FINE.model_copy(update={"grid": FINE.grid.model_copy(update={"beyond": "zero"})})
    wide = centred(apart, (3, 10, 8))
    packs = {"fine": wide["fine"]}
    stage = trained(zero, patch=(32, 16, 12))
    data = PatchSource(RECIPE, [stage], packs, {"fine": SCHEMA}, augmented=False).draw(
        1, np.random.default_rng(0)
    )
    fine = data.stages["fine"]
    assert fine.within_BIJK is not None
    shown = read(zero, scan_of(1), Box((-4, 2, 2), (28, 18, 14)))
    torch.testing.assert_close(fine.image_BCIJK[0], shown[:1], rtol=HALF, atol=1e-5)
    assert not bool(fine.image_BCIJK[0, :, :4].any())
    known = fine.stored["coarse"][0][1:] * fine.within_BIJK
    torch.testing.assert_close(known, shown[1:], rtol=HALF, atol=1e-4)
    assert draw(wide, patch=(32, 16, 12)).stages["fine"].within_BIJK is None


def dropping(share: float) -> Stage:
    """The fine stage, whose prior loses channels."""
    (prior,) = (spec for spec in FINE.inputs if isinstance(spec, PriorInput))
    others = tuple(spec for spec in FINE.inputs if spec != prior)
    return FINE.model_copy(update={"inputs": (*others, prior.model_copy(update={"dropout": share}))})


@pytest.mark.parametrize("stages", [(COARSE, FINE), (FINE,)], ids=["together", "apart"])
def test_channels_of_a_prior_are_dropped_one_by_one(stages: tuple[Stage, ...], tmp_path: Path) -> None:
    packs, schemas = packs_of(stages, [scan_of(0)], tmp_path), {s.name: SCHEMA for s in stages}
    without = PatchSource(RECIPE, stages, packs, schemas)
    dropped = PatchSource(RECIPE, (*stages[:-1], dropping(0.25)), packs, schemas)
    one, other = (s.draw(400, np.random.default_rng(0)).stages["fine"] for s in (without, dropped))
    assert one.shown == ()
    assert torch.equal(one.image_BCIJK[0], other.image_BCIJK[0])  # drawn before
    (shown,) = other.shown
    assert shown.shape == (400, len(SCHEMA.names))
    counts = Counter(tuple(row) for row in shown.tolist())
    assert counts[(True, True)] == pytest.approx(400 * 0.75**2, abs=40)
    assert counts[(False, False)] == pytest.approx(400 * 0.25**2, abs=20)
    assert counts[(True, False)] == pytest.approx(400 * 0.75 * 0.25, abs=30)
    validation = PatchSource(RECIPE, (*stages[:-1], dropping(0.25)), packs, schemas, augmented=False)
    assert validation.draw(4, np.random.default_rng(0)).stages["fine"].shown == ()


def test_a_shorter_scan_is_read_as_if_it_were_the_whole(tmp_path: Path) -> None:
    """Every drawn patch equals one of the scan cut to the slices that count in it."""
    packs = centred(packs_of((FINE,), [scan_of(0)], tmp_path), (11, 10, 8))
    cut = Augmentation(shorter_scan=1.0)
    scan, box = scan_of(0), placed((11, 10, 8), (16, 16, 12))
    assert scan.labels is not None
    heights = set()
    for seed in range(12):
        data = draw(packs, seed, augmentation=cut).stages["fine"]
        counts = (data.target_BIJK[0] != IGNORE).any(dim=1).any(dim=0)
        shown = counts.nonzero()[:, 0]
        first, last = int(shown[0]), int(shown[-1])
        assert first <= 8 - box.start[2] <= last  # the voxel drawn is there
        slices = torch.arange(12).clamp(first, last)
        whole = read(FINE, scan, box)[:1]
        torch.testing.assert_close(data.image_BCIJK[0], whole[..., slices], rtol=HALF, atol=1e-5)
        target = scan.labels.data[box.slices].copy()
        target[..., ~counts.numpy()] = IGNORE
        assert np.array_equal(data.target_BIJK[0], target)
        heights.add(last - first + 1)
    assert len(heights) > 3


@pytest.mark.parametrize("seed", range(5))
def test_a_scan_is_cut_alike_for_all_stages(tmp_path: Path, seed: int) -> None:
    data = draw(
        packs_of((COARSE, FINE), [scan_of(0)], tmp_path), seed, augmentation=Augmentation(shorter_scan=1.0)
    )
    ends = []
    for stage in data.stages.values():
        shown = (stage.target_BIJK[0] != IGNORE).any(dim=1).any(dim=0).nonzero()[:, 0]
        grid = stage.grids[0]
        ends.append([grid.world((0, 0, int(shown[n])))[2] for n in (0, -1)])
    coarse, fine = ends
    step = data.stages["coarse"].grids[0].spacing_mm[2]
    patch = data.stages["fine"].grids[0]
    low, high = patch.world((0, 0, 0))[2], patch.world((0, 0, patch.shape[2] - 1))[2]
    assert fine[0] == pytest.approx(max(coarse[0], low), abs=step)
    assert fine[1] == pytest.approx(min(coarse[1], high), abs=step)


def test_outside_the_region_nothing_counts_with_mask_loss(tmp_path: Path) -> None:
    packs = packs_of((trained(FINE, mask_loss=True),), [scan_of(0)], tmp_path)
    centre = (11, 10, 8)
    target = draw(centred(packs, centre)).stages["fine"].target_BIJK[0]
    scan = scan_of(0)
    seen = stage_input.view(FINE, RECIPE, scan, packed_cases.reference_priors(RECIPE, ("coarse",), scan))
    assert seen is not None
    inside = torch.from_numpy(seen.region.mask_in(placed(centre, (16, 16, 12))))
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(target != IGNORE, inside)


def test_a_valid_network_has_the_class_drawn_in_its_middle(together: dict[str, list[PackedCase]]) -> None:
    """Its output is smaller than its input, so the input may extend beyond the scan."""
    sampled = trained(FINE, sampler=ClassBalanced(background_share=0.0))
    valid = sampled.model_copy(update={"grid": FINE.grid.model_copy(update={"padding": "valid"})})
    patches = PatchSource(RECIPE, (COARSE, valid), together, dict.fromkeys(together, SCHEMA), augmented=False)
    batch = patches.draw(200, np.random.default_rng(0))
    middles = batch.stages["fine"].target_BIJK[:, 8, 8, 6].tolist()
    assert set(middles) == {1, 2}
    assert 60 < middles.count(1) < 140
    assert set(batch.cases) == {"case_0", "case_1"}


def test_every_class_balanced_patch_shows_an_organ(together: dict[str, list[PackedCase]]) -> None:
    target = source(together, sampler=ClassBalanced(background_share=0.0)).draw(50, np.random.default_rng(0))
    organs = (target.stages["fine"].target_BIJK > 0) & (target.stages["fine"].target_BIJK != IGNORE)
    assert bool(organs.flatten(1).any(dim=1).all())


def test_stages_that_lead_to_the_one_drawn_for_lie_as_prediction_tiles_them(
    together: dict[str, list[PackedCase]],
) -> None:
    scan = scan_of(0)
    seen = stage_input.view(COARSE, RECIPE, scan, {})
    assert seen is not None
    (tile,) = cover(Region.whole(seen.grid), COARSE.grid.tile, (0, 0, 0), 0.0).tiles
    inside = tile.outer.intersect(seen.grid.box)
    here = (slice(None), *inside.relative_to(tile.outer.start).slices)
    expected = torch.from_numpy(network_input(seen, scan, {}, inside))
    for centre in ((3, 4, 5), (20, 17, 14)):
        data = draw(centred(together, centre)).stages["coarse"]
        assert data.grids[0].shape == tile.outer.shape
        torch.testing.assert_close(data.image_BCIJK[0][here], expected, rtol=HALF, atol=1e-5)


def test_a_leading_patch_smaller_than_the_scan_follows_the_voxel_and_stays_inside(
    together: dict[str, list[PackedCase]],
) -> None:
    scan = scan_of(0)
    stages = [trained(COARSE, patch=(4, 4, 4)), FINE]
    for centre, start in (((11, 9, 8), (3, 2, 4)), ((0, 0, 0), (0, 0, 0)), ((23, 19, 15), (8, 6, 8))):
        packs = centred(together, centre)
        near = PatchSource(RECIPE, stages, packs, dict.fromkeys(packs, SCHEMA), augmented=False)
        data = near.draw(1, np.random.default_rng(0)).stages["coarse"]
        box = Box(start, (start[0] + 4, start[1] + 4, start[2] + 4))
        torch.testing.assert_close(data.image_BCIJK[0], read(COARSE, scan, box), rtol=HALF, atol=1e-5)


def ramp_packs(folder: Path) -> tuple[Recipe, dict[str, list[PackedCase]]]:
    """A scan whose three channels are the world coordinates (mm) of its voxels."""
    window = {"kind": "window", "lower": -100, "upper": 100, "output": (-100.0, 100.0)}
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"intensity": window})
    grid = Grid.from_spacing((24, 20, 16), (2.0, 2.0, 3.0), (-24.0, -20.0, -24.0))
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    world = torch.from_numpy(grid.world(index).astype(np.float32)).movedim(-1, 0)
    scan = stage_input.prepare(Case("ramp", Volume(world, grid), tiny_case(0)[1]), recipe)
    return recipe, packs_of((COARSE, FINE), [scan], folder)


@pytest.mark.parametrize("seed", range(4))
def test_equal_places_of_two_stages_show_the_same_tissue(tmp_path: Path, seed: int) -> None:
    """After rotation, scaling, translation, deformation and mirroring: where the coarse and fine patches
    overlap in local coordinates, both contain the same point of the patient."""
    recipe, packs = ramp_packs(tmp_path)
    change = Augmentation.model_validate({**SPATIAL, "flip_axes": ("R", "A")})
    batch = draw(centred(packs, (13, 8, 9)), seed, augmentation=change, recipe=recipe)
    coarse, fine = batch.stages["coarse"], batch.stages["fine"]
    common = coarse.grids[0].box_of(fine.grids[0], fine.grids[0].box).expand((-1, -1, -1))
    overlap = common.intersect(coarse.grids[0].box)
    there = coarse.grids[0].crop(overlap)
    points = coarse.image_BCIJK[0][(slice(None), *overlap.slices)]
    same = resample_data(fine.image_BCIJK[0], fine.grids[0], there, antialias=False)
    # Near the faces of the scan the ramp ends, and coarse voxels average over more of the repeated edge.
    inner = (points.abs() < torch.tensor([18.0, 14.0, 18.0]).reshape(3, 1, 1, 1)).all(dim=0)
    assert int(inner.sum()) > 20
    assert float((points - same)[:, inner].abs().max()) < 0.3


def test_unaugmented_patches_of_two_stages_lie_where_their_grids_say(tmp_path: Path) -> None:
    recipe, packs = ramp_packs(tmp_path)
    centre = (13, 8, 9)
    batch = draw(centred(packs, centre), recipe=recipe)
    start = placed(centre, (16, 16, 12)).start
    at = [c - s for c, s in zip(centre, start, strict=True)]
    voxel = batch.stages["fine"].image_BCIJK[0, :, at[0], at[1], at[2]]
    assert voxel.tolist() == pytest.approx(packs["fine"][0].grid.world(centre).tolist(), abs=0.02)
    origins = {n: np.array(s.grids[0].world((0, 0, 0))) for n, s in batch.stages.items()}
    shown = {n: s.image_BCIJK[0, :, 4, 4, 4].numpy() for n, s in batch.stages.items()}
    steps = {n: 4 * np.array(packs[n][0].spacing_mm) for n in packs}
    local = origins["fine"] + steps["fine"] - origins["coarse"] - steps["coarse"]
    assert (shown["fine"] - shown["coarse"]).tolist() == pytest.approx(local.tolist(), abs=0.05)


@pytest.mark.parametrize("margin_mm", [4.0, 9.0, 14.0])
@pytest.mark.parametrize("side", range(6))
def test_a_patch_of_a_reference_box_is_the_box_of_prediction_at_every_border(
    tmp_path: Path, side: int, margin_mm: float
) -> None:
    """The scan's channels are the world coordinates (mm) of its voxels. The organ lies 3 voxels from a
    border, where the widest box ends."""
    axis, end = divmod(side, 2)
    grid = Grid.from_spacing((24, 20, 16), (2.0, 2.0, 3.0), (-24.0, -20.0, -24.0))
    start = [9, 8, 6]
    start[axis] = grid.shape[axis] - 8 if end else 3
    classes = np.zeros(grid.shape, dtype=np.uint8)
    classes[tuple(slice(n, n + 5) for n in start)] = 1
    index = np.stack(np.meshgrid(*[np.arange(n) for n in grid.shape], indexing="ij"), axis=-1)
    world = np.moveaxis(grid.world(index), -1, 0).astype(np.float32)
    case = Case("ramp", Volume(world, grid), LabelMap(classes, grid, SCHEMA))
    window = {"kind": "window", "lower": -100, "upper": 100, "output": (-100.0, 100.0)}
    recipe = Recipe.model_validate(RECIPE.model_dump() | {"intensity": window, "prior_from": "predictions"})
    roi_spec = BoxAround(of="coarse", margin_mm=margin_mm, reference_margin_mm=(4, 14))
    shape = FixedShape(shape=(16, 16, 12), tile=(16, 16, 12))
    stage = FINE.model_copy(update={"roi": roi_spec, "grid": shape, "inputs": (ImageInput(),)})
    scan = stage_input.prepare(case, recipe)
    packed = packed_cases.pack(stage, recipe, scan, {}, SCHEMA.names, tmp_path, np.random.default_rng(0))
    assert packed is not None
    patches = PatchSource(recipe, [stage], {"fine": [packed]}, {"fine": SCHEMA}, augmented=False)
    (shown,) = patches.draw(1, np.random.default_rng(0)).stages["fine"].image_BCIJK
    region = roi.box_around(classes > 0, grid, scan.grid, margin_mm)
    assert region is not None
    expected = grids.stage_grid(shape, scan.grid, region.box)
    inner = Box((2, 2, 2), (14, 14, 10))  # near the scan's faces the ramp ends
    places = np.stack(np.meshgrid(*[np.arange(2, n - 2) for n in shape.shape], indexing="ij"), axis=-1)
    found = np.moveaxis(shown[(slice(None), *inner.slices)].numpy(), 0, -1)
    np.testing.assert_allclose(found, expected.world(places), rtol=0, atol=0.05)


def test_mirrored_patches_swap_labels_counts_and_stored_priors(apart: dict[str, list[PackedCase]]) -> None:
    packs = centred(apart, (11, 10, 8))
    plain = draw(packs).stages["fine"]
    assert plain.counts_BC[0, 1] != plain.counts_BC[0, 2]
    flips = Augmentation(flip_axes=("R",), probability=0.0)
    swap, target_of = [0, 2, 1], torch.arange(256, dtype=torch.uint8)
    target_of[1], target_of[2] = 2, 1
    kinds: Counter[bool] = Counter()
    for seed in range(8):
        data = draw(packs, seed, augmentation=flips).stages["fine"]
        mirrored = not torch.allclose(data.image_BCIJK, plain.image_BCIJK, atol=1e-4)
        kinds[mirrored] += 1
        if not mirrored:
            assert torch.equal(data.target_BIJK, plain.target_BIJK)
            continue
        torch.testing.assert_close(data.image_BCIJK, plain.image_BCIJK.flip(2), rtol=0, atol=1e-4)
        assert torch.equal(data.target_BIJK, target_of[plain.target_BIJK.long()].flip(1))
        assert torch.equal(data.counts_BC, plain.counts_BC[:, swap])
        expected = plain.stored["coarse"][:, swap].flip(2)
        torch.testing.assert_close(data.stored["coarse"], expected, rtol=0, atol=1e-4)
    assert min(kinds[True], kinds[False]) >= 1


def partly(
    packs: Mapping[str, Sequence[PackedCase]], *annotated: Sequence[bool]
) -> dict[str, list[PackedCase]]:
    """The cases with the given annotated labels."""
    return {
        name: [replace(p, annotated=np.array(own)) for p, own in zip(cases, annotated, strict=True)]
        for name, cases in packs.items()
    }


def test_what_was_drawn_on_the_left_is_on_the_right_of_a_mirrored_patch(
    apart: dict[str, list[PackedCase]],
) -> None:
    packs = partly(centred(apart, (11, 10, 8)), [True, True, False])
    plain = draw(packs).stages["fine"]
    assert plain.annotated_BC is not None
    assert plain.annotated_BC.tolist() == [[True, True, False]]
    kinds: Counter[bool] = Counter()
    for seed in range(8):
        data = draw(packs, seed, augmentation=Augmentation(flip_axes=("R",), probability=0.0)).stages["fine"]
        mirrored = not torch.allclose(data.image_BCIJK, plain.image_BCIJK, atol=1e-4)
        kinds[mirrored] += 1
        assert data.annotated_BC is not None
        assert data.annotated_BC.tolist() == [[True, not mirrored, mirrored]]
    assert len(kinds) == 2


def test_what_was_drawn_goes_with_every_patch_of_a_batch(together: dict[str, list[PackedCase]]) -> None:
    drawn = {"case_0": [True, True, True], "case_1": [True, False, True]}
    batch = source(partly(together, *drawn.values())).draw(6, np.random.default_rng(0))
    assert set(batch.cases) == set(drawn)
    for data in batch.stages.values():
        assert data.annotated_BC is not None
        assert data.annotated_BC.tolist() == [drawn[case] for case in batch.cases]
    complete = source(together).draw(6, np.random.default_rng(0))
    assert [data.annotated_BC for data in complete.stages.values()] == [None, None]


def test_other_axes_are_mirrored_without_swapping(apart: dict[str, list[PackedCase]]) -> None:
    packs = centred(apart, (11, 10, 8))
    plain = draw(packs).stages["fine"].target_BIJK
    flips = Augmentation(flip_axes=("S",), probability=0.0)
    seen = [draw(packs, seed, augmentation=flips).stages["fine"].target_BIJK for seed in range(6)]
    assert all(torch.equal(t, plain) or torch.equal(t, plain.flip(3)) for t in seen)
    assert any(torch.equal(t, plain.flip(3)) for t in seen)


def test_equal_generators_give_equal_batches(together: dict[str, list[PackedCase]]) -> None:
    change = Augmentation.model_validate({**SPATIAL, "noise": 0.2, "brightness": 0.2, "gamma": (0.7, 1.4)})
    patches = source(together, augmentation=change)
    one, two, other = (patches.draw(3, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert one.cases == two.cases
    for name in ("coarse", "fine"):
        a, b, c = (batch.stages[name] for batch in (one, two, other))
        assert torch.equal(a.image_BCIJK, b.image_BCIJK)
        assert torch.equal(a.target_BIJK, b.target_BIJK)
        assert a.grids == b.grids
        assert not torch.equal(a.image_BCIJK, c.image_BCIJK)


def test_an_organ_changes_its_brightness_alike_in_every_stage(together: dict[str, list[PackedCase]]) -> None:
    plain = source(together).draw(6, np.random.default_rng(3))
    change = Augmentation(organ_brightness=0.7)
    changed = source(together, augmentation=change).draw(6, np.random.default_rng(3))
    ratios: dict[str, list[list[float]]] = {}
    for name, data in changed.stages.items():
        before, after, target = plain.stages[name].image_BCIJK, data.image_BCIJK, data.target_BIJK
        low = before.amin(dim=(2, 3, 4), keepdim=True)
        ratio = ((after - low) / (before - low))[:, 0]
        ratios[name] = [
            [
                float(ratio[b][target[b] == c].nanmedian()) if (target[b] == c).any() else 1.0
                for c in (0, 1, 2)
            ]
            for b in range(6)
        ]
    assert all(of_background == pytest.approx(1, abs=0.01) for of_background, *_ in ratios["fine"])
    organs = np.array([own[1:] for own in ratios["fine"]])
    assert organs.min() < 0.8
    assert organs.max() > 1.2
    # On the coarse grid, an organ consists mainly of its blurred edge: the change is smaller but correlated.
    coarse = np.array(ratios["coarse"])[:, 1:]
    assert np.corrcoef(coarse.ravel(), organs.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("windowed", [True, False], ids=["window", "zscore"])
def test_intensity_changes_stay_within_the_window(
    together: dict[str, list[PackedCase]], windowed: bool
) -> None:
    recipe = (
        RECIPE if windowed else Recipe.model_validate(RECIPE.model_dump() | {"intensity": {"kind": "zscore"}})
    )
    change = Augmentation(noise=3.0, brightness=3.0)
    image = source(together, change, recipe).draw(4, np.random.default_rng(0)).stages["fine"].image_BCIJK
    assert bool((image.min() >= 0) & (image.max() <= 1)) == windowed


def test_a_batch_stacks_its_draws(together: dict[str, list[PackedCase]]) -> None:
    batch = source(together).draw(5, np.random.default_rng(1))
    assert len(batch.cases) == 5
    for name, shape in (("coarse", (12, 12, 12)), ("fine", (16, 16, 12))):
        data = batch.stages[name]
        assert tuple(data.image_BCIJK.shape) == (5, 1, *shape)
        assert [g.shape for g in data.grids] == [shape] * 5
        for case, counts in zip(batch.cases, data.counts_BC, strict=True):
            held = next(p for p in together[name] if p.case == case)
            assert counts.tolist() == held.counts.tolist()


def test_patches_of_a_batch_may_come_from_different_cases(together: dict[str, list[PackedCase]]) -> None:
    def mixed(**training: object) -> list[int]:
        patches = source(together, **training)  # type: ignore[arg-type]
        batches = [patches.draw(2, np.random.default_rng(seed)).cases for seed in range(30)]
        return [len(set(cases)) for cases in batches]

    assert set(mixed()) == {1, 2}
    assert set(mixed(distinct_cases=True)) == {2}
