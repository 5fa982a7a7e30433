"""Planning of recipe numbers from data, each with its reason. The result is a complete recipe: it is written
to the model and never computed again.

The rules, in order: one stage if a scan fits a patch; grids from the median scan's size and a voxel budget,
the fine one's no larger than the training can show; boxes for groups of organs that are small and far apart;
patches as physical cubes, larger on a GPU, and all voxel budgets reduced until one training step fits the
device's memory; pooling only of axes that are still long and not yet coarser than the others; a window from
foreground intensities for CT, with more contrast for most organs where a few (bone, airways) make it wide;
z-scores for other images.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from zoomseg.backends.device import Device
from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import UNITS, format_bytes
from zoomseg.core.tiling import starts
from zoomseg.planning.fingerprint import Fingerprint, OrganStatistics
from zoomseg.planning.network_sizes import Cost, costs_of, step_bytes
from zoomseg.planning.organ_groups import Group, groups_of, why_not
from zoomseg.planning.rationale import Plan, Reason, about, count, organ_reasons, times
from zoomseg.planning.stage_plans import (
    SINGLE_STAGE_FACTOR,
    Layout,
    StagePlan,
    boxes,
    contrast,
    mirrored,
    one_stage,
    two_stages,
    why_training,
)
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe import spec as specs

MEDIAN_SCAN_PASSES = 100
"""Number of times that all training patches together should show the median scan's voxels on the fine grid; a
short training gets a coarser grid. In CHAOS, 125 times was better than 31 on a finer grid, in BTCV 70 times
better than 200 on a coarser one (benchmarks/results/2026-11-21-ablation.md)."""
MIN_FINE_FACTOR = 6
"""Minimum ratio of the fine grid's voxels to the coarse one's, however short the training is."""
MEMORY_SHARE = 0.4
"""Share of the device's memory for ``step_bytes``. A complete training process was measured at 2.4 times
that: intermediate gradients, the loss, the framework, data."""
SHRINK_FACTOR = 0.8
"""Factor on all voxel budgets, applied as often as needed to fit."""
INNER_FACTOR = 3
"""A window this many times as wide as the middle organ's intensities gets more contrast for these."""
MIN_LARGEST_COMPONENT = 0.95
"""An organ is in one piece if the largest connected component has at least this share in every case."""
ONE_PIECE_CASES = 5
"""Minimum number of cases for judging an organ's parts."""
MIN_BOX_FILL = 0.1
"""Minimum share of its bounding box that an organ fills: thinner ones (the portal vein fills 3 %, the
pancreas 9 %) break in two if they are delineated imprecisely, and their parts are not islands."""
MANY_TILES = 1000
"""A warning is issued if a single stage needs more for the largest scan: ten per axis."""
SMALLEST_PATCH_VOXELS = 2000
"""Patches are not reduced below this size, at which nothing could be learned."""


@dataclass(frozen=True)
class _Chosen:
    """The stages with a training step that fits the device; ``reasons`` apply to all of them."""

    drafts: tuple[StagePlan, ...]
    costs: tuple[Cost, ...]
    why_memory: Reason
    reasons: tuple[Reason, ...] = ()


def plan(
    recipe: specs.PlannedRecipe,
    data: Fingerprint,
    schema: LabelSchema,
    device: Device,
    length: TrainingLength | None = None,
) -> Plan:
    """Fill in a planned recipe's numbers.

    Small scans (a patch contains at least half of one) get one stage at their own spacing; all others get a
    coarse stage that shows the whole scan and a fine one inside its prediction, or one in a box around each
    group of organs, if these are small and far apart.

    Args:
        length: of the training, if it differs from the recipe's number of steps.

    Raises:
        RecipeError: not even the smallest patches fit the device's memory.
    """
    single, why_stages = _is_single(recipe, data)
    if single:
        chosen = _fitting_memory(recipe, data, schema, device, one_stage)
    else:
        chosen = _cascade(recipe, data, schema, device, length)
    intensity, why_intensity = _intensity(data)
    islands, why_islands = _islands(data)
    concrete = specs.Recipe(
        name=recipe.name,
        description=_described(recipe, len(chosen.drafts)),
        source=recipe.source,
        intensity=intensity,
        stages=tuple(draft.stage for draft in chosen.drafts),
        train_together=(("coarse", "fine"),) if len(chosen.drafts) == 2 else (),
        prior_from="live",
        roi_expansion=True,
        islands=islands,
    )
    finest_mm = chosen.drafts[-1].mm
    reasons = [about(data), why_stages, why_intensity, *chosen.reasons]
    for draft, cost in zip(chosen.drafts, chosen.costs, strict=True):
        reasons += [*draft.reasons, _why_network(recipe, draft.stage, cost)]
    reasons += [chosen.why_memory, mirrored(schema, data)[1], contrast(data).reason]
    reasons += [why_training(concrete.stages[-1].training), _why_length(recipe, length), why_islands]
    reasons += organ_reasons(data, schema, finest_mm)
    reasons += _many_tiles(concrete.stages[-1], data) if single else []
    reasons += [Reason(one.what, one.found, one.todo, warning=True) for one in data.advice]
    return Plan(concrete, tuple(reasons), data, finest_mm)


def _cascade(
    recipe: specs.PlannedRecipe,
    data: Fingerprint,
    schema: LabelSchema,
    device: Device,
    length: TrainingLength | None,
) -> _Chosen:
    """A coarse stage, and one or several fine ones with as many voxels as the training can show."""
    chosen = _fitting_memory(recipe, data, schema, device, two_stages)
    affordable, why_voxels = _affordable(recipe, chosen, device, length)
    if affordable != recipe:
        recipe, chosen = affordable, _fitting_memory(affordable, data, schema, device, two_stages)
    groups, why_regions = _regions(recipe, data, schema, chosen.drafts[-1].mm)
    if groups:
        chosen = _fitting_memory(recipe, data, schema, device, partial(boxes, groups=groups))
    return replace(chosen, reasons=(why_voxels, why_regions))


def _described(recipe: specs.PlannedRecipe, stages: int) -> str:
    """A description of the planned recipe: the original one describes two stages."""
    match stages:
        case 1:
            return (
                "Planned from your data: one network segments the scans, which are small, at their own "
                "spacing."
            )
        case 2:
            return recipe.description
        case _:
            return (
                "Planned from your data: a network segments the whole scan at low resolution, and "
                f"{stages - 1} others a group of organs each, at high resolution."
            )


def _is_single(recipe: specs.PlannedRecipe, data: Fingerprint) -> tuple[bool, Reason]:
    limit = SINGLE_STAGE_FACTOR * recipe.fine_patch_voxels
    scan = count(data.voxels)
    patches = f"{SINGLE_STAGE_FACTOR:g} patches of {count(recipe.fine_patch_voxels)}"
    if data.voxels <= limit:
        why = f"the median scan has {scan} voxels, no more than {patches}: a coarse stage would add nothing"
        return True, Reason("stages", "one", why)
    why = f"the median scan has {scan} voxels, more than {patches}: too many for a single detailed stage"
    return False, Reason("stages", "two: coarse, then fine", why)


def _many_tiles(stage: specs.Stage, data: Fingerprint) -> list[Reason]:
    """A warning if tiles that suit the median scan, which is small, are very many in the largest one."""
    pairs = zip(data.largest_shape, stage.grid.tile, strict=True)
    tiles = math.prod(len(starts(0, size, side, overlap=0.5)) for size, side in pairs)
    if tiles <= MANY_TILES:
        return []
    value = f"{times(data.largest_shape)} voxels: about {count(tiles)} tiles of {times(stage.grid.tile)}"
    why = "there is one stage, as the median scan is small: crop large scans to the region of the others"
    return [Reason("largest scan", value, why, warning=True)]


def _regions(
    recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema, fine_mm: Vector3
) -> tuple[tuple[Group, ...], Reason]:
    """Groups of organs with a box each; none if a single region contains all."""
    groups = groups_of(data, recipe.region_margin_mm)
    why = why_not(groups, data, schema, fine_mm)
    if why is not None:
        return (), Reason("regions", "one, around all organs", why)
    named = "; ".join(", ".join(group.organs) for group in groups)
    why = (
        f"organs are small and far apart: boxes around {named} hold so little of a scan that they can be "
        "sampled more finely than one region around all"
    )
    return groups, Reason("regions", f"{len(groups)} boxes, one by group of organs", why)


def _fitting_memory(
    recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema, device: Device, layout: Layout
) -> _Chosen:
    """The stages with the largest patches for which a training step fits the device."""
    larger = recipe.gpu_patch_factor if device.torch_device.type == "cuda" and layout is not one_stage else 1
    recipe = recipe.model_copy(update={"fine_patch_voxels": recipe.fine_patch_voxels * larger})
    available = MEMORY_SHARE * _memory(device)
    shrinkings = 0
    while True:
        drafts = layout(recipe, data, schema)
        costs = costs_of([draft.stage for draft in drafts], data.channels, schema)
        needed = step_bytes(costs)
        if needed <= available:
            return _Chosen(drafts, tuple(costs), _why_memory(needed, device, larger, shrinkings))
        if SHRINK_FACTOR * recipe.fine_patch_voxels < SMALLEST_PATCH_VOXELS:
            raise RecipeError(
                f"a training step of recipe '{recipe.name}' needs {format_bytes(needed)} even with patches "
                f"of {recipe.fine_patch_voxels} voxels; {device.name} has {format_bytes(available)} "
                "to spare; use a device with more memory, or a recipe with a smaller batch or fewer channels"
            )
        recipe = _shrunk(recipe)
        shrinkings += 1


def _affordable(
    recipe: specs.PlannedRecipe, chosen: _Chosen, device: Device, length: TrainingLength | None
) -> tuple[specs.PlannedRecipe, Reason]:
    """The recipe with no more voxels on the fine grid than its training can show often enough."""
    steps, why_steps = _steps(recipe, chosen.costs, device, length)
    fine = chosen.drafts[-1].stage.training
    shown = steps * fine.batch * math.prod(fine.patch)
    least = min(recipe.fine_voxels, MIN_FINE_FACTOR * recipe.coarse_voxels)
    voxels = min(recipe.fine_voxels, max(least, round(shown / MEDIAN_SCAN_PASSES)))
    looks = f"{why_steps} show the network {count(shown)} voxels, {MEDIAN_SCAN_PASSES} times"
    if voxels == recipe.fine_voxels:
        why = f"the recipe's; {looks} a median scan or more"
    elif voxels == least:
        why = f"{MIN_FINE_FACTOR} times the coarse grid's, the least; {looks} less than that"
    else:
        why = f"of the recipe's {count(recipe.fine_voxels)}: {looks} so many; more time allows more detail"
    changed = recipe.model_copy(update={"fine_voxels": voxels})
    return changed, Reason("fine voxels", count(voxels), why)


def _steps(
    recipe: specs.PlannedRecipe, costs: Sequence[Cost], device: Device, length: TrainingLength | None
) -> tuple[int, str]:
    """The approximate number of steps, also in words."""
    known = recipe.iterations if length is None else length.steps
    if known is not None:
        return known, f"{known:,} steps"
    assert length is not None
    assert length.seconds is not None
    rate = device.multiply_adds_per_second
    steps = max(1, round(length.seconds * rate / sum(cost.multiply_adds for cost in costs)))
    return steps, f"about {steps:,} steps (at {rate / 1e9:.3g} billion multiply-adds per second, as measured)"


def _shrunk(recipe: specs.PlannedRecipe) -> specs.PlannedRecipe:
    """Smaller patches, and a coarse grid that the smaller coarse patch still covers completely."""
    smaller = {
        "fine_patch_voxels": round(SHRINK_FACTOR * recipe.fine_patch_voxels),
        "coarse_voxels": round(SHRINK_FACTOR * recipe.coarse_voxels),
    }
    return recipe.model_copy(update=smaller)


def _memory(device: Device) -> int:
    """Bytes without those of training data on a GPU."""
    return device.memory_bytes - device.room_for_data


def _why_memory(needed: int, device: Device, larger: int, shrinkings: int) -> Reason:
    reserved = (
        "" if device.room_for_data == 0 else f", training data's {format_bytes(device.room_for_data)} aside"
    )
    why = (
        f"of the {format_bytes(MEMORY_SHARE * _memory(device))} ({MEMORY_SHARE:.0%} of "
        f"{format_bytes(_memory(device))}{reserved}) that {device.name} may spare for it"
    )
    if larger > 1:
        why += f"; on a GPU, fine patches may be {larger} times as large as on a CPU"
    if shrinkings:
        why += f"; to fit, patches and the coarse grid were reduced by {SHRINK_FACTOR:g}, {shrinkings} times"
    return Reason("memory of a step", format_bytes(needed), why)


def _why_network(recipe: specs.PlannedRecipe, stage: specs.Stage, cost: Cost) -> Reason:
    assert isinstance(stage.network, specs.ResEncUNet)
    channels = stage.network.channels
    half = f"{2 * cost.parameters / UNITS['M']:.1f} MB in half precision"
    size = f"{cost.parameters / 1e6:.2f} million weights, {half}"
    why = f"the recipe's {channels[0]} channels at first, doubled by level up to its {recipe.max_channels}"
    return Reason(f"{stage.name} network", f"{' '.join(map(str, channels))} channels; {size}", why)


# --- intensities ----------------------------------------------------------------------------------


def _intensity(data: Fingerprint) -> tuple[specs.IntensitySpec, Reason]:
    low, high = data.foreground_percentiles
    if not data.is_ct:
        return specs.ZScore(), Reason(
            "intensities",
            "z-score of each scan",
            f"not called CT, so numbers have no unit: inside labels they run from {low:.4g} to {high:.4g} "
            "here (0.5th and 99.5th percentile)",
        )
    window = specs.Window(lower=round(low), upper=max(round(high), round(low) + 1), output=(-1.0, 1.0))
    value = f"window {window.lower:g} to {window.upper:g} HU"
    why = f"CT: 0.5th and 99.5th percentile inside labels ({low:.1f} and {high:.1f} HU)"
    inner = _usual(data, window)
    if inner is None:
        return window, Reason("intensities", value, why)
    window = window.model_copy(update={"inner": inner})
    value += f", of its contrast {window.inner_share:.0%} from {inner[0]:g} to {inner[1]:g} HU"
    why += "; the inner part is the middle organ's: the others would take its contrast"
    return window, Reason("intensities", value, why)


def _usual(data: Fingerprint, window: specs.Window) -> tuple[float, float] | None:
    """Intensities of the middle organ, if they are a small part of the window."""
    if not data.organs:
        return None
    ends = np.round(np.median([organ.percentiles for organ in data.organs], axis=0))
    low, high = (float(end) for end in np.clip(ends, window.lower, window.upper))
    narrow = 0 < INNER_FACTOR * (high - low) <= window.upper - window.lower
    return (low, high) if narrow else None


def _islands(data: Fingerprint) -> tuple[specs.Islands | None, Reason]:
    """Islands are removed from organs that have none in the data."""
    whole = [organ.name for organ in data.organs if _is_connected(organ)]
    if not whole:
        why = (
            f"no organ is connected, and fills its bounding box, in each of at least {ONE_PIECE_CASES} cases"
        )
        return None, Reason("islands", "kept", why)
    found = specs.Islands(labels=tuple(whole))
    others = [organ.name for organ in data.organs if organ.name not in whole]
    why = f"in every case, the largest component is at least {MIN_LARGEST_COMPONENT:.0%} of the organ, "
    why += f"which fills at least {MIN_BOX_FILL:.0%} of its bounding box"
    why += f"; not so {', '.join(others)}" if others else ""
    value = f"components below {found.below:.0%} of the largest are removed, of {', '.join(whole)}"
    return found, Reason("islands", value, why)


def _is_connected(organ: OrganStatistics) -> bool:
    """Whether a second part of the organ would be an error."""
    filled = 1000 * organ.volume_ml / math.prod(organ.extent_mm)
    return (
        filled >= MIN_BOX_FILL
        and organ.largest_part >= MIN_LARGEST_COMPONENT
        and organ.cases >= ONE_PIECE_CASES
    )


def _why_length(recipe: specs.PlannedRecipe, length: TrainingLength | None) -> Reason:
    follows = "the learning rate falls over all of it"
    if length is None:
        why = f"the recipe's, unless a time budget or epochs are given; {follows}"
        return Reason("length", f"{recipe.iterations:,} steps", why)
    if length.seconds is None:
        return Reason("length", f"{length.steps:,} steps", f"as asked; {follows}")
    return Reason(
        "length", f"{length.seconds / 60:.4g} min", f"as asked; {follows}, however many steps that is"
    )
