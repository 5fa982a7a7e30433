"""A network that returns the truth on the requested tile drives every shipped recipe to its ceiling: what
its finest grid alone permits. Whatever is lost beyond that is lost in regions, tiles, stitching or fusion."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lattices import oriented, rotation
from tiny import CPU
from zoomseg.core.case import Case, Prior
from zoomseg.core.geometry import Grid, Orientation
from zoomseg.core.region import Region
from zoomseg.core.resample import resample_labels
from zoomseg.core.tiling import Tile
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.engine.plan import Fingerprint, plan
from zoomseg.engine.predict import Network, cascade
from zoomseg.io.phantom import PHANTOM_SCHEMA, phantom_case, phantom_grid
from zoomseg.recipe.load import load, names
from zoomseg.recipe.spec import PlannedRecipe, Recipe
from zoomseg.stage.fusion import Canvas, replace_in_roi
from zoomseg.stage.grid import stage_grid

TOLERANCE = 0.01

OBLIQUE = oriented((48, 42, 36), (7.0, 6.9, 7.2), (-165.0, -96.0, -148.0), angles_deg=(10, -8, 14))
"""Axes 10 to 17 degrees off the patient's, about the phantoms' field of view."""


def concrete(name: str, grid: Grid) -> Recipe:
    """The shipped recipe, planned for phantoms or with tiles small enough for a test."""
    recipe = load(name)
    if isinstance(recipe, PlannedRecipe):
        # Test phantoms have voxels of 9 mm: the region's margin grows with them.
        small = {
            "coarse_voxels": 16_000,
            "fine_voxels": 30_000,
            "fine_patch_voxels": 6000,
            "region_margin_mm": 30.0,
        }
        data = Fingerprint(grid.spacing_mm, grid.shape, grid.shape, True, (-100.0, 300.0), 1)
        return plan(recipe.model_copy(update=small), data, PHANTOM_SCHEMA, CPU)
    stages = [
        s.model_copy(update={"grid": s.grid.model_copy(update={"tile": (100, 100, 100)})})
        for s in recipe.stages
    ]
    return recipe.model_copy(update={"stages": tuple(stages)})


def oracle(truth: LabelMap, grid: Grid) -> Network:
    """Certain of the reference, sampled on the tile; beyond the scan its edge goes on, as the image does."""

    def compute(x_BCIJK: Tensor, tile: Tile) -> Tensor:
        here = resample_labels(truth, grid.crop(tile.inner)).data.long()
        return 20.0 * F.one_hot(here, truth.schema.classes).movedim(-1, 0)[None].float()

    return compute


def predicted(case: Case, recipe: Recipe) -> LabelMap:
    assert case.labels is not None
    turn = Orientation.to_canonical(case.image.grid)
    truth = case.labels.reoriented(turn)
    return cascade(case, recipe, truth.schema, lambda view: oracle(truth, view.grid), CPU).labels


def ceiling(case: Case, recipe: Recipe) -> LabelMap:
    """The reference through the last stage's grid and back, in one piece."""
    assert case.labels is not None
    truth, stage = case.labels, recipe.stages[-1]
    grid = stage_grid(stage.grid, truth.grid)
    there = resample_labels(truth, grid).data.long()
    hot = F.one_hot(there, truth.schema.classes).movedim(-1, 0).float()
    canvas = Canvas.blank(truth.grid, truth.schema)
    prior = Prior(hot, grid, truth.schema.names, Region.whole(grid), stage.name)
    replace_in_roi(canvas, prior, stage.argmax_on)
    return LabelMap(canvas.labels, truth.grid, truth.schema)


def dice(one: LabelMap, two: LabelMap) -> dict[str, float]:
    out = {}
    for c, name in enumerate(two.schema.names, start=1):
        a, b = one.data == c, two.data == c
        if b.any():
            out[name] = 2 * int((a & b).sum()) / int(a.sum() + b.sum())
    return out


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("grid", [phantom_grid("small"), OBLIQUE], ids=["axial", "oblique"])
def test_every_recipe_reaches_its_ceiling(name: str, grid: Grid) -> None:
    case = phantom_case(3, grid)
    assert case.labels is not None
    recipe = concrete(name, case.image.grid)
    assert len(recipe.stages) == 2
    reached, best = dice(predicted(case, recipe), case.labels), dice(ceiling(case, recipe), case.labels)
    assert best["liver"] > 0.8
    short = {n: (round(reached[n], 3), round(best[n], 3)) for n in best if reached[n] < best[n] - TOLERANCE}
    assert short == {}


@pytest.mark.parametrize("name", names())
def test_how_the_patient_lay_in_the_scanner_changes_nothing(name: str) -> None:
    """The same voxels under an affine turned by tens of degrees: all that is computed is the same."""
    case = phantom_case(4, "small")
    assert case.labels is not None
    recipe = concrete(name, case.image.grid)
    affine = case.image.grid.affine.copy()
    affine[:3] = rotation((20, -15, 30)) @ affine[:3]
    grid = Grid(case.image.grid.shape, affine)
    turned = Case("turned", Volume(case.image.data, grid), LabelMap(case.labels.data, grid, PHANTOM_SCHEMA))
    assert Orientation.to_canonical(grid).identity
    found = predicted(turned, recipe)
    assert found.grid == grid
    assert torch.equal(found.data, predicted(case, recipe).data)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize("flip", [(True, False, False), (False, True, True)])
def test_orientation_of_the_scan_changes_nothing(
    name: str, order: tuple[int, int, int], flip: tuple[bool, bool, bool]
) -> None:
    case = phantom_case(4, "small")
    assert case.labels is not None
    recipe = concrete(name, case.image.grid)
    turn = Orientation(order, flip)
    turned = Case("turned", case.image.reoriented(turn), case.labels.reoriented(turn))
    straight, other = predicted(case, recipe), predicted(turned, recipe)
    assert other.grid.same_as(turned.image.grid)
    assert torch.equal(other.data, straight.reoriented(turn).data)
