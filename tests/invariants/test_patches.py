"""Content of training patches: the patches of all stages show the same tissue at the same local coordinates
under any rotation and deformation, and mirrored patches have left and right labels exchanged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from helpers.grids import centre_mm, indices, oriented, ramp
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.resample import resample_data
from zoomseg.io.cache import ChunkedArray, write_array
from zoomseg.recipe.load import from_dict
from zoomseg.recipe.spec import Augmentation, Recipe, Stage
from zoomseg.training.data.packed_cases import PackedCase, StoredPrior
from zoomseg.training.data.patches import Batch, PatchSource
from zoomseg.training.data.sampler import Candidates, list_candidates

SCAN = oriented((56, 48, 40), (2.0, 2.5, 3.0), (-50.0, 20.0, -200.0), angles_deg=(4, -7, 10))
SIDES = LabelSchema.consecutive(("left_kidney", "right_kidney"))
TURN_AND_BEND = Augmentation(
    rotation_deg=(25, 25, 25),
    scale=(0.8, 1.25),
    translation_vox=4,
    elastic_vox=2,
    elastic_grid_vox=10,
    flip_axes=("R", "A"),
)


def recipe(augmentation: Augmentation) -> Recipe:
    """A recipe with a coarse and a fine stage; only the settings that affect patches matter."""
    network = {"kind": "unet3d", "channels": [2, 4]}

    def stage(name: str, mm: list[float], patch: list[int]) -> dict[str, object]:
        return {
            "name": name,
            "grid": {"kind": "spacing", "mm": mm, "tile": patch},
            "network": network,
            "training": {
                "patch": patch,
                "iterations": 1,
                "sampler": {"kind": "class_balanced", "background_share": 0.5},
                "augmentation": augmentation.model_dump(),
            },
        }

    made = from_dict(
        {
            "name": "patches",
            "intensity": {"kind": "zscore"},
            "stages": [stage("coarse", [8, 7, 9], [12, 14, 10]), stage("fine", [2.5, 2, 3], [14, 12, 16])],
        }
    )
    assert isinstance(made, Recipe)
    return made


def stored(folder: Path, name: str, array: np.ndarray) -> ChunkedArray:
    write_array(folder / f"{name}.b2nd", array)
    return ChunkedArray.open(folder / f"{name}.b2nd")


def packed(
    folder: Path,
    name: str,
    grid: Grid,
    image: np.ndarray,
    labels: np.ndarray,
    box: Box | None = None,
    priors: dict[str, StoredPrior] | None = None,
) -> PackedCase:
    """A case as stored by ``training.data.packed_cases``, in full precision; ``image`` and ``labels`` lie on
    ``grid``."""
    box = box or grid.box
    candidates = list_candidates(labels[box.slices], None, box.start, np.random.default_rng(0))
    return PackedCase(
        "case",
        grid,
        box,
        stored(folder, f"{name}-image", image[(slice(None), *box.slices)].astype(np.float32)),
        stored(folder, f"{name}-labels", labels[box.slices]),
        candidates,
        np.bincount(labels[labels != IGNORE], minlength=3),
        np.ones(3, dtype=bool),
        priors or {},
    )


def drawn(
    made: Recipe, packs: dict[str, PackedCase], schemas: dict[str, LabelSchema], count: int
) -> list[Batch]:
    stages: Sequence[Stage] = [s for s in made.stages if s.name in packs]
    source = PatchSource(made, stages, {n: [p] for n, p in packs.items()}, schemas)
    return [source.draw(1, np.random.default_rng(seed)) for seed in range(count)]


def grids_of(kind: str) -> dict[str, Grid]:
    """The grids of the coarse and the fine stage over the scan; for ``box`` the fine one has another origin,
    as for the kind ``shape`` around an organ."""
    coarse, fine = SCAN.with_spacing((8.0, 7.0, 9.0)), SCAN.with_spacing((2.5, 2.0, 3.0))
    if kind == "box":
        fine = SCAN.crop(Box((10, 8, 6), (50, 44, 36))).with_shape((34, 40, 31))
    return {"coarse": coarse, "fine": fine}


@pytest.mark.parametrize("kind", ["scan", "box"])
def test_equal_local_coordinates_show_the_same_point_of_the_patient(tmp_path: Path, kind: str) -> None:
    made, grids = recipe(TURN_AND_BEND), grids_of(kind)
    packs = {
        name: packed(tmp_path, name, grid, ramp(grid).data, np.zeros(grid.shape, dtype=np.uint8))
        for name, grid in grids.items()
    }
    compared = 0
    for batch in drawn(made, packs, {"coarse": SIDES, "fine": SIDES}, 12):
        low, high = (batch.stages[name].grids[0] for name in ("coarse", "fine"))
        shown = batch.stages["fine"].image_BCIJK[0]
        moved = resample_data(batch.stages["coarse"].image_BCIJK[0], low, high)
        # Outside the scan, edge values are repeated, which are not coordinates.
        points = torch.movedim(shown, 0, -1).numpy()
        away = np.ones(high.shape, dtype=bool)
        for at, grid in [(grid.index(points), grid) for grid in grids.values()] + [
            (low.index(high.world(indices(high))), low)
        ]:
            away &= ((at > 1) & (at < np.array(grid.shape) - 2)).all(axis=-1)
        difference = (moved - shown).norm(dim=0).numpy()[away]
        compared += difference.size
        # The deformation is smooth, but not linear between coarse voxels of 7 to 9 mm.
        assert difference.size == 0 or difference.max() < 0.3
    assert compared > 10_000


@pytest.mark.parametrize("kind", ["scan", "box"])
def test_the_drawn_voxel_is_where_both_stages_look(tmp_path: Path, kind: str) -> None:
    made, grids = recipe(Augmentation()), grids_of(kind)
    point = grids["fine"].world((30, 33, 17))
    packs = {}
    for name, grid in grids.items():
        labels = np.zeros(grid.shape, dtype=np.uint8)
        labels[tuple(np.floor(grid.index(point) + 0.5).astype(int))] = 1
        packs[name] = packed(tmp_path, name, grid, ramp(grid).data, labels)
    found = 0
    for batch in drawn(made, packs, {"coarse": SIDES, "fine": SIDES}, 20):
        coarse, fine = batch.stages["coarse"], batch.stages["fine"]
        if not (fine.target_BIJK == 1).any():
            continue  # a background sample
        found += 1
        at, there = (torch.nonzero(p.target_BIJK[0] == 1)[0].tolist() for p in (fine, coarse))
        assert fine.image_BCIJK[0][:, *at].numpy() == pytest.approx(point, abs=1e-3)
        assert np.abs(coarse.grids[0].index(fine.grids[0].world(at)) - there).max() <= 0.5
    assert found >= 5


def test_however_a_patch_is_turned_the_drawn_voxel_is_in_its_middle(tmp_path: Path) -> None:
    """This includes patches whose centre differs from that of the coarse patch, the centre of rotation."""
    turned = Augmentation(rotation_deg=(40, 40, 40), scale=(0.6, 1.6), flip_axes=("R", "S"))
    made, grids = recipe(turned), grids_of("scan")
    index = (14, 20, 13)
    packs = {n: packed(tmp_path, n, g, ramp(g).data, np.zeros(g.shape, np.uint8)) for n, g in grids.items()}
    only = {1: np.array([index], dtype=np.int32)}
    packs["fine"] = replace(packs["fine"], candidates=Candidates(only[1], only))
    for batch in drawn(made, packs, {"coarse": SIDES, "fine": SIDES}, 10):
        fine, coarse = (batch.stages[name] for name in ("fine", "coarse"))
        middle = [n // 2 for n in fine.target_BIJK.shape[1:]]
        shown = fine.image_BCIJK[0][:, *middle].numpy()
        # Patches of even size have no central voxel: half a voxel of tolerance, rotated and scaled.
        assert np.abs(grids["fine"].index(shown) - index).max() < 1.7
        apart = centre_mm(coarse.grids[0]) - centre_mm(fine.grids[0])
        assert np.abs(apart).max() > 3, "the two patches have one middle: the test shows nothing"


def test_a_patch_that_is_not_changed_is_a_crop_of_image_labels_and_priors(tmp_path: Path) -> None:
    made, grid = recipe(Augmentation()), grids_of("scan")["fine"]
    labels = np.random.default_rng(0).integers(0, 3, grid.shape).astype(np.uint8)
    box = Box((3, 2, 4), (42, 55, 38))
    known = np.full(grid.shape, IGNORE, dtype=np.uint8)
    known[box.slices] = labels[box.slices]
    # The prior has its own grid and is also a ramp, which shows from where it was read.
    other = grid.downsampled((2, 2, 2))
    prior = StoredPrior(stored(tmp_path, "prior", ramp(other).data.astype(np.float32)), other, ("a", "b"))
    pack = packed(tmp_path, "fine", grid, ramp(grid).data, labels, box, {"early": prior})
    for batch in drawn(made, {"fine": pack}, {"fine": SIDES}, 10):
        part = batch.stages["fine"]
        middle = [n // 2 for n in part.target_BIJK.shape[1:]]
        index = np.round(grid.index(part.image_BCIJK[0][:, *middle].numpy())).astype(int)
        start = index - middle
        here = Box(tuple(start.tolist()), tuple((start + part.target_BIJK.shape[1:]).tolist()))
        assert np.array_equal(part.target_BIJK[0].numpy(), known[here.slices])
        wanted = ramp(grid.crop(here)).data
        stored_here = inside(grid.crop(here), grid.crop(box))
        read = inside(grid.crop(here), other)
        assert part.image_BCIJK[0][:, stored_here].numpy() == pytest.approx(wanted[:, stored_here], abs=1e-3)
        assert part.stored["early"][0][:, read].numpy() == pytest.approx(wanted[:, read], abs=1e-3)


def inside(patch: Grid, source: Grid) -> np.ndarray:
    """Voxels of a patch that lie between voxel centres of the source."""
    at = source.index(patch.world(indices(patch)))
    return ((at >= -1e-6) & (at <= np.array(source.shape) - 1 + 1e-6)).all(axis=-1)


@pytest.mark.parametrize("lead_sees", ["sides", "no sides"])
def test_a_mirrored_patch_shows_the_left_organ_as_the_right_one(tmp_path: Path, lead_sees: str) -> None:
    """In the image, the left kidney has the value 1 and the right one 2. In a mirrored patch, voxels of value
    1 must be the right kidney in the labels, class counts and priors of every stage, also if the last stage
    has no labels with sides."""
    made, grids = recipe(Augmentation(flip_axes=("R",))), grids_of("scan")
    schemas = {"coarse": SIDES, "fine": SIDES}
    if lead_sees == "no sides":
        schemas["fine"] = LabelSchema.consecutive(("liver", "spleen"))
    packs = {}
    for name, grid in grids.items():
        labels = np.zeros(grid.shape, dtype=np.uint8)
        half, third = grid.shape[0] // 2, grid.shape[1] // 3
        labels[:half, :third], labels[half:, : 2 * third] = 1, 2
        hot = np.eye(3, dtype=np.float32)[labels].transpose(3, 0, 1, 2)
        prior = StoredPrior(stored(tmp_path, f"{name}-early", hot), grid, SIDES.names)
        image = labels.astype(np.float32)[None]
        packs[name] = packed(tmp_path, name, grid, image, labels, priors={"early": prior})
    seen = {False: 0, True: 0}
    for batch in drawn(made, packs, schemas, 30):
        mirrored = set()
        for name, part in batch.stages.items():
            image, target = part.image_BCIJK[0, 0], part.target_BIJK[0]
            if not (image == 1).any() or not (image == 2).any():
                continue
            called = {c: set(target[(image == c) & (target != IGNORE)].tolist()) for c in (1, 2)}
            assert called in ({1: {1}, 2: {2}}, {1: {2}, 2: {1}})
            early = part.stored["early"][0].argmax(dim=0)
            sides = set(early[image == 1].tolist())
            mirrored.add(sides == {2})
            expected = sides if schemas[name] == SIDES else {1}
            assert called[1] == expected
            own = packs[name].counts.tolist()
            swapped = sides == {2} and schemas[name] == SIDES
            assert part.counts_BC[0].tolist() == ([own[0], own[2], own[1]] if swapped else own)
        assert len(mirrored) <= 1  # all stages are mirrored, or none
        for m in mirrored:
            seen[m] += 1
    assert min(seen.values()) >= 3
