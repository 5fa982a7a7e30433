"""A recipe's stages as a graph: who reads whom, what each predicts, what is trained at once.

A stage may read only stages listed before it, so the listed order is the order of running. All but
``validate`` expect a recipe that ``validate`` has passed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from zoomseg.anatomy.organ_names import label_of
from zoomseg.core.errors import LabelError, RecipeError
from zoomseg.core.labels import LabelSchema
from zoomseg.recipe.quantities import MAX_NAME
from zoomseg.recipe.spec import (
    ATLAS,
    AtlasInput,
    BodyMask,
    BoxAround,
    DilatedForeground,
    InputSpec,
    IntensitySpec,
    PriorInput,
    ProbabilityTimesAtlas,
    Recipe,
    RoiSpec,
    Stage,
    WholeVolume,
)

Reading = TypeVar("Reading", RoiSpec, InputSpec)


@dataclass(frozen=True)
class TrainingGroup:
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
        case (
            DilatedForeground(of=of, labels=labels)
            | BoxAround(of=of, labels=labels)
            | ProbabilityTimesAtlas(of=of, labels=labels)
        ):
            yield _Reference("roi", of, () if isinstance(labels, str) else labels)
        case WholeVolume() | BodyMask():
            pass
    for n, source in enumerate(stage.inputs):
        if isinstance(source, PriorInput):
            named = () if isinstance(source.labels, str) else source.labels
            yield _Reference(f"inputs[{n}]", source.of, named)


def validate(recipe: Recipe) -> None:
    """Check all that can be checked without data.

    Raises:
        RecipeError: names not unique, a reference to a stage that is not an earlier one, a group of
            ``train_together`` through which no gradient could flow, or no stage that answers.
    """
    names = [stage.name for stage in recipe.stages]
    for n, stage in enumerate(recipe.stages):
        if stage.name == ATLAS:
            raise RecipeError(f"stages[{n}].name: '{ATLAS}' is the atlas prior's; choose another")
        if stage.name in names[:n]:
            raise RecipeError(f"stages[{n}].name: '{stage.name}' is taken; stage names must be unique")
        for reference in _references(stage):
            if reference.of not in names[:n]:
                raise RecipeError(
                    f"stage '{stage.name}', {reference.field}.of: '{reference.of}' is not an earlier stage; "
                    f"allowed: {', '.join(names[:n]) or 'none, as this is the first stage'}"
                )
            if stage_of(recipe, reference.of).per_label and not stage.per_label:
                raise RecipeError(
                    f"stage '{stage.name}', {reference.field}.of: '{reference.of}' becomes one stage per "
                    "label, so only a stage with per_label: true can read it"
                )
        _validate_overlap(stage)
        if recipe.prior_from == "live" and stage.reference_margin_mm is not None:
            raise RecipeError(
                f"stage '{stage.name}', roi.reference_margin_mm: with prior_from: live, regions lie "
                "around the reference as they are; allowed with: predictions, out_of_fold"
            )
        if recipe.atlas is None and uses_atlas(stage):
            raise RecipeError(
                f"stage '{stage.name}' uses the atlas prior, but the recipe has no 'atlas'; add one"
            )
    if all(stage.fusion == "none" for stage in recipe.stages):
        raise RecipeError(
            f"stage '{names[-1]}', fusion: all stages have 'none', so no label map would result; "
            "allowed for at least one stage: replace_in_roi"
        )
    grouped = list(itertools.chain.from_iterable(recipe.train_together))
    for name in grouped:
        if grouped.count(name) > 1:
            raise RecipeError(f"train_together: stage '{name}' is named twice; allowed: once")
    for group in recipe.train_together:
        _validate_group(recipe, group)


def _validate_overlap(stage: Stage) -> None:
    """Labels that overlap are decided by their odds, which only means of logarithms keep."""
    if not stage.labels_overlap:
        return
    if stage.fusion not in ("none", "replace_in_roi", "paste"):
        raise RecipeError(
            f"stage '{stage.name}', fusion: '{stage.fusion}' is not for labels that overlap; allowed: none, "
            "replace_in_roi, paste"
        )
    if stage.mean != "geometric":
        raise RecipeError(f"stage '{stage.name}', mean: labels_overlap needs geometric, got '{stage.mean}'")


def require_trainable(recipe: Recipe) -> None:
    """Refuse what recipes of imported models may say, but training cannot do.

    Raises:
        RecipeError: naming the stage.
    """
    for stage in recipe.stages:
        if stage.labels_overlap:
            raise RecipeError(
                f"stage '{stage.name}', labels_overlap: such a network is imported, and cannot be trained "
                "here"
            )
        if any(isinstance(source, PriorInput) and source.form == "label_map" for source in stage.inputs):
            raise RecipeError(
                f"stage '{stage.name}', inputs: a prior of form label_map has no gradient and is not "
                "computed in training; allowed: probabilities"
            )


def uses_atlas(stage: Stage) -> bool:
    """Whether a stage needs the recipe's atlas prior, to look, to see or to answer."""
    return (
        isinstance(stage.roi, ProbabilityTimesAtlas)
        or any(isinstance(source, AtlasInput) for source in stage.inputs)
        or stage.fusion == "replace_times_atlas"
    )


def fit(recipe: Recipe, schema: LabelSchema) -> tuple[Recipe, tuple[str, ...]]:
    """A published recipe made to suit a data set's labels: its label names become the data set's, whatever
    their spelling (``right_kidney``, ``Kidney Right``, ``RK``), labels that the data set lacks are dropped,
    and stages left without any label with them. Also says what was dropped, one line each.

    Raises:
        RecipeError: no stage is left.
    """
    notes: list[str] = []
    stages: list[Stage] = []
    gone: set[str] = set()
    for stage in recipe.stages:
        found, lacking = _spelled(stage.labels, schema)
        if lacking:
            notes.append(f"stage '{stage.name}': the data set has no {', '.join(lacking)}; dropped")
        fitted = _relabelled(stage.model_copy(update={"labels": found}), schema)
        if _unusable(fitted, gone):
            gone.add(stage.name)
            notes.append(f"stage '{stage.name}' is left out: nothing that it needs is in the data set")
        else:
            stages.append(fitted)
    if not stages:
        raise RecipeError(
            f"recipe '{recipe.name}' predicts none of the data set's labels: {', '.join(schema.names)}"
        )
    kept = {stage.name for stage in stages}
    groups = (tuple(n for n in group if n in kept) for group in recipe.train_together)
    update: dict[str, object] = {
        "stages": tuple(stages),
        "train_together": tuple(group for group in groups if len(group) > 1),
        "largest_component": _spelled(recipe.largest_component, schema)[0],
    }
    if recipe.islands is not None:
        labels = _spelled(recipe.islands.labels, schema)[0]
        update["islands"] = recipe.islands.model_copy(update={"labels": labels})
    return recipe.model_copy(update=update), tuple(notes)


def _unusable(stage: Stage, gone: set[str]) -> bool:
    """Whether a stage has no label left, to predict or to read of another, or reads one that is gone."""
    return (
        stage.labels == ()
        or any(getattr(spec, "labels", None) == () for spec in (stage.roi, *stage.inputs))
        or any(reference.of in gone for reference in _references(stage))
    )


def _spelled(
    labels: tuple[str, ...] | str, schema: LabelSchema
) -> tuple[tuple[str, ...] | str, tuple[str, ...]]:
    """Names in the schema's spelling, and those that it lacks."""
    if isinstance(labels, str):
        return labels, ()
    known = {name: name if name in schema.groups else label_of(name, schema) for name in labels}
    return tuple(own for own in known.values() if own), tuple(name for name, own in known.items() if not own)


def _relabelled(stage: Stage, schema: LabelSchema) -> Stage:
    """The labels that a stage reads of others, in the schema's spelling."""
    roi, sources = stage.roi, list(stage.inputs)
    if isinstance(roi, DilatedForeground | BoxAround | ProbabilityTimesAtlas):
        roi = roi.model_copy(update={"labels": _spelled(roi.labels, schema)[0]})
    for n, source in enumerate(sources):
        if isinstance(source, PriorInput | AtlasInput):
            sources[n] = source.model_copy(update={"labels": _spelled(source.labels, schema)[0]})
    return stage.model_copy(update={"roi": roi, "inputs": tuple(sources)})


def expand(recipe: Recipe, schema: LabelSchema) -> Recipe:
    """``per_label`` stages taken apart into one per label, and ``own`` replaced by the labels meant: what is
    trained, and what a model keeps. A recipe that has neither stays as it is.

    Raises:
        RecipeError: a label that the schema lacks, two stages that would have one name, or a graph that does
            not hold any more (a stage read for a label that it is not made for).
    """
    apart = {stage.name for stage in recipe.stages if stage.per_label}
    stages = tuple(_owned(part, apart, schema) for stage in recipe.stages for part in _parts(stage, schema))
    names = [stage.name for stage in stages]
    long = next((name for name in names if len(name) > MAX_NAME), None)
    if long is not None:
        raise RecipeError(
            f"a stage would be named '{long[:60]}...', with {len(long)} characters; at most {MAX_NAME} are "
            "allowed: give the stage or the label a shorter name"
        )
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RecipeError(f"two stages would be named '{twice}'; rename a stage or a label")
    expanded = recipe.model_copy(update={"stages": stages})
    validate(expanded)
    return expanded


def _parts(stage: Stage, schema: LabelSchema) -> tuple[Stage, ...]:
    if not stage.per_label:
        return (stage,)
    return tuple(
        stage.model_copy(update={"name": part_name(stage.name, label), "labels": (label,)})
        for label in resolve_labels(stage, schema)
    )


def part_name(stage: str, label: str) -> str:
    """Name of the stage that a ``per_label`` stage becomes for one label."""
    return f"{stage}-{re.sub('[^a-z0-9]+', '_', label.lower()).strip('_')}"


def _owned(stage: Stage, apart: set[str], schema: LabelSchema) -> Stage:
    """A stage that names the labels and the stages that it reads."""
    own = resolve_labels(stage, schema)

    def meant(spec: Reading) -> Reading:
        update: dict[str, object] = {}
        if getattr(spec, "labels", None) == "own":
            update["labels"] = own
        if stage.per_label and getattr(spec, "of", None) in apart:
            update["of"] = part_name(spec.of, own[0])  # type: ignore[union-attr]
        return spec.model_copy(update=update)

    return stage.model_copy(
        update={
            "roi": meant(stage.roi),
            "inputs": tuple(meant(source) for source in stage.inputs),
            "per_label": False,
        }
    )


def renamed(recipe: Recipe, names: Mapping[str, str]) -> Recipe:
    """The recipe with all of its stages under other names, by old name; also where they name each other."""

    def meant(spec: Reading) -> Reading:
        of = getattr(spec, "of", None)
        return spec if of is None or of not in names else spec.model_copy(update={"of": names[of]})

    stages = tuple(
        stage.model_copy(
            update={
                "name": names[stage.name],
                "roi": meant(stage.roi),
                "inputs": tuple(meant(source) for source in stage.inputs),
            }
        )
        for stage in recipe.stages
    )
    groups = tuple(tuple(names[name] for name in group) for group in recipe.train_together)
    return recipe.model_copy(update={"stages": stages, "train_together": groups})


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
                "so no gradient would flow; add one or remove it from the group"
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


def prior_labels(recipe: Recipe, of: str, schema: LabelSchema) -> tuple[str, ...]:
    """The labels of a prior: those that the stage ``of`` predicts, or, of the atlas prior, all."""
    return schema.names if of == ATLAS else resolve_labels(stage_of(recipe, of), schema)


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


def intensity_of(recipe: Recipe, stage: Stage) -> IntensitySpec:
    """How a stage's network sees intensities: its own way, or the recipe's."""
    return recipe.intensity if stage.intensity is None else stage.intensity


def ancestors(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Every stage that must have answered before stage ``name`` can look, in the recipe's order."""
    wanted = {reference.of for reference in _references(stage_of(recipe, name))}
    for stage in reversed(recipe.stages):
        if stage.name in wanted:
            wanted |= {reference.of for reference in _references(stage)}
    return tuple(stage.name for stage in recipe.stages if stage.name in wanted)


def is_read(recipe: Recipe, name: str) -> bool:
    """Whether a later stage looks where stage ``name`` found something, or sees its answer."""
    return any(reference.of == name for stage in recipe.stages for reference in _references(stage))


def label_map_is_read(recipe: Recipe, name: str) -> bool:
    """Whether a later stage sees the label map that stage ``name`` alone would give."""
    return any(
        isinstance(source, PriorInput) and source.of == name and source.form == "label_map"
        for stage in recipe.stages
        for source in stage.inputs
    )


def with_less_overlap(recipe: Recipe, overlap: float) -> Recipe:
    """The recipe with tiles that share ``overlap`` of themselves at most; stages whose tiles share less stay
    as they are.

    Raises:
        RecipeError: no stage's tiles share more.
    """
    own = {stage.name: _shares(stage.grid.overlap) for stage in recipe.stages}
    most = max(max(shares) for shares in own.values())
    if not 0 <= overlap <= most:
        raise RecipeError(
            f"an overlap of {overlap:g}: tiles of recipe '{recipe.name}' share up to {most:g} of themselves, "
            f"and can be made to share less; allowed: 0 to {most:g}"
        )

    def less(stage: Stage) -> Stage:
        i, j, k = (min(share, overlap) for share in own[stage.name])
        return stage.model_copy(update={"grid": stage.grid.model_copy(update={"overlap": (i, j, k)})})

    stages = (less(stage) if max(own[stage.name]) > overlap else stage for stage in recipe.stages)
    return recipe.model_copy(update={"stages": tuple(stages)})


def with_mirroring(recipe: Recipe, wanted: bool) -> Recipe:
    """The recipe as it predicts: with mirroring along the axes that its stages allow, if it is wanted, else
    along none.

    Raises:
        RecipeError: wanted, and no stage allows any.
    """
    if not wanted:
        stages = (stage.model_copy(update={"mirror_axes": ()}) for stage in recipe.stages)
        return recipe.model_copy(update={"stages": tuple(stages)})
    if not any(stage.mirror_axes for stage in recipe.stages):
        raise RecipeError(
            f"recipe '{recipe.name}' allows no mirroring: no stage has mirror_axes; supported: "
            "models that were trained with mirrored scans and say so"
        )
    return recipe


def _shares(overlap: float | tuple[float, float, float]) -> tuple[float, float, float]:
    return overlap if isinstance(overlap, tuple) else (overlap, overlap, overlap)


def training_groups(recipe: Recipe) -> tuple[TrainingGroup, ...]:
    """What is trained one after the other: each stage alone, or its ``train_together`` group."""
    group_of = {name: group for group in recipe.train_together for name in group}
    groups = [TrainingGroup(group_of.get(stage.name, (stage.name,))) for stage in recipe.stages]
    return tuple(dict.fromkeys(groups))
