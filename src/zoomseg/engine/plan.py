"""From data to recipe numbers, each with its reason. The result is a concrete recipe: it is written into the
model and never computed again.

The rules, in order: grids from the median scan's size and voxel budget; one stage if a scan fits a
patch; patches as physical cubes, larger on a GPU, and all voxel budgets scaled down until one training
step fits the device's memory; pooling only axes that are still long and not yet coarser than the others;
a window from foreground intensities for CT, z-scores for anything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, cast

import numpy as np

from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Index3, Vector3
from zoomseg.core.labels import LabelSchema, has_side
from zoomseg.engine.device import Device
from zoomseg.engine.fingerprint import Fingerprint, as_index, as_vector
from zoomseg.engine.reasons import AXES, Plan, Reason, about, count, gigabytes, millimetres, organ_reasons
from zoomseg.engine.schedule import Length
from zoomseg.engine.sizes import Cost, costs_of, sized
from zoomseg.recipe import spec as specs

SINGLE_STAGE_FACTOR = 2.0
"""One stage is enough where the median scan has at most this many times a patch's voxels."""
LOOKS = 250
"""So many times the median scan's voxels on the fine grid should be shown in training, all patches together;
a short one gets a coarser grid. CHAOS, 12 minutes of one core: 1.25 mm (31 times) gives a Dice of 0.636,
2.5 mm (125 times) 0.707 (benchmarks/results/2026-11-21-ablation.md)."""
LEAST_FINE_FACTOR = 3
"""The fine grid keeps so many times the coarse one's voxels, however short the training is."""
BATCH_LIMIT = 4
MEMORY_SHARE = 0.4
"""Part of the device's memory that ``step_bytes`` may fill. A whole training process was measured at 2.4
times that: gradients on their way, the loss, the framework, data."""
SHRINK = 0.8
"""Factor on all voxel budgets, as often as needed to fit."""
SMALLEST_PATCH_VOXELS = 2000
"""Patches are not shrunk below this: nothing could be learned from them."""


@dataclass(frozen=True)
class _Draft:
    """A stage, the spacing of its grid, and why it is as it is."""

    stage: specs.Stage
    mm: Vector3
    reasons: tuple[Reason, ...]


def plan(
    recipe: specs.PlannedRecipe,
    data: Fingerprint,
    schema: LabelSchema,
    device: Device,
    length: Length | None = None,
) -> Plan:
    """Fill in a planned recipe's numbers.

    Small scans (a patch holds half of one, or more) get one stage at their own spacing; all others
    get a coarse stage that shows the whole scan and a fine one inside what it found.

    Args:
        length: of the training, where the recipe's number of steps is not it.

    Raises:
        RecipeError: not even the smallest patches fit the device's memory.
    """
    single, why_stages = _is_single(recipe, data)
    drafts, costs, why_memory = _fitting_memory(recipe, data, schema, device, single)
    why_voxels: tuple[Reason, ...] = ()
    if not single:
        affordable, why = _affordable(recipe, drafts[-1], costs, device, length)
        if affordable.fine_voxels < recipe.fine_voxels:
            drafts, costs, why_memory = _fitting_memory(affordable, data, schema, device, single)
        why_voxels = (why,)
    intensity, why_intensity = _intensity(data)
    concrete = specs.Recipe(
        name=recipe.name,
        description=recipe.description,
        source=recipe.source,
        intensity=intensity,
        stages=tuple(draft.stage for draft in drafts),
        train_together=() if single else (("coarse", "fine"),),
        prior_from="live",
    )
    reasons = [about(data), why_stages, why_intensity, *why_voxels]
    for draft, cost in zip(drafts, costs, strict=True):
        reasons += [*draft.reasons, _why_network(recipe, draft.stage, cost)]
    reasons += [
        why_memory,
        _mirrored(schema)[1],
        _contrast(data)[2],
        _why_training(concrete.stages[-1].training),
    ]
    reasons += [_why_length(recipe, length), *organ_reasons(data, schema, drafts[-1].mm)]
    return Plan(concrete, tuple(reasons), data, drafts[-1].mm)


def _is_single(recipe: specs.PlannedRecipe, data: Fingerprint) -> tuple[bool, Reason]:
    limit = SINGLE_STAGE_FACTOR * recipe.fine_patch_voxels
    scan = count(data.voxels)
    patches = f"{SINGLE_STAGE_FACTOR:g} patches of {count(recipe.fine_patch_voxels)}"
    if data.voxels <= limit:
        why = f"the median scan has {scan} voxels, no more than {patches}: a coarser look would show no more"
        return True, Reason("stages", "one", why)
    why = f"the median scan has {scan} voxels, more than {patches}: too many for one detailed look"
    return False, Reason("stages", "two: coarse, then fine", why)


def _fitting_memory(
    recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema, device: Device, single: bool
) -> tuple[tuple[_Draft, ...], list[Cost], Reason]:
    """The stages with the largest patches of which a training step fits the device."""
    drafts_for = _one_stage if single else _two_stages
    larger = recipe.gpu_patch_factor if device.place.type == "cuda" and not single else 1
    recipe = recipe.model_copy(update={"fine_patch_voxels": recipe.fine_patch_voxels * larger})
    available = MEMORY_SHARE * device.memory_bytes
    shrinkings = 0
    while True:
        drafts = drafts_for(recipe, data, schema)
        costs = costs_of([draft.stage for draft in drafts], data.channels, schema)
        needed = sum(cost.bytes for cost in costs)
        if needed <= available:
            return drafts, costs, _why_memory(needed, device, larger, shrinkings)
        if SHRINK * recipe.fine_patch_voxels < SMALLEST_PATCH_VOXELS:
            raise RecipeError(
                f"a training step of recipe '{recipe.name}' needs {needed / 1e9:.2f} GB even with patches of "
                f"{recipe.fine_patch_voxels} voxels; {device.name} has {available / 1e9:.2f} GB to spare; "
                "use a device with more memory, or a recipe with a smaller batch or fewer channels"
            )
        recipe = _shrunk(recipe)
        shrinkings += 1


def _affordable(
    recipe: specs.PlannedRecipe, fine: _Draft, costs: list[Cost], device: Device, length: Length | None
) -> tuple[specs.PlannedRecipe, Reason]:
    """The recipe with no more voxels on the fine grid than its training can show often enough."""
    steps = _steps(recipe, costs, device, length)
    shown = steps * fine.stage.training.batch * math.prod(fine.stage.training.patch)
    least = min(recipe.fine_voxels, LEAST_FINE_FACTOR * recipe.coarse_voxels)
    voxels = min(recipe.fine_voxels, max(least, round(shown / LOOKS)))
    looks = f"about {steps:,} steps show the network {count(shown)} voxels, {LOOKS} times"
    if voxels == recipe.fine_voxels:
        why = f"the recipe's; {looks} a median scan or more"
    elif voxels == least:
        why = f"{LEAST_FINE_FACTOR} times the coarse grid's, the least; {looks} less than that"
    else:
        why = f"of the recipe's {count(recipe.fine_voxels)}: {looks} so many; more time, more detail"
    changed = recipe.model_copy(update={"fine_voxels": voxels})
    return changed, Reason("fine voxels", count(voxels), why)


def _steps(recipe: specs.PlannedRecipe, costs: list[Cost], device: Device, length: Length | None) -> int:
    """How many there will be, about."""
    if length is None:
        return recipe.iterations
    if length.steps is not None:
        return length.steps
    assert length.seconds is not None
    in_all = length.seconds * device.multiply_adds_per_second
    return max(1, round(in_all / sum(cost.multiply_adds for cost in costs)))


def _shrunk(recipe: specs.PlannedRecipe) -> specs.PlannedRecipe:
    """Smaller patches, and a coarse grid that the smaller coarse patch still shows whole."""
    smaller = {
        "fine_patch_voxels": round(SHRINK * recipe.fine_patch_voxels),
        "coarse_voxels": round(SHRINK * recipe.coarse_voxels),
    }
    return recipe.model_copy(update=smaller)


def _why_memory(needed: int, device: Device, larger: int, shrinkings: int) -> Reason:
    why = (
        f"of the {gigabytes(MEMORY_SHARE * device.memory_bytes)} ({MEMORY_SHARE:.0%} of "
        f"{gigabytes(device.memory_bytes)}) that {device.name} may spare for it"
    )
    if larger > 1:
        why += f"; on a GPU, fine patches may be {larger} times as large as on a CPU"
    if shrinkings:
        why += f"; to fit, patches and the coarse grid were made smaller by {SHRINK:g}, {shrinkings} times"
    return Reason("memory of a step", gigabytes(needed), why)


def _why_network(recipe: specs.PlannedRecipe, stage: specs.Stage, cost: Cost) -> Reason:
    assert isinstance(stage.network, specs.ResEncUNet)
    channels = stage.network.channels
    size = (
        f"{cost.parameters / 1e6:.2f} million weights, {2 * cost.parameters / 1e6:.1f} MB in half precision"
    )
    why = f"the recipe's {channels[0]} channels at first, doubled by level up to its {recipe.max_channels}"
    return Reason(f"{stage.name} network", f"{' '.join(map(str, channels))} channels; {size}", why)


# --- intensities ----------------------------------------------------------------------------------


def _intensity(data: Fingerprint) -> tuple[specs.IntensitySpec, Reason]:
    low, high = data.foreground_percentiles
    if not data.is_ct:
        return specs.ZScore(), Reason(
            "intensities",
            "z-score of each scan",
            f"not CT, so numbers have no unit: inside labels they run from {low:.4g} to {high:.4g} here "
            "(0.5th and 99.5th percentile)",
        )
    window = specs.Window(lower=round(low), upper=max(round(high), round(low) + 1), output=(-1.0, 1.0))
    why = f"CT: 0.5th and 99.5th percentile inside labels ({low:.1f} and {high:.1f} HU)"
    return window, Reason("intensities", f"window {window.lower:g} to {window.upper:g} HU", why)


# --- stages ---------------------------------------------------------------------------------------


def _one_stage(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> tuple[_Draft, ...]:
    # A patch that holds the median scan whole; what is larger is tiled.
    voxels = SINGLE_STAGE_FACTOR * recipe.fine_patch_voxels
    fit = sized("whole", data.shape, data.spacing_mm, voxels, recipe.base_channels[1], recipe)
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
    return (_Draft(stage, mm, reasons),)


def _two_stages(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> tuple[_Draft, ...]:
    coarse = _coarse_stage(recipe, data, schema)
    return coarse, _fine_stage(recipe, data, schema)


def _coarse_stage(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> _Draft:
    wanted = spacing_for(data, recipe.coarse_voxels)
    fit = sized(
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
    return _Draft(stage, mm, (why_spacing, *fit.reasons, _why_batch("coarse", recipe), why_shift))


def _fine_stage(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema) -> _Draft:
    mm = spacing_for(data, recipe.fine_voxels)
    fit = sized(
        "fine",
        _in_voxels(data.largest_shape, data.spacing_mm, mm),
        mm,
        recipe.fine_patch_voxels,
        recipe.base_channels[1],
        recipe,
    )
    radius = round(recipe.region_margin_mm / float(np.mean(mm)), 2)
    training, why_shift = _training("fine", recipe, data, fit.patch, recipe.batch, schema)
    stage = specs.Stage(
        name="fine",
        roi=specs.DilatedForeground(of="coarse", radius_vox=radius, threshold=recipe.region_threshold),
        grid=specs.FixedSpacing(mm=mm, tile=fit.patch, overlap=0.25),
        inputs=(specs.ImageInput(), specs.PriorInput(of="coarse")),
        network=fit.network,
        training=training,
    )
    likely = recipe.region_threshold
    found = "finds" if likely is None else f"gives a probability over {likely:g}"
    region = Reason(
        "fine region",
        f"{recipe.region_margin_mm:g} mm ({radius:g} voxels) around all that the coarse stage {found}",
        "the recipe's margin: room for what the coarse stage cuts off",
    )
    why_spacing = _why_spacing("fine", data, mm, recipe.fine_voxels)
    return _Draft(stage, mm, (region, why_spacing, *fit.reasons, _why_batch("fine", recipe), why_shift))


def _why_batch(stage: str, recipe: specs.PlannedRecipe) -> Reason:
    return Reason(f"{stage} batch", str(recipe.batch), "the recipe's")


def spacing_for(data: Fingerprint, voxels: int) -> Vector3:
    """The isotropic spacing at which the median scan has ``voxels`` voxels; an axis whose own spacing
    is coarser keeps that, and the others are then made finer to use the budget."""
    own, extent = np.array(data.spacing_mm), np.array(data.extent_mm)
    low, high = float(own.min()), float(extent.max())
    for _ in range(60):
        middle = (low + high) / 2
        counted = float(np.prod(extent / np.maximum(middle, own)))
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
    """Widen a spacing where rounding the tile to the network's pooling would cut the median scan."""
    extent = np.array(data.extent_mm)
    return _rounded(as_vector(np.maximum(spacing_mm, np.ceil(extent / np.array(tile) * 1000) / 1000)))


# --- training -------------------------------------------------------------------------------------


def _training(
    stage: str,
    recipe: specs.PlannedRecipe,
    data: Fingerprint,
    patch: Index3,
    batch: int,
    schema: LabelSchema,
) -> tuple[specs.Training, Reason]:
    shift = round(min(patch) / 8, 1)
    augmentation = specs.Augmentation(
        rotation_deg=(15.0, 15.0, 15.0),
        scale=(0.8, 1.25),
        translation_vox=shift,
        elastic_vox=3.0,
        elastic_grid_vox=24.0,
        flip_axes=_mirrored(schema)[0],
        brightness=0.2,
        contrast=_contrast(data)[0],
        gamma=_contrast(data)[1],
        noise=0.15,
        blur_vox=0.8,
        probability=0.5,
    )
    training = specs.Training(
        patch=patch,
        batch=batch,
        iterations=recipe.iterations,
        sampler=specs.ClassBalanced(background_share=0.2),
        loss=specs.DiceCrossEntropy(),
        optimiser=specs.AdamW(lr=recipe.learning_rate),
        schedule=specs.Cosine(warmup_share=0.02),
        augmentation=augmentation,
        ema_decay=0.998,
        gradient_clip=12.0,
    )
    return training, Reason(
        f"{stage} shift", f"up to {shift:g} voxels", "in training: an eighth of the patch's shortest side"
    )


def _contrast(data: Fingerprint) -> tuple[float, tuple[float, float], Reason]:
    """How far contrast is changed in training, of which gammas, and why."""
    if data.is_ct:
        contrast, gamma = 0.25, (0.75, 1.33)
        why = "CT: an organ's HU differ little from scan to scan"
    else:
        contrast, gamma = 0.5, (0.6, 1.7)
        why = "not CT: coils and sequences make the same organ twice as bright, beside the others too"
    value = f"by up to {contrast:.0%}, gamma {gamma[0]:g} to {gamma[1]:g}"
    return contrast, gamma, Reason("contrast", value, f"in training. {why}")


def _mirrored(schema: LabelSchema) -> tuple[tuple[Literal["R"], ...], Reason]:
    """Axes along which patches may be mirrored. Where some labels have a side and others do not (liver,
    kidneys), a mirrored patient would have organs where nobody has them."""
    sided = [name for name in schema.names if has_side(name)]
    paired = {name for pair in schema.pairs for name in pair}
    alone = [name for name in schema.names if name not in paired]
    if not sided:
        return ("R",), Reason("mirroring", "left to right", "no label's name says left or right")
    if not alone:
        why = "every label has its counterpart, and names are swapped with the image"
        return ("R",), Reason("mirroring", "left to right", why)
    why = f"'{sided[0]}' has a side, and '{alone[0]}' no counterpart: mirrored, it would be on the wrong side"
    return (), Reason("mirroring", "none", why)


def _why_training(training: specs.Training) -> Reason:
    """What does not depend on the data."""
    optimiser, sampler = training.optimiser, training.sampler
    assert isinstance(sampler, specs.ClassBalanced)
    return Reason(
        "training",
        f"{optimiser.kind} at {optimiser.lr:g}, {training.loss.kind}, {sampler.kind} with "
        f"{sampler.background_share:.0%} anywhere, weights averaged by {training.ema_decay:g}",
        "the learning rate is the recipe's; this and the other augmentation are the same for all data",
    )


def _why_length(recipe: specs.PlannedRecipe, length: Length | None) -> Reason:
    follows = "the learning rate falls over all of it"
    if length is None:
        why = f"the recipe's, unless a time budget or epochs are given; {follows}"
        return Reason("length", f"{recipe.iterations:,} steps", why)
    if length.seconds is None:
        return Reason("length", f"{length.steps:,} steps", f"as asked; {follows}")
    return Reason(
        "length", f"{length.seconds / 60:.4g} min", f"as asked; {follows}, however many steps that is"
    )


def _in_voxels(shape: Index3, spacing_mm: Vector3, other_mm: Vector3) -> Index3:
    size = np.array(shape) * np.array(spacing_mm) / np.array(other_mm)
    return as_index(np.maximum(1, np.ceil(size - 0.01)))


def _rounded(spacing_mm: Vector3) -> Vector3:
    """Three digits after the point: what a person would write."""
    return cast("Vector3", tuple(round(s, 3) for s in spacing_mm))
