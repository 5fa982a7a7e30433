"""Training step of several networks: seconds, GFLOP per second, and the share of its time in convolutions.

    python benchmarks/train/step.py [--before SOURCE] [--threads 1,2] [--only "default, fine; ..."]

Patches are random numbers, so that no data are needed and the preparation of patches is not included. A step
is that of ``training.stage_group`` for a batch: forward, loss, backward, update. ``convolutions`` is the time
of the same convolutions, forward and backward, each computed alone in a loop. With ``--before``, a folder
that contains another version of the package ``zoomseg``, both versions are run alternately, and the table
contains their ratio. Times are processor seconds at the lower quartile of the steps, as other processes slow
down some of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COLUMNS = (
    "network",
    "threads",
    "GFLOP",
    "before, s",
    "step, s",
    "ratio",
    "GFLOP/s",
    "convolutions, s",
    "share",
)
ORGANS = 13
THREE, ONE, TWO = [3, 3, 3], [1, 1, 1], [2, 2, 2]


@dataclass(frozen=True)
class Network:
    """A stage's network with its training patch; ``recipe`` names the published recipe that it is from."""

    channels: int
    """Number of input channels."""
    recipe: str = ""
    stage: str = ""
    width: int = 1


NETWORKS = {
    "default, fine": Network(1 + 1 + ORGANS),
    "default, fine, twice as wide": Network(1 + 1 + ORGANS, width=2),
    "roth2018-cascade": Network(1, "roth2018-cascade", "stage1"),
    "roth2018-pyramid": Network(1, "roth2018-pyramid", "level1"),
    "valindria2018-small-organs": Network(1, "valindria2018-small-organs", "coarse"),
    "flare22-whole-volume": Network(1, "flare22-whole-volume", "coarse"),
    "zhou2016-2d-vote": Network(1, "zhou2016-2d-vote", "axial"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--before", type=Path, help="folder with another version of the package zoomseg")
    add("--threads", default="1", help="numbers of threads, separated by commas")
    add("--only", default="", help=f"some, separated by semicolons, of: {'; '.join(NETWORKS)}")
    add("--turns", type=int, default=3)
    add("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measured(NETWORKS[options.measure])))
        return
    chosen = [name.strip() for name in options.only.split(";") if name.strip()] or list(NETWORKS)
    if unknown := sorted({*chosen} - {*NETWORKS}):
        parser.error(f"no network '{unknown[0]}'; allowed: {'; '.join(NETWORKS)}")
    print("| " + " | ".join(COLUMNS) + " |\n|---|" + "---:|" * (len(COLUMNS) - 1), flush=True)
    for threads in options.threads.split(","):
        for name in chosen:
            print(row(name, int(threads), options.before, options.turns), flush=True)


def row(name: str, threads: int, before: Path | None, turns: int) -> str:
    """A line of the table; both versions are run alternately, each in a separate process."""
    own: list[dict[str, float]] = []
    other: list[dict[str, float]] = []
    for _ in range(turns):
        own.append(_in_a_process(name, threads, None))
        if before is not None:
            other.append(_in_a_process(name, threads, before))
    best = min(own, key=lambda found: found["step"])
    seconds, convolutions = best["step"], min(found["convolutions"] for found in own)
    earlier = min((found["step"] for found in other), default=None)
    cells = [name, str(threads), f"{best['gflop']:.0f}"]
    cells += ["" if earlier is None else f"{earlier:.3f}", f"{seconds:.3f}"]
    cells += ["" if earlier is None else f"{earlier / seconds:.2f}", f"{best['gflop'] / seconds:.0f}"]
    cells += [f"{convolutions:.3f}", f"{convolutions / seconds:.0%}"]
    return "| " + " | ".join(cells) + " |"


def _in_a_process(name: str, threads: int, source: Path | None) -> dict[str, float]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    if source is not None:
        environment["PYTHONPATH"] = str(source)
    command = [sys.executable, __file__, "--measure", name]
    found: dict[str, float] = json.loads(subprocess.check_output(command, env=environment, text=True))
    return found


def measured(network: Network) -> dict[str, float]:
    """Seconds of a step and of its convolutions alone, and billions of operations."""
    import torch

    torch.manual_seed(0)
    group, batch = _group(network)
    module = next(iter(group.modules.values()))
    (patches,) = (stage.image_BCIJK for stage in batch.stages.values())
    calls = _convolutions(module, patches)
    with group.device.tuned():
        step = _fastest(lambda: group.train_step(batch, {}, measure=False))
    dtype = torch.bfloat16 if group.device.bfloat16 else torch.float32
    alone = sum(_fastest(_alone(*call, dtype), 3) for call in calls)
    return {"gflop": sum(_operations(*call[:3]) for call in calls) / 1e9, "step": step, "convolutions": alone}


def _group(network: Network) -> tuple[Any, Any]:
    import numpy as np
    import torch

    from zoomseg.backends.device import keep_memory, resolve
    from zoomseg.backends.torch_networks import build_network
    from zoomseg.core.geometry import Grid
    from zoomseg.core.labels import LabelSchema
    from zoomseg.planning.training_length import TrainingLength
    from zoomseg.training.data.patches import Batch, StageBatch
    from zoomseg.training.stage_group import StageGroup

    keep_memory()
    recipe, stage = _stage(network)
    schema = LabelSchema.consecutive(tuple(f"organ {n}" for n in range(ORGANS)))
    module = _laid_out(stage, build_network(stage, recipe, schema, network.channels))
    group = StageGroup.create(
        0, (stage,), (stage.name,), {stage.name: module}, TrainingLength(1000, None), {}, resolve("cpu")
    )
    shape = (stage.training.batch, *stage.training.patch)
    image = torch.randn(shape[0], network.channels, *shape[1:])
    target = torch.randint(0, ORGANS + 1, shape, dtype=torch.uint8)
    values: dict[str, Any] = {
        "image_BCIJK": image,
        "target_BIJK": target,
        "counts_BC": torch.full((shape[0], ORGANS + 1), 1000),
        "grids": (Grid(stage.training.patch, np.eye(4)),) * shape[0],
        "within_BIJK": None,
        "stored": {},
        "shown": (),
        "annotated_BC": None,
    }
    known = [field.name for field in dataclasses.fields(StageBatch)]  # earlier versions had fewer
    data = StageBatch(**{name: values[name] for name in known})
    return group, Batch(("",) * shape[0], {stage.name: data})


def _laid_out(stage: Any, module: Any) -> Any:
    """Lay out the weights in memory as training does; earlier versions did not."""
    import inspect

    from zoomseg.backends.device import resolve
    from zoomseg.networks import build

    known = inspect.signature(build.laid_out).parameters
    return build.laid_out(stage.network, module, *([resolve("cpu").bfloat16] if len(known) > 2 else []))


def _stage(network: Network) -> tuple[Any, Any]:
    from zoomseg.recipe import graph
    from zoomseg.recipe.load import from_dict, load
    from zoomseg.recipe.spec import Recipe

    if network.recipe:
        recipe = load(network.recipe)
        assert isinstance(recipe, Recipe)
        stage = graph.stage_of(recipe, network.stage)
        return recipe, stage.model_copy(update={"labels": "all", "inputs": stage.inputs[:1]})
    planned: dict[str, Any] = {  # as planned by `default` for BTCV
        "name": "step",
        "intensity": {"kind": "zscore"},
        "stages": [
            {
                "name": "fine",
                "grid": {"kind": "spacing", "mm": [2, 2, 2], "tile": [48, 48, 48]},
                "network": {
                    "kind": "resenc_unet",
                    "channels": [network.width * n for n in (16, 32, 64, 128, 128)],
                    "strides": [ONE, TWO, TWO, TWO, TWO],
                    "kernels": [THREE] * 5,
                    "blocks": [1, 1, 2, 1, 1],
                },
                "training": {
                    "patch": [48, 48, 48],
                    "batch": 2,
                    "iterations": 1000,
                    "gradient_clip": 12.0,
                    "loss": {"kind": "dice_cross_entropy", "class_balance": 0.5},
                },
            }
        ],
    }
    recipe = from_dict(planned)
    assert isinstance(recipe, Recipe)
    return recipe, recipe.stages[0]


Call = tuple[Any, Any, Any, bool]
"""A convolution's module, its input, its output, and whether the input has a gradient."""


def _convolutions(module: Any, patches: Any) -> list[Call]:
    """All convolutions of a forward pass in float32, where each is computed by its own module."""
    from torch import nn

    calls: list[Call] = []

    def note(layer: Any, given: tuple[Any, ...], answer: Any) -> None:
        calls.append((layer, given[0].detach(), answer.detach(), given[0].requires_grad))

    layers = [m for m in module.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d)]
    hooks = [layer.register_forward_hook(note) for layer in layers]
    module.train()(patches)
    for hook in hooks:
        hook.remove()
    return calls


def _operations(layer: Any, given: Any, answer: Any) -> float:
    """Operations of forward and backward pass together: three passes with two operations each for every
    multiplication by a weight."""
    from torch import nn

    small = given if isinstance(layer, nn.ConvTranspose3d) else answer
    each = small.shape[0] * small[0, 0].numel()
    return 6.0 * float(each * layer.weight.numel())


def _alone(layer: Any, given: Any, answer: Any, with_gradient: bool, dtype: Any) -> Callable[[], Any]:
    import torch

    weight = layer.weight.detach().to(dtype).requires_grad_()
    x, back = given.to(dtype).requires_grad_(with_gradient), torch.randn_like(answer, dtype=dtype)
    wanted = (x, weight) if with_gradient else (weight,)
    rest: tuple[Any, ...]
    if isinstance(layer, torch.nn.ConvTranspose3d):
        rest = (None, layer.stride, layer.padding, layer.output_padding)
        run: Callable[..., Any] = torch.nn.functional.conv_transpose3d
    else:
        rest = (None, layer.stride, layer.padding, layer.dilation)
        run = torch.nn.functional.conv3d
    return lambda: torch.autograd.grad(run(x, weight, *rest), wanted, back)


def _fastest(run: Callable[[], Any], repeats: int = 8) -> float:
    """The lower quartile of the processor seconds, summed over threads and divided by their number."""
    import torch

    run()
    run()
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        seconds.append((time.process_time() - began) / torch.get_num_threads())
    return statistics.quantiles(seconds, n=4)[0]


if __name__ == "__main__":
    main()
