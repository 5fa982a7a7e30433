"""From data to recipe numbers. The result is a concrete recipe: it is written into the model and
never computed again.

The rules, in order: grids from the median scan's size and voxel budget; one stage if a scan fits a
patch; patches as physical cubes, larger on a GPU, and all voxel budgets scaled down until one training
step fits the device's memory; pooling only axes that are still long and not yet coarser than the others;
a window from foreground intensities for CT, z-scores for anything else.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from zoomseg.core.errors import DatasetError, RecipeError
from zoomseg.core.geometry import Index3, Orientation, Vector3
from zoomseg.core.labels import LabelSchema, has_side
from zoomseg.engine.device import Device
from zoomseg.io.dataset import Dataset
from zoomseg.networks import build as networks
from zoomseg.recipe import spec as specs

FINGERPRINT_CASES = 40
"""At most this many cases, evenly spread, are read for spacings and intensities."""
FOREGROUND_VOXELS = 20_000
"""Foreground intensities kept per case."""
SINGLE_STAGE_FACTOR = 2.0
"""One stage is enough where the median scan has at most this many times a patch's voxels."""
SMALLEST_FEATURE_MAP = 4
MAX_LEVELS = 6
ANISOTROPY = 2.0
"""An axis this much coarser than the finest is not pooled (and not convolved across) yet."""
BATCH_LIMIT = 4
MEMORY_SHARE = 0.4
"""Part of the device's memory that ``step_bytes`` may fill. A whole training process was measured at 2.4
times that: gradients on their way, the loss, the framework, data."""
WEIGHT_COPIES = 5
"""Of every weight: itself, its gradient, two moments of the optimiser, its average."""
SHRINK = 0.8
"""Factor on all voxel budgets, as often as needed to fit."""
SMALLEST_PATCH_VOXELS = 2000
"""Patches are not shrunk below this: nothing could be learned from them."""


@dataclass(frozen=True)
class Fingerprint:
    """What the planner knows of a data set, axes in canonical (RAS) order."""

    spacing_mm: Vector3
    """Median."""
    shape: Index3
    """Median, in voxels of the median spacing."""
    largest_shape: Index3
    """Of the cases read, in voxels of the median spacing."""
    is_ct: bool
    foreground_percentiles: tuple[float, float]
    """0.5th and 99.5th of the intensities inside labels."""
    cases: int
    channels: int = 1


def fingerprint(
    dataset: Dataset, ids: Sequence[str], progress: Callable[[int, int], None] | None = None
) -> Fingerprint:
    """Read a spread of the training cases.

    Raises:
        DatasetError: no voxel is labelled in any of them.
    """
    step = max(1, math.ceil(len(ids) / FINGERPRINT_CASES))
    chosen = list(ids)[::step]
    by_id = {case.id: case for case in dataset.cases}
    rng = np.random.default_rng(0)
    spacings: list[Vector3] = []
    extents: list[Vector3] = []
    foreground: list[npt.NDArray[np.float32]] = []
    for done, case_id in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen))
        case = dataset.load(by_id[case_id])
        grid = Orientation.to_canonical(case.image.grid).grid(case.image.grid)
        spacings.append(grid.spacing_mm)
        extents.append(grid.extent_mm)
        if case.labels is not None:
            values = case.image.data[0][case.labels.data > 0].numpy()
            foreground.append(rng.choice(values, min(len(values), FOREGROUND_VOXELS), replace=False))
    inside = np.concatenate(foreground) if foreground else np.empty(0, np.float32)
    if inside.size == 0:
        raise DatasetError(f"data set '{dataset.name}' has no labelled voxel in {len(chosen)} cases read")
    spacing = np.median(np.array(spacings), axis=0)
    sizes = np.array(extents) / spacing
    low, high = np.percentile(inside, (0.5, 99.5))
    return Fingerprint(
        _vector(spacing),
        _index(np.round(np.median(sizes, axis=0))),
        _index(np.ceil(sizes.max(axis=0) - 0.01)),
        dataset.is_ct,
        (float(low), float(high)),
        len(ids),
        len(dataset.channel_names),
    )


def plan(recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema, device: Device) -> specs.Recipe:
    """Fill in a planned recipe's numbers.

    Small scans (a patch holds half of one, or more) get one stage at their own spacing; all others
    get a coarse stage that shows the whole scan and a fine one inside what it found.

    Raises:
        RecipeError: not even the smallest patches fit the device's memory.
    """
    single = math.prod(data.shape) <= SINGLE_STAGE_FACTOR * recipe.fine_patch_voxels
    stages_for = _one_stage if single else _two_stages
    if device.place.type == "cuda" and not single:
        recipe = recipe.model_copy(
            update={"fine_patch_voxels": recipe.fine_patch_voxels * recipe.gpu_patch_factor}
        )
    available = MEMORY_SHARE * device.memory_bytes
    stages = stages_for(recipe, data, schema)
    while (needed := step_bytes(stages, data.channels, schema)) > available:
        if SHRINK * recipe.fine_patch_voxels < SMALLEST_PATCH_VOXELS:
            raise RecipeError(
                f"a training step of recipe '{recipe.name}' needs {needed / 1e9:.2f} GB even with patches of "
                f"{recipe.fine_patch_voxels} voxels; {device.name} has {available / 1e9:.2f} GB to spare; "
                "use a device with more memory, or a recipe with a smaller batch or fewer channels"
            )
        recipe = _shrunk(recipe)
        stages = stages_for(recipe, data, schema)
    return specs.Recipe(
        name=recipe.name,
        description=recipe.description,
        source=recipe.source,
        intensity=_intensity(data),
        stages=stages,
        train_together=() if single else (("coarse", "fine"),),
        prior_from="live",
    )


def _shrunk(recipe: specs.PlannedRecipe) -> specs.PlannedRecipe:
    """Smaller patches, and a coarse grid that the smaller coarse patch still shows whole."""
    smaller = {
        "fine_patch_voxels": round(SHRINK * recipe.fine_patch_voxels),
        "coarse_voxels": round(SHRINK * recipe.coarse_voxels),
    }
    return recipe.model_copy(update=smaller)


def step_bytes(stages: Sequence[specs.Stage], channels: int, schema: LabelSchema) -> int:
    """Memory that one step of stages trained together fills, in float32: what the networks keep for the
    backward pass, counted on shapes alone, and weights with gradients, averages and optimiser state.

    Stages are those that the planner makes: each reads the image and all labels of the one before.
    """
    classes = len(schema.names) + 1
    total = 0
    for n, stage in enumerate(stages):
        with torch.device("meta"):
            module = networks.build(stage.network, channels + n * (classes - 1), classes, "same")
            shape = (stage.training.batch, channels + n * (classes - 1), *stage.training.patch)
            total += _kept_bytes(module, torch.empty(shape))
        total += WEIGHT_COPIES * sum(4 * p.numel() for p in module.parameters())
    return total


def _kept_bytes(module: nn.Module, x_BCIJK: Tensor) -> int:
    """Bytes of the tensors that autograd keeps between the forward and the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        alive.append(storage)  # so that no storage made later is taken for it
        kept[storage._cdata] = storage.nbytes()
        return tensor

    alive: list[torch.UntypedStorage] = []
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x_BCIJK)
    return sum(kept.values())


def _intensity(data: Fingerprint) -> specs.IntensitySpec:
    if not data.is_ct:
        return specs.ZScore()
    low, high = data.foreground_percentiles
    return specs.Window(lower=round(low), upper=max(round(high), round(low) + 1), output=(-1.0, 1.0))


def _one_stage(
    recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema
) -> tuple[specs.Stage, ...]:
    # A patch that holds the median scan whole; what is larger is tiled.
    patch, network = _patch_and_network(
        data.shape, data.spacing_mm, 2.0 * recipe.fine_patch_voxels, recipe.base_channels[1], recipe
    )
    grid = specs.FixedSpacing(mm=_rounded(data.spacing_mm), tile=patch, overlap=0.5)
    batch = round(recipe.batch * recipe.fine_patch_voxels / math.prod(patch))
    training = _training(recipe, patch, max(recipe.batch, min(BATCH_LIMIT, batch)), schema)
    return (specs.Stage(name="whole", grid=grid, network=network, training=training),)


def _two_stages(
    recipe: specs.PlannedRecipe, data: Fingerprint, schema: LabelSchema
) -> tuple[specs.Stage, ...]:
    coarse_mm = spacing_for(data, recipe.coarse_voxels)
    fine_mm = spacing_for(data, recipe.fine_voxels)
    coarse_patch, coarse_network = _patch_and_network(
        _in_voxels(data.shape, data.spacing_mm, coarse_mm),
        coarse_mm,
        1.5 * recipe.coarse_voxels,
        recipe.base_channels[0],
        recipe,
    )
    coarse_mm = _fitting(data, coarse_mm, coarse_patch)
    fine_patch, fine_network = _patch_and_network(
        _in_voxels(data.largest_shape, data.spacing_mm, fine_mm),
        fine_mm,
        recipe.fine_patch_voxels,
        recipe.base_channels[1],
        recipe,
    )
    radius = recipe.region_margin_mm / float(np.mean(fine_mm))
    coarse = specs.Stage(
        name="coarse",
        grid=specs.FixedSpacing(mm=coarse_mm, tile=coarse_patch, overlap=0.25),
        network=coarse_network,
        training=_training(recipe, coarse_patch, recipe.batch, schema),
    )
    fine = specs.Stage(
        name="fine",
        roi=specs.DilatedForeground(of="coarse", radius_vox=round(radius, 2)),
        grid=specs.FixedSpacing(mm=fine_mm, tile=fine_patch, overlap=0.25),
        inputs=(specs.ImageInput(), specs.PriorInput(of="coarse")),
        network=fine_network,
        training=_training(recipe, fine_patch, recipe.batch, schema),
    )
    return (coarse, fine)


def spacing_for(data: Fingerprint, voxels: int) -> Vector3:
    """The isotropic spacing at which the median scan has ``voxels`` voxels; an axis whose own spacing
    is coarser keeps that, and the others are then made finer to use the budget."""
    own = np.array(data.spacing_mm)
    extent = own * np.array(data.shape)
    low, high = float(own.min()), float(extent.max())
    for _ in range(60):
        middle = (low + high) / 2
        count = float(np.prod(extent / np.maximum(middle, own)))
        low, high = (low, middle) if count < voxels else (middle, high)
    return _rounded(_vector(np.maximum(high, own)))


def _fitting(data: Fingerprint, spacing_mm: Vector3, tile: Index3) -> Vector3:
    """Widen a spacing where rounding the tile to the network's pooling would cut the median scan."""
    extent = np.array(data.spacing_mm) * np.array(data.shape)
    return _rounded(_vector(np.maximum(spacing_mm, np.ceil(extent / np.array(tile) * 1000) / 1000)))


def _patch_and_network(
    scan: Index3, spacing_mm: Vector3, voxels: float, base: int, recipe: specs.PlannedRecipe
) -> tuple[Index3, specs.ResEncUNet]:
    """A patch of about ``voxels`` voxels, as near to a physical cube as the scan allows, and a network
    whose pooling divides it."""
    shape = _cube(scan, spacing_mm, voxels)
    strides, kernels = _levels(shape, spacing_mm)
    divisor = np.prod(np.array(strides), axis=0)
    patch = _index(np.maximum(divisor, np.round(np.array(shape) / divisor) * divisor))
    channels = tuple(min(base * 2**n, recipe.max_channels) for n in range(len(strides)))
    # Blocks below half resolution cost an eighth and less of those above: depth is cheap there.
    blocks = tuple(1 if n < 2 else 2 for n in range(len(strides)))
    network = specs.ResEncUNet(channels=channels, strides=strides, kernels=kernels, blocks=blocks)
    return patch, network


def _cube(scan: Index3, spacing_mm: Vector3, voxels: float) -> Index3:
    spacing, limit = np.array(spacing_mm), np.array(scan, dtype=float)
    low, high = float(spacing.min()), float((spacing * limit).max())
    for _ in range(60):
        edge = (low + high) / 2
        count = float(np.prod(np.minimum(edge / spacing, limit)))
        low, high = (edge, high) if count < voxels else (low, edge)
    return _index(np.maximum(1, np.floor(np.minimum(high / spacing, limit) + 1e-6)))


def _levels(shape: Index3, spacing_mm: Vector3) -> tuple[tuple[Index3, ...], tuple[Index3, ...]]:
    """Strides and kernels per level."""
    size, spacing = np.array(shape, dtype=float), np.array(spacing_mm)
    strides: list[Index3] = [(1, 1, 1)]
    kernels: list[Index3] = [_kernel(spacing)]
    while len(strides) < MAX_LEVELS:
        pool = (np.ceil(size / 2) >= SMALLEST_FEATURE_MAP) & (spacing < ANISOTROPY * spacing.min())
        if not pool.any():
            break
        stride = np.where(pool, 2, 1)
        size, spacing = np.ceil(size / stride), spacing * stride
        strides.append(_index(stride))
        kernels.append(_kernel(spacing))
    return tuple(strides), tuple(kernels)


def _kernel(spacing: npt.NDArray[np.float64]) -> Index3:
    return _index(np.where(spacing < ANISOTROPY * spacing.min(), 3, 1))


def _training(recipe: specs.PlannedRecipe, patch: Index3, batch: int, schema: LabelSchema) -> specs.Training:
    unsided = not any(has_side(name) for name in schema.names)
    all_paired = 2 * len(schema.pairs) == len(schema.names)
    augmentation = specs.Augmentation(
        rotation_deg=(15.0, 15.0, 15.0),
        scale=(0.8, 1.25),
        translation_vox=round(min(patch) / 8, 1),
        elastic_vox=3.0,
        elastic_grid_vox=24.0,
        # Where some labels have a side and others do not (liver, kidneys), a mirrored patient would
        # have organs where nobody has them.
        flip_axes=("R",) if unsided or all_paired else (),
        brightness=0.2,
        contrast=0.25,
        gamma=(0.75, 1.33),
        noise=0.15,
        blur_vox=0.8,
        probability=0.5,
    )
    return specs.Training(
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


def _in_voxels(shape: Index3, spacing_mm: Vector3, other_mm: Vector3) -> Index3:
    size = np.array(shape) * np.array(spacing_mm) / np.array(other_mm)
    return _index(np.maximum(1, np.ceil(size - 0.01)))


def _rounded(spacing_mm: Vector3) -> Vector3:
    """Three digits after the point: what a person would write."""
    return cast("Vector3", tuple(round(s, 3) for s in spacing_mm))


def _vector(values: npt.NDArray[np.float64]) -> Vector3:
    return cast("Vector3", tuple(float(v) for v in values))


def _index(values: npt.ArrayLike) -> Index3:
    return cast("Index3", tuple(int(v) for v in np.asarray(values)))
