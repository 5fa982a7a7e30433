"""Edits of a recipe: functions from a recipe to another one, which can be chained."""

from __future__ import annotations

from collections.abc import Callable

from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Index3
from zoomseg.recipe import graph
from zoomseg.recipe.load import load
from zoomseg.recipe.network_shapes import divisor
from zoomseg.recipe.spec import (
    BoxAround,
    Downsample,
    FixedShape,
    FixedSpacing,
    PriorInput,
    ProbabilityTimesAtlas,
    Recipe,
    Stage,
    UniformInRegion,
)

Edit = Callable[[Recipe], Recipe]


def unchanged(recipe: Recipe) -> Recipe:
    return recipe


def chain(*edits: Edit) -> Edit:
    """One edit after the other."""

    def apply(recipe: Recipe) -> Recipe:
        for edit in edits:
            recipe = edit(recipe)
        return recipe

    return apply


def on_stages(change: Callable[[Stage], Stage], *names: str) -> Edit:
    """``change`` applied to the stages named; to all, if none is.

    Raises:
        RecipeError: the recipe has no stage of such a name.
    """

    def apply(recipe: Recipe) -> Recipe:
        for name in names:
            graph.stage_of(recipe, name)
        stages = tuple(change(s) if not names or s.name in names else s for s in recipe.stages)
        return recipe.model_copy(update={"stages": stages})

    return apply


def only(name: str) -> Edit:
    """Stage ``name`` and those that it needs; its prediction becomes the label map."""

    def apply(recipe: Recipe) -> Recipe:
        last = graph.in_label_map(graph.stage_of(recipe, name))
        needed = graph.ancestors(recipe, name)
        return graph.restricted(recipe, (*(s for s in recipe.stages if s.name in needed), last))

    return apply


def overlap(name: str, share: float) -> Edit:
    """Set the overlap of the tiles of stage ``name``."""

    def change(stage: Stage) -> Stage:
        return stage.model_copy(update={"grid": stage.grid.model_copy(update={"overlap": share})})

    return on_stages(change, name)


def trained_apart(recipe: Recipe) -> Recipe:
    """Stages are trained one after the other: no gradient flows between them."""
    return recipe.model_copy(update={"train_together": ()})


def without_auto_context(stage: Stage) -> Stage:
    """The network no longer reads earlier stages' predictions."""
    inputs = tuple(source for source in stage.inputs if not isinstance(source, PriorInput))
    return stage.model_copy(update={"inputs": inputs})


def unweighted(stage: Stage) -> Stage:
    """Training patches anywhere in the region, with equal probability."""
    training = stage.training.model_copy(update={"sampler": UniformInRegion()})
    return stage.model_copy(update={"training": training})


def box_of_coarse(stage: Stage) -> Stage:
    """The box around the coarse prediction, without the atlas."""
    roi = stage.roi
    if isinstance(roi, ProbabilityTimesAtlas):
        roi = BoxAround(of=roi.of, labels=roi.labels, margin_mm=roi.margin_mm)
    return stage.model_copy(update={"roi": roi})


def without_atlas(recipe: Recipe) -> Recipe:
    """No atlas: neither regions nor predictions depend on it."""
    return on_stages(box_of_coarse)(recipe).model_copy(update={"atlas": None})


def times_atlas(name: str, published: str) -> Edit:
    """Multiply the probabilities of stage ``name`` by the atlas prior of a shipped recipe."""

    def apply(recipe: Recipe) -> Recipe:
        change = {"fusion": "replace_times_atlas"}
        stages = on_stages(lambda stage: stage.model_copy(update=change), name)(recipe).stages
        return recipe.model_copy(update={"stages": stages, "atlas": shipped(published).atlas})

    return apply


def shipped(name_or_path: str) -> Recipe:
    """A complete recipe.

    Raises:
        RecipeError: there is none, or it has to be planned first.
    """
    recipe = load(name_or_path)
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"recipe '{name_or_path}' has no numbers of its own; a study needs a concrete one")
    return recipe


def with_small_organs(organs: tuple[str, ...]) -> Edit:
    """Restrict stages that exist per label to these organs.

    Raises:
        RecipeError: the recipe has no such stage.
    """

    def apply(recipe: Recipe) -> Recipe:
        if not any(stage.per_label for stage in recipe.stages):
            raise RecipeError(f"recipe '{recipe.name}' has no stage per label; small organs need one")
        change = {"labels": organs}
        return on_stages(lambda s: s.model_copy(update=change) if s.per_label else s)(recipe)

    return apply


def with_atlases(number: int) -> Edit:
    """Set the number of atlases for the atlas prior.

    Raises:
        RecipeError: the recipe has no atlas prior.
    """

    def apply(recipe: Recipe) -> Recipe:
        if recipe.atlas is None:
            raise RecipeError(f"recipe '{recipe.name}' has no atlas prior")
        atlas = recipe.atlas.model_copy(update={"number": number})
        return recipe.model_copy(update={"atlas": atlas})

    return apply


# --- to make a study small ------------------------------------------------------------------------


def coarser(factor: float) -> Edit:
    """All stages on grids with voxels ``factor`` times as large along each axis.

    A fixed shape becomes smaller by this factor, in steps that the network accepts, and with it the single
    tile and patch that contain it; all other tiles and patches keep their size in voxels.
    """

    def change(stage: Stage) -> Stage:
        grid, patch = stage.grid, stage.training.patch
        match grid:
            case Downsample():
                i, j, k = grid.factor
                update: dict[str, object] = {"factor": (i * factor, j * factor, k * factor)}
            case FixedSpacing():
                update = {"mm": tuple(None if mm is None else mm * factor for mm in grid.mm)}
            case FixedShape():
                patch = _fewer(grid.shape, factor, divisor(stage.network))
                update = {"shape": patch, "tile": patch}
        training = stage.training.model_copy(update={"patch": patch})
        return stage.model_copy(update={"grid": grid.model_copy(update=update), "training": training})

    return unchanged if factor == 1 else on_stages(change)


def _fewer(shape: Index3, factor: float, steps: Index3) -> Index3:
    i, j, k = (max(1, round(n / factor / step)) * step for n, step in zip(shape, steps, strict=True))
    return (i, j, k)


def narrower(factor: float) -> Edit:
    """All networks with ``factor`` times fewer channels at every level, an even number of them."""

    def change(stage: Stage) -> Stage:
        channels = tuple(max(2, 2 * round(n / factor / 2)) for n in stage.network.channels)
        network = stage.network.model_copy(update={"channels": channels})
        return stage.model_copy(update={"network": network})

    return unchanged if factor == 1 else on_stages(change)
