"""Patches are nearly cubes, networks can halve them, and the computed memory of a step is the real one."""

from __future__ import annotations

import math
import re

import pytest
import torch

from helpers.tiny_dataset import CPU
from zoomseg.core.errors import RecipeError
from zoomseg.core.geometry import Index3, Vector3
from zoomseg.core.labels import LabelSchema
from zoomseg.core.memory import format_bytes
from zoomseg.networks import build as networks
from zoomseg.planning.network_sizes import (
    Cost,
    SizedNetwork,
    costs_of,
    require_room,
    size_network,
    step_bytes,
)
from zoomseg.recipe import network_shapes
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import FixedSpacing, PlannedRecipe, Recipe, Stage, Training

ORGANS = LabelSchema.consecutive(["liver", "right kidney", "left kidney"])


def fit(scan: Index3, spacing_mm: Vector3, voxels: float) -> SizedNetwork:
    recipe = load("default")
    assert isinstance(recipe, PlannedRecipe)
    return size_network("fine", scan, spacing_mm, voxels, 16, recipe)


def stage(made: SizedNetwork, patch: Index3, batch: int = 2) -> Stage:
    return Stage(
        name="fine",
        grid=FixedSpacing(mm=(1.0, 1.0, 1.0), tile=patch),
        network=made.network,
        training=Training(patch=patch, batch=batch, iterations=1),
    )


@pytest.mark.parametrize(
    ("scan", "spacing_mm", "voxels", "patch"),
    [
        ((500, 500, 500), (1.0, 1.0, 1.0), 64**3, (64, 64, 64)),
        ((500, 500, 500), (1.0, 1.0, 2.0), 4 * 32**3, (64, 64, 32)),  # 64 mm each way
        ((500, 500, 16), (1.0, 1.0, 1.0), 64**2 * 16, (64, 64, 16)),  # as far as the scan goes
        ((40, 40, 40), (1.0, 1.0, 1.0), 1e6, (40, 40, 40)),  # all of it
    ],
)
def test_a_patch_is_as_near_to_a_cube_as_the_scan_allows(
    scan: Index3, spacing_mm: Vector3, voxels: float, patch: Index3
) -> None:
    made = fit(scan, spacing_mm, voxels)
    assert made.patch == patch
    assert network_shapes.check_input_shape(made.network, "same", patch) == patch
    told = {reason.what: reason for reason in made.reasons}
    assert told["fine patch"].value == "x".join(map(str, patch))
    assert told["fine patch"].why.startswith("the whole scan's" if scan == patch else "for ")


def test_an_axis_waits_until_the_others_are_as_coarse() -> None:
    made = fit((256, 256, 40), (1.0, 1.0, 5.0), 200_000)
    # 1, 2, 4 mm compared with 5 mm: at 4 mm, the thick axis is less than twice as coarse.
    assert made.network.strides[:4] == ((1, 1, 1), (2, 2, 1), (2, 2, 1), (2, 2, 2))
    assert made.network.kernels[:3] == ((3, 3, 1), (3, 3, 1), (3, 3, 3))
    halvings, kernels = made.reasons[1:]
    assert "S (5 mm) not at the first 2, where it is 2 or more times as coarse" in halvings.why
    assert kernels.value.startswith("3x3x1 at 2 levels, then 3x3x3 at ")
    counted = [math.prod(stride[axis] for stride in made.network.strides) for axis in range(3)]
    assert halvings.value == ", ".join(f"{'RAS'[a]} {int(math.log2(n))}" for a, n in enumerate(counted))


@pytest.mark.parametrize(
    ("scan", "spacing_mm", "strides", "kernels"),
    [
        ((512, 512, 1), (1.0, 1.0, 1.0), ((2, 2, 1),) * 5, ((3, 3, 1),) * 6),
        ((512, 512, 1), (0.7, 0.7, 5.0), ((2, 2, 1),) * 5, ((3, 3, 1),) * 6),
        ((1, 100, 100), (1.0, 1.0, 1.0), ((1, 2, 2),) * 5, ((1, 3, 3),) * 6),
        ((400, 400, 6), (1.0, 1.0, 1.0), ((2, 2, 1),) * 5, ((3, 3, 3),) * 6),
        ((256, 256, 7), (1.0, 1.0, 0.5), ((1, 1, 2), *((2, 2, 1),) * 4), ((1, 1, 3), *((3, 3, 3),) * 5)),
        ((512, 512, 10), (1.0, 1.0, 1.0), ((2, 2, 2), *((2, 2, 1),) * 4), ((3, 3, 3),) * 6),
        # A thick axis is not convolved across until the others are as coarse, however short it is.
        ((512, 512, 6), (1.0, 1.0, 5.0), ((2, 2, 1),) * 5, (*((3, 3, 1),) * 2, *((3, 3, 3),) * 4)),
    ],
)
def test_an_axis_too_short_to_be_halved_keeps_no_other_from_it(
    scan: Index3, spacing_mm: Vector3, strides: tuple[Index3, ...], kernels: tuple[Index3, ...]
) -> None:
    network = fit(scan, spacing_mm, 110_000).network
    assert network.strides == ((1, 1, 1), *strides)
    assert network.kernels == kernels


@pytest.mark.parametrize(
    ("patch", "spacing_mm", "strides", "kernels"),
    [
        ((35, 50, 35), (1.0, 1.0, 1.0), (*((2, 2, 2),) * 3, (1, 2, 1)), (*((3, 3, 3),) * 4, (3, 1, 3))),
        ((50, 50, 33), (9.989, 9.989, 9.989), (*((2, 2, 2),) * 3, (2, 2, 1)), (*((3, 3, 3),) * 4, (1, 1, 3))),
        ((47, 47, 47), (3.009, 3.009, 3.009), ((2, 2, 2),) * 3, ((3, 3, 3),) * 4),
        (
            (87, 87, 14),
            (1.25, 1.25, 7.7),
            (*((2, 2, 1),) * 2, *((2, 2, 2),) * 2),
            (*((3, 3, 1),) * 2, *((3, 3, 3),) * 3),
        ),
        ((60, 60, 29), (2.461, 2.461, 5.0), ((2, 2, 1), *((2, 2, 2),) * 3), ((3, 3, 1), *((3, 3, 3),) * 4)),
    ],
    ids=["hippocampus", "OpenKBP, coarse", "BTCV", "CHAOS", "BTCV, 5 mm"],
)
def test_axes_that_are_all_long_are_halved_as_in_the_trainings_that_were_measured(
    patch: Index3, spacing_mm: Vector3, strides: tuple[Index3, ...], kernels: tuple[Index3, ...]
) -> None:
    network = fit(patch, spacing_mm, 1e7).network
    assert network.strides == ((1, 1, 1), *strides)
    assert network.kernels == kernels


def test_what_is_too_small_for_a_network_is_refused() -> None:
    told = "stage 'fine': 6x6x6 voxels are too few to plan a network, which needs 7 along an axis"
    with pytest.raises(RecipeError, match=told):
        fit((6, 6, 6), (1.0, 1.0, 1.0), 1e6)
    assert fit((7, 6, 1), (1.0, 1.0, 1.0), 1e6).network.strides == ((1, 1, 1), (2, 1, 1))


def test_cubes_are_said_shortly() -> None:
    _, halvings, kernels = fit((300, 300, 300), (1.0, 1.0, 1.0), 64**3).reasons
    assert (halvings.value, kernels.value) == ("4 times", "3x3x3")
    assert halvings.why == "at most 5 times, and while 4 voxels are left"


def test_counted_memory_is_that_of_a_real_step() -> None:
    one = stage(fit((40, 40, 40), (1.0, 1.0, 1.0), 64_000), (16, 16, 16))
    module = networks.build(one.network, 1, 4, "same")
    kept: dict[int, int] = {}
    alive = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(torch.zeros(one.training.batch, 1, 16, 16, 16))
    parameters = sum(p.numel() for p in module.parameters())
    (cost,) = costs_of([one], 1, ORGANS)
    assert cost.parameters == parameters
    assert cost.bytes == pytest.approx(sum(kept.values()) + 5 * 4 * parameters, rel=0.02)


def test_a_later_stage_reads_the_earlier_one_s_labels_too() -> None:
    one = stage(fit((40, 40, 40), (1.0, 1.0, 1.0), 64_000), (16, 16, 16), batch=1)
    first, second = costs_of([one, one], 1, ORGANS)
    # Three more channels into the first 3x3x3 convolution.
    assert second.parameters - first.parameters == 3 * 27 * one.network.channels[0]


def test_two_stages_share_a_step_and_several_fine_ones_have_their_own() -> None:
    coarse, fine, large = (Cost(n, 0, 0) for n in (1, 10, 100))
    assert step_bytes([fine]) == 10
    assert step_bytes([coarse, fine]) == 11
    assert step_bytes([coarse, fine, large]) == 100


def test_a_training_step_that_cannot_fit_is_refused_before_anything_is_allocated() -> None:
    """1e7 GB of feature maps, and 9 GB of weights; on shapes alone, so within moments."""
    made = fit((500, 500, 500), (1.0, 1.0, 1.0), 64**3)
    require_room(stage(made, (32, 32, 32)), 1, 4, CPU)
    told = (
        r"stage 'fine': a training step of 4096 patches of 1024x1024x1024 voxels would need about "
        rf"\d+\.\d\d GB, {re.escape(CPU.name)} has {re.escape(format_bytes(CPU.memory_bytes))}; "
        "use a smaller batch"
    )
    with pytest.raises(RecipeError, match=told):
        require_room(stage(made, (1024, 1024, 1024), batch=4096), 1, 4, CPU)
    wide = made.network.model_copy(update={"channels": (4096,) * len(made.network.channels)})
    huge = stage(made, (64, 64, 64)).model_copy(update={"network": wide})
    with pytest.raises(RecipeError, match="fewer channels"):
        require_room(huge, 1, 4, CPU)


def test_a_patch_that_comes_down_to_one_voxel_is_counted() -> None:
    """With batch norm, which could not be trained on a single such patch."""
    recipe = load("valindria2018-small-organs")
    assert isinstance(recipe, Recipe)
    lead = recipe.stages[0]
    least = network_shapes.divisor(lead.network)
    small = lead.model_copy(
        update={"training": lead.training.model_copy(update={"patch": least, "batch": 2})}
    )
    require_room(small, 1, 4, CPU)
