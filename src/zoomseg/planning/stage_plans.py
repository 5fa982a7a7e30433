"""Plans of stages: grids, regions, networks and trainings of a cascade's stages, with reasons."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, cast

import numpy as np

from zoomseg.core.geometry import Index3, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.sides import has_side, is_asymmetric
from zoomseg.planning.fingerprint import Fingerprint, as_index, as_vector
from zoomseg.planning.network_sizes import size_network
from zoomseg.planning.organ_groups import Group
from zoomseg.planning.rationale import AXES, Reason, count, decimals, millimetres
from zoomseg.recipe import spec as specs

SINGLE_STAGE_FACTOR = 4.0
"""One stage is enough if the median scan has at most this many times a patch's voxels."""

BATCH_LIMIT = 4
Number = TypeVar("Number")

SAME_SIDE = 0.9
"""An organ has a side if it lies to the right of another in at least this share of the cases."""


@dataclass(frozen=True)
class StagePlan:
    """A stage, the spacing of its grid, and the reasons."""

    stage: specs.Stage
    mm: Vector3
    reasons: tuple[Reason, ...]


Layout = Callable[[specs.PlannedRecipe, Fingerprint, LabelSchema], tuple[StagePlan, ...]]
"""Returns the stages."""


# --- stages ---------------------------------------------------------------------------------------


def one_stage(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> tuple[StagePlan, ...]:
    # A patch that contains the whole median scan; larger scans are tiled.
    voxels = SINGLE_STAGE_FACTOR * recipe.fine_patch_voxels
    fit = size_network("whole", data.shape, data.spacing_mm, voxels, recipe.base_channels[1], recipe)
    mm = _rounded(data.spacing_mm)
    grid = specs.FixedSpacing(mm=mm, tile=fit.patch, overlap=0.5)
    batch = round(recipe.batch * recipe.fine_patch_voxels / math.prod(fit.patch))
    training, why_shift = _training(
        "whole", recipe, data, fit.patch, max(recipe.batch, min(BATCH_LIMIT, batch)), schema
    )
    stage = specs.Stage(name="whole", grid=grid, network=fit.network, training=training)
    reasons = (
        Reason("whole spacing", millimetres(mm), "the data's own, as scans are small"),
        *fit.reasons,
        Reason(
            "whole batch",
            str(training.batch),
            f"about as many voxels as the recipe's {recipe.batch} patches of "
            f"{count(recipe.fine_patch_voxels)}, but {recipe.batch} to {BATCH_LIMIT}",
        ),
        why_shift,
    )
    return (StagePlan(stage, mm, reasons),)


def two_stages(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> tuple[StagePlan, ...]:
    coarse = _coarse_stage(recipe, data, schema)
    return coarse, _fine_stage(recipe, data, schema)


def _coarse_stage(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> StagePlan:
    wanted = spacing_for(data, recipe.coarse_voxels)
    fit = size_network(
        "coarse",
        _in_voxels(data.shape, data.spacing_mm, wanted),
        wanted,
        1.5 * recipe.coarse_voxels,
        recipe.base_channels[0],
        recipe,
    )
    mm = _fitting(data, wanted, fit.patch)
    training, why_shift = _training("coarse", recipe, data, fit.patch, recipe.batch, schema)
    stage = specs.Stage(
        name="coarse",
        grid=specs.FixedSpacing(mm=mm, tile=fit.patch, overlap=0.25),
        network=fit.network,
        training=training,
    )
    why_spacing = _why_spacing("coarse", data, wanted, recipe.coarse_voxels)
    if mm != wanted:
        widened = f"{why_spacing.why}; widened from {millimetres(wanted)}, so that one patch shows it whole"
        why_spacing = Reason(why_spacing.what, millimetres(mm), widened)
    return StagePlan(stage, mm, (why_spacing, *fit.reasons, _why_batch("coarse", recipe), why_shift))


def _fine_stage(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> StagePlan:
    mm = spacing_for(data, recipe.fine_voxels)
    likely = recipe.region_threshold
    found = "finds" if likely is None else f"gives a probability over {likely:g}"
    given = _FineStageInput(
        "fine",
        _in_voxels(data.largest_shape, data.spacing_mm, mm),
        mm,
        specs.DilatedForeground(of="coarse", margin_mm=recipe.region_margin_mm, threshold=likely),
        f"{recipe.region_margin_mm:g} mm around all that the coarse stage {found}",
        _why_spacing("fine", data, mm, recipe.fine_voxels),
    )
    return _plan_fine_stage(given, recipe, data, schema)


def boxes(
    recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema, groups: tuple[Group, ...]
) -> tuple[StagePlan, ...]:
    """A coarse stage, and a fine one in a box around every group."""
    mm = spacing_in(data.spacing_mm, [group.extent_mm for group in groups], recipe.fine_voxels)
    why = f"so that all {len(groups)} boxes have {count(recipe.fine_voxels)} voxels, or the data's own"
    fine = []
    for n, group in enumerate(groups, start=1):
        given = _FineStageInput(
            f"fine-{n}",
            as_index(np.maximum(1, np.ceil(np.array(group.extent_mm) / mm))),
            mm,
            specs.BoxAround(of="coarse", labels=group.organs, margin_mm=recipe.region_margin_mm),
            f"{recipe.region_margin_mm:g} mm around the box of {', '.join(group.organs)}",
            Reason(f"fine-{n} spacing", millimetres(mm), why),
            group.organs,
        )
        fine.append(_plan_fine_stage(given, recipe, data, schema))
    return _coarse_stage(recipe, data, schema), *fine


@dataclass(frozen=True)
class _FineStageInput:
    """The region of a fine stage, its spacing, and the reasons."""

    name: str
    shape: Index3
    """Number of voxels of ``mm`` in the region."""
    mm: Vector3
    roi: specs.RoiSpec
    region: str
    """``roi`` in words."""
    why_spacing: Reason
    labels: tuple[str, ...] | Literal["all"] = "all"


def _plan_fine_stage(
    given: _FineStageInput, recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema
) -> StagePlan:
    name = given.name
    fit = size_network(name, given.shape, given.mm, recipe.fine_patch_voxels, recipe.base_channels[1], recipe)
    # Its patches contain its own labels, and all others as the coarse prediction.
    shown = (schema,) if given.labels == "all" else (schema, LabelSchema.consecutive(given.labels))
    training, why_shift = _training(name, recipe, data, fit.patch, recipe.batch, *shown)
    stage = specs.Stage(
        name=name,
        labels=given.labels,
        roi=given.roi,
        grid=specs.FixedSpacing(mm=given.mm, tile=fit.patch, overlap=0.25),
        inputs=(specs.ImageInput(), specs.PriorInput(of="coarse")),
        network=fit.network,
        training=training,
    )
    why = "the recipe's margin: room for what the coarse stage cuts off"
    region = Reason(f"{name} region", given.region, why)
    return StagePlan(
        stage,
        given.mm,
        (region, given.why_spacing, *fit.reasons, _why_batch(name, recipe), why_shift),
    )


def _why_batch(stage: str, recipe: specs.PlannedRecipe) -> Reason:
    return Reason(f"{stage} batch", str(recipe.batch), "the recipe's")


def spacing_for(data: Fingerprint, voxels: int) -> Vector3:
    """The isotropic spacing at which the median scan has ``voxels`` voxels; an axis whose own spacing
    is coarser keeps that, and the others are then made finer to use the budget."""
    return spacing_in(data.spacing_mm, [data.extent_mm], voxels)


def spacing_in(own_mm: Vector3, extents_mm: Sequence[Vector3], voxels: int) -> Vector3:
    """As ``spacing_for``, for several boxes that have this many voxels together."""
    own, extents = np.array(own_mm), np.array(extents_mm)
    low, high = float(own.min()), float(extents.max())
    for _ in range(60):
        middle = (low + high) / 2
        counted = float(np.prod(extents / np.maximum(middle, own), axis=1).sum())
        low, high = (low, middle) if counted < voxels else (middle, high)
    return _rounded(as_vector(np.maximum(high, own)))


def _why_spacing(stage: str, data: Fingerprint, mm: Vector3, voxels: int) -> Reason:
    own = _rounded(data.spacing_mm)
    if mm == own:
        why = f"the data's own: the median scan has {count(data.voxels)} of {count(voxels)} voxels allowed"
        return Reason(f"{stage} spacing", millimetres(mm), why)
    reached = math.prod(extent / side for extent, side in zip(data.extent_mm, mm, strict=True))
    why = f"so that the median scan has {count(reached)} voxels"
    kept = [axis for axis, one, other in zip(AXES, mm, own, strict=True) if one == other]
    if kept:
        why += f"; {' and '.join(kept)}, coarser by itself, keeps its own"
    return Reason(f"{stage} spacing", millimetres(mm), why)


def _fitting(data: Fingerprint, spacing_mm: Vector3, tile: Index3) -> Vector3:
    """Increase a spacing if rounding the tile to the network's pooling would cut the median scan."""
    least = np.array(data.extent_mm) / np.array(tile)
    unit = np.array([10.0 ** decimals(mm) for mm in least])
    return _rounded(as_vector(np.maximum(spacing_mm, np.ceil(least * unit) / unit)))


# --- training -------------------------------------------------------------------------------------


def _training(
    stage: str,
    recipe: specs.PlannedRecipe,
    data: Fingerprint,
    patch: Index3,
    batch: int,
    *shown: LabelSchema,
) -> tuple[specs.Training, Reason]:
    """``shown``: labels that its patches contain."""
    shift, tone = round(min(patch) / 8, 1), contrast(data)
    augmentation = specs.Augmentation(
        rotation_deg=(15.0, 15.0, 15.0),
        scale=(0.8, 1.25),
        translation_vox=shift,
        elastic_vox=3.0,
        elastic_grid_vox=24.0,
        flip_axes=("R",) if all(mirrored(labels, data)[0] for labels in shown) else (),
        brightness=0.2,
        contrast=tone.contrast,
        gamma=tone.gamma,
        organ_brightness=tone.organ_brightness,
        noise=0.15,
        blur_vox=0.8,
        probability=0.5,
    )
    training = specs.Training(
        patch=patch,
        batch=batch,
        iterations=recipe.iterations,
        sampler=specs.ClassBalanced(background_share=0.2),
        loss=specs.DiceCrossEntropy(class_balance=0.5),
        optimiser=specs.AdamW(lr=recipe.learning_rate),
        schedule=specs.Cosine(warmup_share=0.1),
        augmentation=augmentation,
        gradient_clip=12.0,
    )
    return training, Reason(
        f"{stage} shift", f"up to {shift:g} voxels", "in training: an eighth of the patch's shortest side"
    )


@dataclass(frozen=True)
class Contrast:
    """Changes of brightness in training (see ``recipe.spec.Augmentation``), and the reasons."""

    contrast: float
    gamma: tuple[float, float]
    organ_brightness: float
    why: str

    @property
    def reason(self) -> Reason:
        value = f"by up to {self.contrast:.0%}, gamma {self.gamma[0]:g} to {self.gamma[1]:g}"
        if self.organ_brightness:
            value += f", every organ's brightness by up to {self.organ_brightness:.0%}"
        return Reason("contrast", value, f"in training. {self.why}")


CT_CONTRAST = Contrast(0.25, (0.75, 1.33), 0.0, "CT: an organ's HU differ little from scan to scan")
OTHER_CONTRAST = Contrast(
    0.5,
    (0.6, 1.7),
    0.7,
    "not CT: coils, sequences and disease make an organ several times as bright in one scan as in another",
)
MIN_BRIGHTNESS_CASES = 30
"""Number of cases needed to estimate the variation of an organ's brightness; fewer do not represent the next
one."""
BRIGHTNESS_SDS = 3
"""An organ's brightness is changed by this many standard deviations of the data."""


def contrast(data: Fingerprint) -> Contrast:
    if data.is_ct:
        return CT_CONTRAST
    shown = [
        o.relative_brightness_sd
        for o in data.organs
        if o.relative_brightness_sd is not None and o.cases >= MIN_BRIGHTNESS_CASES
    ]
    if not shown or len(shown) < len(data.organs):
        return OTHER_CONTRAST
    strength = round(BRIGHTNESS_SDS * max(shown), 2)
    if strength >= OTHER_CONTRAST.organ_brightness:
        return OTHER_CONTRAST
    why = f"not CT, but no organ's brightness relative to the others' differs by more than {max(shown):.0%} "
    why += f"(standard deviation over cases): {BRIGHTNESS_SDS} times that"
    return replace(OTHER_CONTRAST, organ_brightness=strength, why=why)


def mirrored(schema: LabelSchema, data: Fingerprint) -> tuple[tuple[Literal["R"], ...], Reason]:
    """Axes along which patches may be mirrored. If some labels have a side and others do not (liver,
    kidneys), or if names have no side but one organ always lies to the right of another, a mirrored patient
    would have organs in impossible places; if names are ambiguous, it might. The mirror image of a chamber of
    the heart is not the chamber on the other side."""
    doubt = _may_have_sides(schema)
    if doubt is not None:
        return (), Reason("mirroring", "none", doubt)
    sided = [name for name in schema.names if has_side(name)]
    paired = {name for pair in schema.pairs for name in pair}
    alone = [name for name in schema.names if name not in paired]
    if not sided:
        two = data.side_by_side
        if two is not None and two.share >= SAME_SIDE:
            why = f"'{two.right}' lies to the right of '{two.left}' in {two.cases} of {two.together} cases"
            return (), Reason("mirroring", "none", why)
        return ("R",), Reason("mirroring", "left to right", "no label's name says left or right")
    unlike = [name for name in sided if is_asymmetric(name)]
    if unlike:
        why = f"'{unlike[0]}' is part of an organ that is not symmetric: mirrored, it is not the other part"
        return (), Reason("mirroring", "none", why)
    if not alone:
        why = "every label has its counterpart, and names are swapped with the image"
        return ("R",), Reason("mirroring", "left to right", why)
    why = f"'{sided[0]}' has a side, and '{alone[0]}' no counterpart: mirrored, it would be on the wrong side"
    return (), Reason("mirroring", "none", why)


def _may_have_sides(schema: LabelSchema) -> str | None:
    """The reason why names do not show whether labels have a side."""
    if schema.doubtful:
        one, other = schema.doubtful[0]
        return f"'{one}' and '{other}' may be the left and the right one; use left and right in their names"
    if schema.unnamed:
        return f"'{schema.unnamed[0]}' names no organ, so it may be a left or a right one"
    return None


def why_training(training: specs.Training) -> Reason:
    """Reasons that do not depend on the data."""
    optimiser, schedule = training.optimiser, training.schedule
    sampler, loss = training.sampler, training.loss
    assert isinstance(sampler, specs.ClassBalanced)
    assert isinstance(loss, specs.DiceCrossEntropy)
    assert isinstance(schedule, specs.Cosine)
    return Reason(
        "training",
        f"{optimiser.kind} at {optimiser.lr:g} after {schedule.warmup_share:.0%} of warm-up, {loss.kind} in "
        f"which classes weigh their share to the power of -{loss.class_balance:g} at first, "
        f"{sampler.kind} with {sampler.background_share:.0%} anywhere",
        "the learning rate is the recipe's; this and all other augmentation are the same for all data",
    )


def _in_voxels(shape: Index3, spacing_mm: Vector3, other_mm: Vector3) -> Index3:
    size = np.array(shape) * np.array(spacing_mm) / np.array(other_mm)
    return as_index(np.maximum(1, np.ceil(size - 0.01)))


def _rounded(spacing_mm: Vector3) -> Vector3:
    """Rounded to three decimals, and at least three digits, as a person would write it."""
    return cast("Vector3", tuple(round(s, decimals(s)) for s in spacing_mm))


def reordered(stage: specs.Stage, axes: Index3) -> specs.Stage:
    """A planned stage, whose numbers are in the order of R, A and S, for scans whose axes are these."""
    grid, network = stage.grid, stage.network
    assert isinstance(grid, specs.FixedSpacing)
    assert isinstance(network, specs.ResEncUNet)

    def turned(values: tuple[Number, Number, Number]) -> tuple[Number, Number, Number]:
        return (values[axes[0]], values[axes[1]], values[axes[2]])

    changed = {
        "grid": grid.model_copy(update={"mm": turned(grid.mm), "tile": turned(grid.tile)}),
        "network": network.model_copy(
            update={
                "strides": tuple(map(turned, network.strides)),
                "kernels": tuple(map(turned, network.kernels)),
            }
        ),
        "training": stage.training.model_copy(update={"patch": turned(stage.training.patch)}),
    }
    return stage.model_copy(update=changed)
