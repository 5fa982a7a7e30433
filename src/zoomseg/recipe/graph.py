"""A recipe's stages as a graph: who reads whom, what each predicts, what is trained at once.

A stage may read only stages listed before it, so the listed order is the order of running. All but
``validate`` expect a recipe that ``validate`` has passed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from zoomseg.core.errors import LabelError, RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.recipe.spec import BoxAround, DilatedForeground, PriorInput, Recipe, Stage


@dataclass(frozen=True)
class TrainingUnit:
    """Stages trained at once, by name, in the recipe's order; one, unless they are trained end to end."""

    trained: tuple[str, ...]


@dataclass(frozen=True)
class _Reference:
    """Where a stage names another: the field that does, the name, and the labels it wants of it."""

    field: str
    of: str
    labels: tuple[str, ...]


def _references(stage: Stage) -> Iterator[_Reference]:
    match stage.roi:
        case DilatedForeground(of=of):
            yield _Reference("roi", of, ())
        case BoxAround(of=of, labels=labels):
            yield _Reference("roi", of, () if labels == "all" else labels)
        case _:
            pass
    for n, source in enumerate(stage.inputs):
        if isinstance(source, PriorInput):
            yield _Reference(f"inputs[{n}]", source.of, () if source.labels == "all" else source.labels)


def validate(recipe: Recipe) -> None:
    """Check all that can be checked without data.

    Raises:
        RecipeError: names not unique, a reference to a stage that is not an earlier one, a group of
            ``train_together`` through which no gradient could flow, or no stage that answers.
    """
    names = [stage.name for stage in recipe.stages]
    for n, stage in enumerate(recipe.stages):
        if stage.name in names[:n]:
            raise RecipeError(
                f"stages[{n}].name: '{stage.name}' is taken; every stage needs a name of its own"
            )
        for reference in _references(stage):
            if reference.of not in names[:n]:
                raise RecipeError(
                    f"stage '{stage.name}', {reference.field}.of: '{reference.of}' is not an earlier stage; "
                    f"allowed: {', '.join(names[:n]) or 'none, as this is the first stage'}"
                )
    if all(stage.fusion == "none" for stage in recipe.stages):
        raise RecipeError(
            f"stage '{names[-1]}', fusion: every stage says 'none', so no label map would come out; "
            "allowed for at least one stage: replace_in_roi"
        )
    grouped = list(itertools.chain.from_iterable(recipe.train_together))
    for name in grouped:
        if grouped.count(name) > 1:
            raise RecipeError(f"train_together: stage '{name}' is named twice; allowed: once")
    for group in recipe.train_together:
        _validate_group(recipe, group)


def _validate_group(recipe: Recipe, group: tuple[str, ...]) -> None:
    names = [stage.name for stage in recipe.stages]
    for name in group:
        if name not in names:
            raise RecipeError(f"train_together: unknown stage '{name}'; allowed: {', '.join(names)}")
    if len(group) < 2:
        raise RecipeError(f"train_together: a group holds at least 2 stages, got {list(group)}")
    first = names.index(group[0])
    if tuple(names[first : first + len(group)]) != group:
        raise RecipeError(
            f"train_together: {list(group)} do not follow each other; allowed: neighbours in {names}"
        )
    for n in range(1, len(group)):
        reader = stage_of(recipe, group[n])
        read = {source.of for source in reader.inputs if isinstance(source, PriorInput)}
        if not read & set(group[:n]):
            raise RecipeError(
                f"train_together: stage '{group[n]}' has no prior input of {' or '.join(group[:n])}, "
                "so no gradient would flow; give it one or leave it out of the group"
            )


def validate_labels(recipe: Recipe, schema: LabelSchema) -> None:
    """Check every label that a valid recipe names against a data set's labels.

    Raises:
        RecipeError: a stage predicts a label that the data set lacks, or wants one of a stage that
            does not predict it.
    """
    predicted = {stage.name: resolve_labels(stage, schema) for stage in recipe.stages}
    for stage in recipe.stages:
        for reference in _references(stage):
            for label in reference.labels:
                if label not in predicted[reference.of]:
                    raise RecipeError(
                        f"stage '{stage.name}', {reference.field}.labels: stage '{reference.of}' does not "
                        f"predict '{label}'; allowed: {', '.join(predicted[reference.of])}"
                    )


def resolve_labels(stage: Stage, schema: LabelSchema) -> tuple[str, ...]:
    """The labels a stage predicts, in the schema's order, groups taken apart.

    Raises:
        RecipeError: a name that the schema does not have, or no name at all.
    """
    try:
        labels = schema.select(stage.labels)
    except LabelError as error:
        raise RecipeError(f"stage '{stage.name}', labels: {error}") from error
    if not labels:
        raise RecipeError(
            f"stage '{stage.name}', labels: got none; allowed: all, or some of {list(schema.names)}"
        )
    return labels


def stage_of(recipe: Recipe, name: str) -> Stage:
    """The stage of that name.

    Raises:
        RecipeError: there is none.
    """
    for stage in recipe.stages:
        if stage.name == name:
            return stage
    known = ", ".join(stage.name for stage in recipe.stages)
    raise RecipeError(f"recipe '{recipe.name}' has no stage '{name}'; allowed: {known}")


def ancestors(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Every stage that must have answered before stage ``name`` can look, in the recipe's order."""
    wanted = {reference.of for reference in _references(stage_of(recipe, name))}
    for stage in reversed(recipe.stages):
        if stage.name in wanted:
            wanted |= {reference.of for reference in _references(stage)}
    return tuple(stage.name for stage in recipe.stages if stage.name in wanted)


def training_units(recipe: Recipe) -> tuple[TrainingUnit, ...]:
    """What is trained one after the other: each stage alone, or its ``train_together`` group."""
    group_of = {name: group for group in recipe.train_together for name in group}
    units = [TrainingUnit(group_of.get(stage.name, (stage.name,))) for stage in recipe.stages]
    return tuple(dict.fromkeys(units))
