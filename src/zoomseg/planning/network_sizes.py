"""A patch, a network that fits it, and the memory of a training step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoomseg.backends.device import Device
from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Index3, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import format_bytes
from zoomseg.networks import build as networks
from zoomseg.planning.fingerprint import as_index
from zoomseg.planning.rationale import AXES, Reason, count, times
from zoomseg.recipe import spec as specs

SMALLEST_FEATURE_MAP = 4
MAX_LEVELS = 6
ANISOTROPY = 2.0
"""An axis that is coarser than the finest by this factor is not pooled (and not convolved across) yet. Axes
that are too short to be pooled are not compared with."""
WEIGHT_COPIES = 5
"""Copies of every weight: itself, its gradient, two moments of the optimiser, its average."""
OUTPUT_COPIES = 8
"""Copies of a network's output, in float32: logits, probabilities for the loss and for the next
stage, the reference, and intermediate results of their gradients."""

PASSES = 3
"""A step's arithmetic in forward passes: the backward pass takes two."""


@dataclass(frozen=True)
class SizedNetwork:
    """A patch, a network that fits it, and the reasons."""

    patch: Index3
    network: specs.ResEncUNet
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Cost:
    """Of a stage's network in one training step."""

    bytes: int
    parameters: int
    multiply_adds: int
    """Forward and backward, of the whole batch."""


@dataclass(frozen=True)
class _Levels:
    strides: tuple[Index3, ...]
    kernels: tuple[Index3, ...]
    waits: Index3
    """Number of levels for which an axis was not halved, as it was still too coarse."""


# --- patch and network ----------------------------------------------------------------------------


def size_network(
    stage: str, scan: Index3, spacing_mm: Vector3, voxels: float, base: int, recipe: specs.PlannedRecipe
) -> SizedNetwork:
    """A patch of about ``voxels`` voxels, as near to a physical cube as the scan (its shape at
    ``spacing_mm``) allows, and a network of ``base`` channels whose pooling divides it.

    Raises:
        RecipeError: no axis is long enough to be pooled.
    """
    shape = _cube(scan, spacing_mm, voxels)
    levels = _levels(shape, spacing_mm)
    if len(levels.strides) < 2:
        raise RecipeError(
            f"stage '{stage}': {times(scan)} voxels are too few to plan a network, which needs "
            f"{2 * SMALLEST_FEATURE_MAP - 1} along an axis; use larger or finer scans, or write a recipe"
        )
    divisor = np.prod(np.array(levels.strides), axis=0)
    patch = as_index(np.maximum(divisor, np.round(np.array(shape) / divisor) * divisor))
    depth = len(levels.strides)
    network = specs.ResEncUNet(
        channels=tuple(min(base * 2**n, recipe.max_channels) for n in range(depth)),
        strides=levels.strides,
        kernels=levels.kernels,
        # Blocks below half resolution cost at most an eighth of those above: depth is cheap there.
        blocks=tuple(1 if n < 2 else 2 for n in range(depth)),
    )
    wanted = (
        "the whole scan's" if shape == scan else f"for {count(voxels)} voxels, as near to a cube as it gets,"
    )
    why = f"{wanted} {times(shape)} in multiples of {times(as_index(divisor))}, which the network can halve"
    reasons = (
        Reason(f"{stage} patch", times(patch), why),
        _why_strides(stage, levels, spacing_mm),
        _why_kernels(stage, levels.kernels),
    )
    return SizedNetwork(patch, network, reasons)


def _cube(scan: Index3, spacing_mm: Vector3, voxels: float) -> Index3:
    spacing, limit = np.array(spacing_mm), np.array(scan, dtype=float)
    low, high = float(spacing.min()), float((spacing * limit).max())
    for _ in range(60):
        edge = (low + high) / 2
        counted = float(np.prod(np.minimum(edge / spacing, limit)))
        low, high = (edge, high) if counted < voxels else (low, edge)
    return as_index(np.maximum(1, np.floor(np.minimum(high / spacing, limit) + 1e-6)))


def _levels(shape: Index3, spacing_mm: Vector3) -> _Levels:
    size, spacing = np.array(shape, dtype=float), np.array(spacing_mm)
    strides: list[Index3] = [(1, 1, 1)]
    kernels: list[Index3] = []
    waits = np.zeros(3, dtype=int)
    while True:
        long = np.ceil(size / 2) >= SMALLEST_FEATURE_MAP
        coarser = _coarser(spacing, _compared(long, strides))
        kernels.append(as_index(np.where(coarser | (size == 1), 1, 3)))
        pool = long & ~coarser
        if len(strides) == MAX_LEVELS or not pool.any():
            break
        waits += long & coarser
        stride = np.where(pool, 2, 1)
        size, spacing = np.ceil(size / stride), spacing * stride
        strides.append(as_index(stride))
    return _Levels(tuple(strides), tuple(kernels), as_index(waits))


def _compared(long: npt.NDArray[np.bool_], strides: Sequence[Index3]) -> npt.NDArray[np.bool_]:
    """Axes with which spacings are compared: those long enough to be pooled or, if none is, those pooled
    on the way to the last two levels. An axis that is too short keeps its spacing: compared with it, all
    others would become too coarse."""
    if long.any():
        return long
    late: npt.NDArray[np.bool_] = np.array(strides[-2:]).max(axis=0) > 1
    return late if late.any() else np.ones(3, dtype=bool)


def _coarser(spacing: npt.NDArray[np.float64], compared: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Axes that are still too coarse to be pooled and convolved across."""
    coarser: npt.NDArray[np.bool_] = spacing >= ANISOTROPY * spacing[compared].min()
    return coarser


def _why_strides(stage: str, levels: _Levels, spacing_mm: Vector3) -> Reason:
    halved = [sum(stride[axis] == 2 for stride in levels.strides) for axis in range(3)]
    same = len(set(halved)) == 1
    value = f"{halved[0]} times" if same else ", ".join(f"{a} {n}" for a, n in zip(AXES, halved, strict=True))
    why = f"at most {MAX_LEVELS - 1} times, and while {SMALLEST_FEATURE_MAP} voxels are left"
    for axis, wait, mm in zip(AXES, levels.waits, spacing_mm, strict=True):
        if wait:
            coarse = f"{ANISOTROPY:g} or more times as coarse as another axis"
            why += f"; {axis} ({mm:.3g} mm) not at the first {wait}, where it is {coarse}"
    return Reason(f"{stage} halvings", value, why)


def _why_kernels(stage: str, kernels: Sequence[Index3]) -> Reason:
    runs = [(kernel, len(list(run))) for kernel, run in itertools.groupby(kernels)]
    if len(runs) == 1 and runs[0][0] == (3, 3, 3):
        return Reason(f"{stage} kernels", "3x3x3", "voxels are nearly cubes at every level")
    value = ", then ".join(f"{times(kernel)} at {n} level{'s' if n > 1 else ''}" for kernel, n in runs)
    why = f"not across an axis that is {ANISOTROPY:g} or more times as coarse as another, or has one voxel"
    return Reason(f"{stage} kernels", value, why)


# --- memory ---------------------------------------------------------------------------------------


def step_bytes(costs: Sequence[Cost]) -> int:
    """Memory of one training step of the planner's stages. A coarse stage is trained together with a single
    fine stage, and alone if there are several."""
    together = sum if len(costs) <= 2 else max
    return together(cost.bytes for cost in costs)


def costs_of(stages: Sequence[specs.Stage], channels: int, schema: LabelSchema) -> list[Cost]:
    """By stage, in float32: tensors that the network keeps for the backward pass, determined from shapes
    alone, its outputs and loss, and weights with gradients, averages and optimiser state.

    Stages are those of the planner: each reads the image and all labels of the previous one.
    """
    classes = len(schema.names) + 1
    return [_cost(stage, channels + n * (classes - 1), classes) for n, stage in enumerate(stages)]


def _cost(stage: specs.Stage, channels: int, classes: int) -> Cost:
    """Of a stage whose network reads ``channels`` channels; nothing is allocated."""
    training = stage.training
    with networks.without_memory():
        module = networks.build(stage.network, channels, classes, stage.grid.padding)
        kept = _kept_bytes(module, torch.empty(training.batch, channels, *training.patch))
    parameters = networks.parameters(module)
    # Of one patch: batch norm cannot train on it if it is reduced to a single voxel.
    forward = training.batch * networks.multiply_adds(module.eval(), (channels, *training.patch))
    outputs = OUTPUT_COPIES * 4 * classes * training.batch * math.prod(training.patch)
    return Cost(kept + outputs + WEIGHT_COPIES * 4 * parameters, parameters, PASSES * forward)


def require_room(stage: specs.Stage, channels: int, classes: int, device: Device) -> None:
    """Refuse a stage if one training step cannot fit the device, before anything is allocated.

    Raises:
        RecipeError: names the stage and the memory it would need.
    """
    needed, there = _cost(stage, channels, classes).bytes, device.memory_bytes
    if device.bfloat16:  # feature maps take half of the counted memory
        needed //= 2
    if needed > there:
        training = stage.training
        raise RecipeError(
            f"stage '{stage.name}': a training step of {training.batch} patches of {times(training.patch)} "
            f"voxels would need about {format_bytes(needed)}, {device.name} has {format_bytes(there)}; "
            "use a smaller batch or patch, fewer channels, or another device"
        )


def _kept_bytes(module: nn.Module, x_BCIJK: Tensor) -> int:
    """Bytes of the tensors that autograd keeps between the forward and the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # so that no later storage is mistaken for it
        kept[storage._cdata] = storage.nbytes()
        return tensor

    alive: list[torch.UntypedStorage] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x_BCIJK)
    return sum(kept.values())
