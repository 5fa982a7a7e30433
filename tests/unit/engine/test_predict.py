"""One scan through a cascade whose networks are known functions."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tiny import CPU, SCHEMA, tiny_case, tiny_recipe
from untrained import predictor, untrained_bundle
from zoomseg.core.case import Case
from zoomseg.core.errors import GeometryError, ModelError
from zoomseg.core.geometry import Box, Grid
from zoomseg.core.region import Region
from zoomseg.core.tiling import Tile
from zoomseg.core.volume import Volume
from zoomseg.engine import look
from zoomseg.engine.predict import (
    Network,
    Predictor,
    Result,
    cascade,
    input_channels,
    run_stage,
)

RECIPE = tiny_recipe(together=True)


def always(channel: int) -> Network:
    """A network that is certain of one class everywhere."""

    def compute(x_BCIJK: Tensor, tile: Tile) -> Tensor:
        logits = torch.zeros(1, SCHEMA.classes, *tile.inner.shape)
        logits[:, channel] = 20.0
        return logits

    return compute


def bright(x_BCIJK: Tensor, tile: Tile) -> Tensor:
    """Class 1 where the normalised image is above a half, background elsewhere."""
    high = x_BCIJK[:, :1] > 0.5
    return torch.cat([~high * 20.0, high * 20.0, torch.full_like(high * 1.0, -20.0)], dim=1)


def run(coarse: Network, fine: Network, organs: tuple[str, ...] | None = None) -> Result:
    case = Case("x", tiny_case(0)[0])
    return cascade(case, RECIPE, SCHEMA, {"coarse": coarse, "fine": fine}, CPU, organs)


def test_the_fine_stage_decides_inside_its_region_and_only_there() -> None:
    found = run(bright, always(2))
    region = found.priors["fine"].region
    inside = region.on(found.labels.grid).mask_in(found.labels.grid.box)
    assert 0 < int(inside.sum()) < inside.numel()
    assert torch.equal(found.labels.data, torch.where(inside, 2, 0).byte())
    assert found.confidence["right kidney"] == pytest.approx(1.0, abs=1e-4)


def test_a_cascade_that_finds_nothing_says_background() -> None:
    empty = RECIPE.model_copy(update={"on_missing": "empty"})
    case = Case("x", tiny_case(0)[0])
    found = cascade(case, empty, SCHEMA, {"coarse": always(0), "fine": always(1)}, CPU)
    assert not found.labels.data.any()
    assert list(found.priors) == ["coarse"]
    assert [r.stage for r in found.records] == ["coarse"]
    assert found.confidence == {}


def test_on_missing_whole_volume_looks_everywhere() -> None:
    found = run(always(0), always(1))
    assert bool((found.labels.data == 1).all())


def test_only_the_organs_asked_for() -> None:
    assert not run(bright, always(2), ("left kidney",)).labels.data.any()
    assert bool((run(bright, always(2), ("right kidney",)).labels.data == 2).any())


def test_tiles_that_touch_no_voxel_of_the_region_are_skipped_and_counted() -> None:
    grid = Grid.from_spacing((64, 16, 12), (2.0, 2.0, 3.0))
    image = Volume(torch.rand(1, *grid.shape), grid)
    scan = look.prepare(Case("x", image), RECIPE)
    mask = torch.zeros(64, 16, 12, dtype=torch.bool)
    mask[:4], mask[-4:] = True, True
    stage = RECIPE.stages[1]
    view = look.View(stage, grid, Region(grid, grid.box, mask))
    seen: list[Tile] = []

    def watch(x_BCIJK: Tensor, tile: Tile) -> Tensor:
        seen.append(tile)
        return always(1)(x_BCIJK, tile)

    first, _ = run_stage(
        look.View(RECIPE.stages[0], grid, Region.whole(grid)), scan, {}, SCHEMA.names, always(0), CPU
    )
    prior, record = run_stage(view, scan, {"coarse": first}, SCHEMA.names, watch, CPU)
    assert record.tiles == len(seen) == 2
    assert record.tiles_skipped == 3
    assert record.region_share == pytest.approx(8 / 64)
    assert bool((prior.probabilities[1, :4] > 0.99).all())
    assert bool((prior.probabilities[0, 30:34] == 1).all())


def test_a_prior_ends_in_background_where_its_region_ends_inside_the_scan() -> None:
    grid = Grid.from_spacing((24, 20, 16), (2.0, 2.0, 3.0))
    scan = look.prepare(Case("x", tiny_case(0)[0]), RECIPE)
    first, _ = run_stage(
        look.View(RECIPE.stages[0], grid, Region.whole(grid)), scan, {}, SCHEMA.names, always(0), CPU
    )
    box = Box((4, 0, 5), (20, 20, 12))
    view = look.View(RECIPE.stages[1], scan.grid, Region(scan.grid, box))
    prior, _ = run_stage(view, scan, {"coarse": first}, SCHEMA.names, always(1), CPU)
    assert prior.grid.same_as(scan.grid.crop(Box((3, 0, 4), (21, 20, 13))))
    assert bool((prior.probabilities[0, 0] == 1).all())
    assert bool((prior.probabilities[0, :, :, -1] == 1).all())
    assert bool((prior.probabilities[1, 1:-1, :, 1:-1] > 0.99).all())


def test_input_channels_count_the_image_and_the_labels_of_priors() -> None:
    coarse, fine = RECIPE.stages
    assert input_channels(coarse, RECIPE, SCHEMA, channels=2) == 2
    assert input_channels(fine, RECIPE, SCHEMA, channels=2) == 4


def test_predictor_refuses_other_channels() -> None:
    image, _ = tiny_case(0)
    with pytest.raises(GeometryError, match=r"has 2 channel\(s\), the model needs 1: CT"):
        predictor().predict(Case("x", Volume(image.data.repeat(2, 1, 1, 1), image.grid)))


def test_weights_of_another_network_are_refused() -> None:
    bundle = untrained_bundle()
    swapped = replace(bundle, weights={"coarse": bundle.weights["fine"], "fine": bundle.weights["coarse"]})
    with pytest.raises(ModelError, match="weights of stage 'coarse' do not fit its network"):
        Predictor(swapped, CPU)


def test_prediction_is_repeatable_and_keeps_the_grid() -> None:
    image, _ = tiny_case(4)
    model = predictor()
    one, two = (model.predict(Case("x", image)) for _ in range(2))
    assert torch.equal(one.labels.data, two.labels.data)
    assert one.labels.grid.same_as(image.grid)
    total = one.priors["fine"].probabilities.sum(dim=0)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-4)
