"""Edits of a recipe change what their names say, and nothing else."""

from __future__ import annotations

import pytest

from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.errors import RecipeError
from zoomseg.recipe import graph
from zoomseg.recipe.network_shapes import check_input_shape
from zoomseg.recipe.spec import AtlasInput, BoxAround, PriorInput, Recipe
from zoomseg.study import recipe_edits
from zoomseg.study.recipe_edits import shipped

TINY = tiny_recipe(together=True)


def changed(before: Recipe, after: Recipe) -> set[str]:
    """Dotted names of what differs."""

    def differences(a: object, b: object, where: str) -> set[str]:
        if isinstance(a, dict) and isinstance(b, dict):
            return {d for k in a.keys() | b.keys() for d in differences(a.get(k), b.get(k), f"{where}.{k}")}
        if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
            return {d for n in range(len(a)) for d in differences(a[n], b[n], f"{where}.{n}")}
        return set() if a == b else {where[1:]}

    return differences(before.model_dump(mode="json"), after.model_dump(mode="json"), "")


def test_only_the_first_stage() -> None:
    recipe = recipe_edits.only("coarse")(TINY)
    assert recipe.stages == TINY.stages[:1]
    assert recipe.train_together == ()
    graph.validate(recipe)


def test_only_a_stage_keeps_those_it_needs_and_answers() -> None:
    silent = recipe_edits.on_stages(lambda s: s.model_copy(update={"fusion": "none"}), "fine")(TINY)
    recipe = recipe_edits.only("fine")(silent)
    assert [s.name for s in recipe.stages] == ["coarse", "fine"]
    assert recipe.stages[1].fusion == "replace_in_roi"
    assert recipe.train_together == TINY.train_together
    with pytest.raises(RecipeError, match="no stage 'finer'"):
        recipe_edits.only("finer")(TINY)


def test_overlap_of_one_stage() -> None:
    recipe = recipe_edits.overlap("fine", 0.0)(TINY)
    assert changed(TINY, recipe) == {"stages.1.grid.overlap"}
    assert recipe.stages[1].grid.overlap == 0.0


def test_a_change_of_a_stage_that_the_recipe_lacks_is_refused() -> None:
    for edit in (
        recipe_edits.overlap("stage2", 0.0),
        recipe_edits.on_stages(recipe_edits.unweighted, "coarse", "stage2"),
        recipe_edits.times_atlas("stage2", "valindria2018-small-organs"),
    ):
        with pytest.raises(RecipeError, match="recipe 'tiny' has no stage 'stage2'; allowed: coarse, fine"):
            edit(TINY)


def test_trained_apart() -> None:
    assert changed(TINY, recipe_edits.trained_apart(TINY)) == {"train_together"}
    assert len(graph.training_groups(recipe_edits.trained_apart(TINY))) == 2


def test_chain_goes_from_left_to_right() -> None:
    recipe = recipe_edits.chain(recipe_edits.overlap("fine", 0.1), recipe_edits.overlap("fine", 0.2))(TINY)
    assert recipe.stages[1].grid.overlap == 0.2


def test_weights_auto_context_and_atlas_of_the_small_organ_recipe() -> None:
    recipe = shipped("valindria2018-small-organs")
    plain = recipe_edits.on_stages(recipe_edits.unweighted)(recipe)
    assert {s.training.sampler.kind for s in plain.stages} == {"uniform"}
    bare = recipe_edits.on_stages(recipe_edits.without_auto_context)(recipe)
    assert changed(recipe, bare) == {"stages.1.inputs"}
    assert not any(isinstance(i, PriorInput | AtlasInput) for i in bare.stages[1].inputs)
    boxes = recipe_edits.without_atlas(recipe)
    assert boxes.stages[1].roi == BoxAround(of="coarse", labels="own", margin_mm=12)
    assert boxes.atlas is None
    for variant in (plain, bare, boxes):
        graph.validate(variant)


def test_times_atlas_brings_the_atlas_back() -> None:
    recipe = shipped("valindria2018-small-organs")
    coarse = recipe_edits.chain(recipe_edits.without_atlas, recipe_edits.only("coarse"))(recipe)
    combined = recipe_edits.times_atlas("coarse", recipe.name)(coarse)
    assert combined.atlas == recipe.atlas
    assert [s.fusion for s in combined.stages] == ["replace_times_atlas"]
    graph.validate(combined)


def test_a_recipe_that_has_to_be_planned_is_refused() -> None:
    with pytest.raises(RecipeError, match="has no numbers of its own"):
        shipped("default")


def test_coarser_grids_and_nothing_else() -> None:
    recipe = recipe_edits.coarser(1.5)(TINY)
    assert changed(TINY, recipe) == {f"stages.{s}.grid.mm.{a}" for s in (0, 1) for a in (0, 1, 2)}
    assert recipe.stages[1].grid.mm == (3.0, 3.0, 4.5)  # type: ignore[union-attr]
    cascade = recipe_edits.coarser(2)(shipped("roth2018-cascade"))
    assert [s.grid.factor for s in cascade.stages] == [(4, 4, 4)] * 2  # type: ignore[union-attr]
    assert recipe_edits.coarser(1)(TINY) is TINY


def test_a_coarser_fixed_shape_takes_its_tile_and_patch_along() -> None:
    before = shipped("flare22-whole-volume")
    recipe = recipe_edits.coarser(2)(before)
    for stage, old in zip(recipe.stages, before.stages, strict=True):
        assert stage.grid.shape == stage.grid.tile == stage.training.patch  # type: ignore[union-attr]
        assert stage.training.patch[0] == (64 if old.training.patch[0] == 128 else 80)
        check_input_shape(stage.network, stage.grid.padding, stage.grid.tile)
    # In the network's steps of 16, the nearest, and at least one of them.
    assert [s.grid.tile[0] for s in recipe_edits.coarser(2.6)(before).stages[:2]] == [48, 64]
    assert [s.grid.tile[0] for s in recipe_edits.coarser(99)(before).stages[:2]] == [16, 16]


def test_narrower_networks() -> None:
    recipe = recipe_edits.narrower(4)(shipped("roth2018-cascade"))
    assert recipe.stages[0].network.channels == (16, 32, 64, 128)
    assert recipe_edits.narrower(100)(TINY).stages[0].network.channels == (2, 2)
    assert changed(TINY, recipe_edits.narrower(2)(TINY)) == {
        f"stages.{s}.network.channels.{n}" for s in (0, 1) for n in (0, 1)
    }
