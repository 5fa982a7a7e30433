"""A recipe's stages as a graph: which stages each one reads, what it predicts, and what is trained together.

A stage may read only stages listed before it, so the listed order is the order of computation. All functions
except ``validate`` expect a recipe that passes ``validate``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from zoomseg.anatomy.organ_names import label_of
from zoomseg.core.errors import LabelError, RecipeError
from zoomseg.core.geometry import ENDS
from zoomseg.core.labels import LabelSchema
from zoomseg.recipe.network_shapes import check_patch, check_tile, flat_axis
from zoomseg.recipe.quantities import MAX_NAME
from zoomseg.recipe.spec import (
    ATLAS,
    AtlasInput,
    BodyMask,
    BoxAround,
    DilatedForeground,
    FixedSpacing,
    FusionKind,
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
    """Names of stages trained together, in the recipe's order; a single one, unless they are trained end to
    end."""

    trained: tuple[str, ...]


@dataclass(frozen=True)
class _Reference:
    """A stage's reference to another: the field, the name, and the labels that it reads."""

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
    """Check everything that can be checked without data.

    Raises:
        RecipeError: names that are not unique, or whose files would not be; a reference to a stage that is
            not an earlier one; a group of ``train_together`` without a path for gradients; a fusion that is
            not for a stage's kind of interpolation; or no stage that is fused.
    """
    names = [stage.name for stage in recipe.stages]
    for n, stage in enumerate(recipe.stages):
        if stage.name == ATLAS:
            raise RecipeError(f"stages[{n}].name: '{ATLAS}' is the atlas prior's; choose another")
        if stage.name in names[:n]:
            raise RecipeError(f"stages[{n}].name: '{stage.name}' is taken; stage names must be unique")
        other = stage.name.removesuffix("-region")
        if other != stage.name and other in names:
            raise RecipeError(
                f"stages[{n}].name: '{stage.name}' is also the name of the file with the region of stage "
                f"'{other}' (predict --keep-stages); choose another"
            )
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
        _validate_interpolation(stage)
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
        if grouped.count(name) > 1 and recipe.prior_from != "live":
            raise RecipeError(
                f"train_together: stage '{name}' is in several groups, with prior_from: {recipe.prior_from}; "
                "allowed with: live"
            )
    for group in recipe.train_together:
        _validate_group(recipe, group)
    _validate_presence(recipe)


def _validate_presence(recipe: Recipe) -> None:
    """Check that the stage which decides about the presence of organs sees whole scans."""
    whole = [s.name for s in recipe.stages if s.roi.kind in ("whole_volume", "body_mask") and not s.per_label]
    if recipe.presence is not None and recipe.presence.of not in whole:
        raise RecipeError(
            f"presence.of: '{recipe.presence.of}' is not a stage of the whole scan without per_label; "
            f"allowed: {', '.join(whole) or 'none'}"
        )


_ANY_INTERPOLATION = ("none", "replace_in_roi", "paste")
"""Fusions for which a stage's predictions may be interpolated otherwise than linearly."""


def _validate_interpolation(stage: Stage) -> None:
    """Check that the fusion interpolates predictions as the stage says."""
    if stage.fusion in _ANY_INTERPOLATION or stage.argmax_on == "stage_grid":
        return
    apart = isinstance(stage.grid, FixedSpacing) and stage.grid.slices_apart_above is not None
    if apart or stage.mean == "geometric":
        field = "grid.slices_apart_above" if apart else "mean"
        raise RecipeError(
            f"stage '{stage.name}', {field}: fusion '{stage.fusion}' interpolates probabilities linearly; "
            f"allowed with argmax_on: stage_grid, or fusion: {', '.join(_ANY_INTERPOLATION)}"
        )


def _validate_overlap(stage: Stage) -> None:
    """Check that stages with overlapping labels have geometric means, which preserve the odds that decide
    them."""
    if not stage.labels_overlap:
        return
    if stage.fusion not in _ANY_INTERPOLATION:
        raise RecipeError(
            f"stage '{stage.name}', fusion: '{stage.fusion}' is not for labels that overlap; allowed: "
            f"{', '.join(_ANY_INTERPOLATION)}"
        )
    if stage.mean != "geometric":
        raise RecipeError(f"stage '{stage.name}', mean: labels_overlap needs geometric, got '{stage.mean}'")


def require_trainable(recipe: Recipe) -> None:
    """Refuse recipes that predict, as those of imported models do, but that training does not support.

    Raises:
        RecipeError: names the stage: its labels overlap; it reads a label map; its network does not accept
            its tiles or patches; or it names directions of the body that may not be the network's axes.
    """
    for stage in recipe.stages:
        check_tile(stage)
        check_patch(stage)
        _require_body_axes(recipe, stage)
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


def _require_body_axes(recipe: Recipe, stage: Stage) -> None:
    """Refuse what is given in directions of the body, but done along an axis of the network, if that may be
    another one: an image mirrored from front to back would have its left and right names swapped."""
    if along_body_axes(recipe):
        return
    augmentation = stage.training.augmentation
    named = {
        "training.augmentation.flip_axes": bool(augmentation.flip_axes),
        "training.augmentation.shorter_scan": augmentation.shorter_scan > 0,
        "network.plane": flat_axis(stage.network) is not None,
    }
    for field, used in named.items():
        if used:
            raise RecipeError(
                f"stage '{stage.name}', {field}: with orientation: {recipe.orientation}, the axes that the "
                "network reads may not be R, A and S in this order; allowed with canonical, or directions in "
                "this order, such as LPS"
            )


def along_body_axes(recipe: Recipe) -> bool:
    """Whether i, j and k of the scans that networks read run along R, A and S, in this order and in either
    direction."""
    if recipe.orientation in ("canonical", "stored"):
        return recipe.orientation == "canonical"
    return all(letter in ends for letter, ends in zip(recipe.orientation, ENDS, strict=True))


def trainable(recipe: Recipe, schema: LabelSchema) -> Recipe:
    """A recipe fitted to a data set's labels, in the form that is trained.

    Raises:
        RecipeError: as ``expand``, ``validate_labels`` and ``require_trainable``.
    """
    expanded = expand(recipe, schema)
    validate_labels(expanded, schema)
    require_trainable(expanded)
    return expanded


def uses_atlas(stage: Stage) -> bool:
    """Whether a stage needs the recipe's atlas prior, for its region, its input or its fusion."""
    return (
        isinstance(stage.roi, ProbabilityTimesAtlas)
        or any(isinstance(source, AtlasInput) for source in stage.inputs)
        or stage.fusion == "replace_times_atlas"
    )


def fit(recipe: Recipe, schema: LabelSchema) -> tuple[Recipe, tuple[str, ...]]:
    """A published recipe fitted to a data set's labels: its label names become the data set's, regardless of
    spelling (``right_kidney``, ``Kidney Right``, ``RK``); labels that the data set lacks are dropped, with
    stages left without a label. Also returns what was dropped, one line each.

    Raises:
        RecipeError: no stage is left.
    """
    notes: list[str] = []
    stages: list[Stage] = []
    gone: set[str] = set()
    for stage in recipe.stages:
        fitted, lacking = _relabelled(stage, schema)
        notes += [f"stage '{stage.name}': {_dropped(lacking)}"] if lacking else []
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
    shrunk = (tuple(n for n in group if n in kept) for group in recipe.train_together)
    groups = (group for group in shrunk if len(group) > 1 or group in recipe.train_together)
    cleaned = {field: _spelled(named, schema) for field, named in _cleaned(recipe).items()}
    notes += [f"{field}: {_dropped(lacking)}" for field, (_, lacking) in cleaned.items() if lacking]
    update: dict[str, object] = {
        "stages": tuple(stages),
        "train_together": tuple(groups),
        "largest_component": cleaned["largest_component"][0],
    }
    if recipe.islands is not None:
        update["islands"] = recipe.islands.model_copy(update={"labels": cleaned["islands.labels"][0]})
    if recipe.presence is not None:
        own = recipe.presence.model_copy(update={"labels": cleaned["presence.labels"][0]})
        update["presence"] = own if own.of in kept else None
    return recipe.model_copy(update=update), tuple(notes)


def _dropped(lacking: Iterable[str]) -> str:
    return f"the data set has no {', '.join(lacking)}; dropped"


def _unusable(stage: Stage, gone: set[str]) -> bool:
    """Whether a stage has no label left, to predict or to read from another, or reads a dropped stage."""
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


def _relabelled(stage: Stage, schema: LabelSchema) -> tuple[Stage, tuple[str, ...]]:
    """A stage with the labels that it predicts, and reads from others, in the schema's spelling; and those
    that the schema lacks."""
    labels, lacking = _spelled(stage.labels, schema)
    roi, sources, lacked = stage.roi, list(stage.inputs), list(lacking)
    if isinstance(roi, DilatedForeground | BoxAround | ProbabilityTimesAtlas):
        found, lacking = _spelled(roi.labels, schema)
        roi, lacked = roi.model_copy(update={"labels": found}), [*lacked, *lacking]
    for n, source in enumerate(sources):
        if isinstance(source, PriorInput | AtlasInput):
            found, lacking = _spelled(source.labels, schema)
            sources[n], lacked = source.model_copy(update={"labels": found}), [*lacked, *lacking]
    changed = stage.model_copy(update={"labels": labels, "roi": roi, "inputs": tuple(sources)})
    return changed, tuple(dict.fromkeys(lacked))


def expand(recipe: Recipe, schema: LabelSchema) -> Recipe:
    """Replace ``per_label`` stages by one stage per label, and ``own`` by the stage's labels: the form that
    is trained and stored in a model. A recipe with neither is unchanged.

    Raises:
        RecipeError: a label that the schema lacks, two stages with the same name, or a graph that is not
            valid any more (a stage read for a label that it does not predict).
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
    """Name of the stage of one label that replaces a ``per_label`` stage."""
    return f"{stage}-{re.sub('[^a-z0-9]+', '_', label.lower()).strip('_')}"


def _owned(stage: Stage, apart: set[str], schema: LabelSchema) -> Stage:
    """A stage with explicit labels and with the stages that it reads."""
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
    """The recipe with other names for all of its stages, by old name; references are renamed, too."""

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
    presence = recipe.presence and recipe.presence.model_copy(update={"of": names[recipe.presence.of]})
    return recipe.model_copy(update={"stages": stages, "train_together": groups, "presence": presence})


def restricted(recipe: Recipe, stages: tuple[Stage, ...]) -> Recipe:
    """The recipe with some of its stages only, and without what needs others: groups that are trained
    together, and the decision about the presence of organs."""
    kept = {stage.name for stage in stages}
    groups = tuple(group for group in recipe.train_together if set(group) <= kept)
    presence = recipe.presence if recipe.presence is None or recipe.presence.of in kept else None
    return recipe.model_copy(update={"stages": stages, "train_together": groups, "presence": presence})


def _validate_group(recipe: Recipe, group: tuple[str, ...]) -> None:
    names = [stage.name for stage in recipe.stages]
    for name in group:
        if name not in names:
            raise RecipeError(f"train_together: unknown stage '{name}'; allowed: {', '.join(names)}")
    if not group:
        raise RecipeError("train_together: a group holds at least 1 stage, got []")
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
        RecipeError: a stage predicts a label that the data set lacks, or reads one from a stage that does not
            predict it, or from the atlases; post-processing names one that the data set, or the stage that
            decides about its presence, lacks.
    """
    for field, named in _cleaned(recipe).items():
        try:
            schema.select(named)
        except LabelError as error:
            raise RecipeError(f"{field}: {error}") from error
    predicted = {stage.name: resolve_labels(stage, schema) for stage in recipe.stages}
    for stage in recipe.stages:
        for reference in _references(stage):
            field = f"stage '{stage.name}', {reference.field}"
            _require_predicted(field, reference.of, reference.labels, predicted[reference.of])
        _check_atlas_labels(stage, schema)
    presence = recipe.presence
    if presence is not None and not isinstance(presence.labels, str):
        _require_predicted("presence", presence.of, schema.select(presence.labels), predicted[presence.of])


def _require_predicted(field: str, of: str, labels: Iterable[str], predicted: tuple[str, ...]) -> None:
    for label in labels:
        if label not in predicted:
            raise RecipeError(
                f"{field}.labels: stage '{of}' does not predict '{label}'; allowed: {', '.join(predicted)}"
            )


def _check_atlas_labels(stage: Stage, schema: LabelSchema) -> None:
    """Atlases have the data set's labels, and no groups."""
    for n, source in enumerate(stage.inputs):
        if not isinstance(source, AtlasInput) or isinstance(source.labels, str):
            continue
        unknown = [label for label in source.labels if label not in schema.names]
        if unknown:
            raise RecipeError(
                f"stage '{stage.name}', inputs[{n}].labels: the atlases have no '{unknown[0]}'; allowed: "
                f"{', '.join(schema.names)}"
            )


def _cleaned(recipe: Recipe) -> dict[str, tuple[str, ...] | str]:
    """The labels that post-processing changes, by field."""
    return {
        "largest_component": recipe.largest_component,
        "islands.labels": () if recipe.islands is None else recipe.islands.labels,
        "presence.labels": () if recipe.presence is None else recipe.presence.labels,
    }


def resolve_labels(stage: Stage, schema: LabelSchema) -> tuple[str, ...]:
    """The labels that a stage predicts, in the schema's order, with groups resolved.

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
    """The labels of a prior: those that the stage ``of`` predicts, or all for the atlas prior."""
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
    """The intensity normalisation of a stage: its own, or the recipe's."""
    return recipe.intensity if stage.intensity is None else stage.intensity


def ancestors(recipe: Recipe, name: str) -> tuple[str, ...]:
    """Every stage that must have predicted before the region of stage ``name`` is known, in the recipe's
    order."""
    wanted = {reference.of for reference in _references(stage_of(recipe, name))}
    for stage in reversed(recipe.stages):
        if stage.name in wanted:
            wanted |= {reference.of for reference in _references(stage)}
    return tuple(stage.name for stage in recipe.stages if stage.name in wanted)


def is_read(recipe: Recipe, name: str) -> bool:
    """Whether a later stage reads the prediction of stage ``name``, for its region or as input."""
    return any(reference.of == name for stage in recipe.stages for reference in _references(stage))


def label_map_is_read(recipe: Recipe, name: str) -> bool:
    """Whether a later stage reads the label map of stage ``name`` alone."""
    return any(
        isinstance(source, PriorInput) and source.of == name and source.form == "label_map"
        for stage in recipe.stages
        for source in stage.inputs
    )


def region_source(stage: Stage) -> str | None:
    """The stage whose prediction determines the region of ``stage``; None: no stage's does."""
    return next((reference.of for reference in _references(stage) if reference.field == "roi"), None)


def fused_groups(stages: Iterable[Stage]) -> tuple[tuple[FusionKind, tuple[Stage, ...]], ...]:
    """The stages that are written to the label map, in their order: by kind of fusion those that are fused
    together, as ``FusionKind`` says."""
    entering = (stage for stage in stages if stage.fusion != "none")
    return tuple(
        (kind, tuple(group)) for kind, group in itertools.groupby(entering, key=lambda stage: stage.fusion)
    )


_VOTED = ("most_probable", "majority_vote")
"""Fusions in which several stages determine one voxel."""


def deciding_stages(recipe: Recipe, schema: LabelSchema) -> dict[str, tuple[str, ...]]:
    """By organ, the stage that predicts it last; of stages that vote together, all that predict it, in order.
    Organs that no stage predicts are omitted."""
    last: dict[str, tuple[str, ...]] = {}
    for kind, group in fused_groups(recipe.stages):
        together: dict[str, tuple[str, ...]] = {}
        for stage in group:
            for organ in resolve_labels(stage, schema):
                earlier = together.get(organ, ()) if kind in _VOTED else ()
                together[organ] = (*earlier, stage.name)
        last |= together
    return last


def in_label_map(stage: Stage) -> Stage:
    """The stage, its prediction written to the label map."""
    if stage.fusion != "none":
        return stage
    return stage.model_copy(update={"fusion": "replace_in_roi"})


def with_less_overlap(recipe: Recipe, overlap: float) -> Recipe:
    """The recipe with tiles that overlap by at most ``overlap``; stages whose tiles overlap less are
    unchanged.

    Raises:
        RecipeError: no stage's tiles overlap more.
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
    """The recipe as it predicts: if mirroring is wanted, along the axes that its stages allow, otherwise
    along none.

    Raises:
        RecipeError: it is wanted, and no stage allows it.
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
    """The sequence of trainings: each stage alone, or its ``train_together`` groups, in the order in which
    the recipe names them."""
    groups: list[TrainingGroup] = []
    for stage in recipe.stages:
        own = [group for group in recipe.train_together if stage.name in group]
        groups += [TrainingGroup(group) for group in own or [(stage.name,)]]
    return tuple(dict.fromkeys(groups))
