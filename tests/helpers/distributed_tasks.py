"""Tasks shared by processes as started by ``torchrun``; each process writes its results to a folder."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from helpers.tiny_dataset import CPU, retrained, tiny_recipe
from zoomseg.core.errors import TrainingError
from zoomseg.core.interrupts import InterruptedTrainingError
from zoomseg.core.labels import IGNORE
from zoomseg.datasets.layouts import open_dataset
from zoomseg.recipe.load import dump
from zoomseg.recipe.spec import SGD, DiceCrossEntropy, LossSpec, Recipe, SoftDice, WeightedCrossEntropy
from zoomseg.training import loop, loss, training_run
from zoomseg.training.data.patches import Batch, PatchSource
from zoomseg.training.distributed import SINGLE_PROCESS, Processes, process_group
from zoomseg.training.log import NullObserver
from zoomseg.training.loop import LoopSettings, Split
from zoomseg.training.requested_recipe import TrainingRequest
from zoomseg.training.stage_group import StageGroup

WORLD = 2
STEPS = 3
BATCH = 3
"""Shares of two patches and of one."""
SPLIT = Split(("case_0", "case_1", "case_2"), ("case_3",))
LOSSES: tuple[LossSpec, ...] = (
    DiceCrossEntropy(),
    DiceCrossEntropy(class_balance=0.5),
    SoftDice(),
    WeightedCrossEntropy(),
)


def start(data: Path, out: Path) -> list[int | None]:
    """Run all tasks in ``WORLD`` processes; returns their exit codes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch._dynamo", "zoomseg.training.loop"]
    )  # slow to import, hence imported once
    children = [context.Process(target=_child, args=(rank, port, data, out)) for rank in range(WORLD)]
    for child in children:
        child.start()
    for child in children:
        child.join(600)  # only a deadlock takes this long, even on a machine under load
        child.kill()
    return [child.exitcode for child in children]


def _child(rank: int, port: int, data: Path, out: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with process_group() as processes, without_graphs():
        save_file(exchanged(processes), out / f"exchanged-{rank}.safetensors")
        save_file(loss_gradients(processes), out / f"losses-{rank}.safetensors")
        for together in (True, False):
            training(data, out / f"run-{together}", together, processes)
        interrupted(data, out / "stopped", processes)
        training(data, out / "stopped", True, processes, resume=True)
        training(data, out / "timed", True, processes, seconds=5.0)  # enough for a step, even under load
        _decided(data, out / "job", processes)
        _refused(data, out, processes)
        _deserted(data, out, processes)


def without_graphs() -> AbstractContextManager[object]:
    """Trainings write no ONNX graphs, which are computed by one process alone, and take seconds."""
    return mock.patch.object(loop, "convert")


def exchanged(processes: Processes) -> dict[str, Tensor]:
    """Results of exchanging one number of each process."""
    here = float(processes.rank + 1)
    sums, means, firsts = ([torch.full((2, 3), here), torch.tensor([7])] for _ in range(3))
    processes.sum_over_processes(sums)
    processes.average(means[:1])
    processes.broadcast(firsts)
    part = torch.tensor([here, 2.0], requires_grad=True)
    (processes.total(part) ** 2).sum().backward()
    assert part.grad is not None
    return {
        "sum": sums[0],
        "counted": sums[1],
        "mean": means[0],
        "first": firsts[0],
        "gradient": part.grad,
        "agreed": torch.tensor(processes.broadcast_value(here)),
        "anywhere": torch.tensor([processes.any_process(processes.rank == 1), processes.any_process(False)]),
    }


def loss_gradients(processes: Processes) -> dict[str, Tensor]:
    """Every kind of loss on a batch, and the gradient of the local logits. The first patch, the only one of
    this process if there are ``WORLD`` of them, does not count; nor does every class occur."""
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(BATCH, 4, 3, 4, 5, generator=generator)
    target = torch.randint(0, 3, (BATCH, 3, 4, 5), generator=generator).to(torch.uint8)
    target[1] = IGNORE
    counts = torch.tensor([[50, 8, 2, 0], [9, 40, 0, 11], [20, 20, 20, 0]])
    share, out = processes.share, {}
    for index, spec in enumerate(LOSSES):
        logits = whole[share].clone().requires_grad_()
        value = loss.compute(spec, [logits], target[share], counts[share], processes.total, progress=0.2)
        value.backward()  # type: ignore[no-untyped-call]
        assert logits.grad is not None
        out |= {f"{index}": value.detach(), f"{index}/gradient": logits.grad}
    return out


def recipe(together: bool) -> Recipe:
    """An optimiser whose steps are proportional to gradients, so that rounding errors of small gradients are
    not amplified."""
    made = tiny_recipe(together, STEPS)
    return retrained(made, batch=BATCH, optimiser=SGD(lr=0.05), gradient_clip=0.5)


def training(
    data: Path,
    out: Path,
    together: bool,
    processes: Processes = SINGLE_PROCESS,
    resume: bool = False,
    seconds: float | None = None,
) -> None:
    """Train, and record the samples: the cases of every batch, and the patches computed by this process."""
    settings = LoopSettings(CPU, seconds=seconds, resume=resume, processes=processes)
    drawn: list[Batch] = []
    with _in_float64(), _watched(drawn), mock.patch.object(loop, "LOG_EVERY_STEPS", 1):
        loop.train(open_dataset(data), SPLIT, recipe(together), out, settings, NullObserver())
    # Validation patches, which only one process draws, are drawn one at a time.
    steps = [batch for batch in drawn if len(batch.cases) == BATCH]
    record = out.with_name(f"{out.name}-{processes.rank}-of-{processes.world}")
    record.with_suffix(".json").write_text(json.dumps([batch.cases for batch in steps]))
    images = {
        f"{n}/{name}": stage.image_BCIJK
        for n, batch in enumerate(steps[:STEPS])
        for name, stage in batch.stages.items()
    }
    save_file(images, record.with_suffix(".safetensors"))


@contextmanager
def _in_float64() -> Iterator[None]:
    """Networks and losses in float64. In float32, a processor may add up a batch of three in another order
    than its parts; and where a later stage reads stored predictions of the earlier one, which are rounded
    coarsely, the last bits of a weight would change whole levels."""
    build, forward = loop.build_network, StageGroup.forward

    def build_double(*args: Any) -> nn.Module:
        network = build(*args).double()
        network.register_forward_pre_hook(lambda module, inputs: tuple(x.double() for x in inputs))
        return network

    def forward_double(*args: Any) -> Any:
        with mock.patch.object(Tensor, "float", Tensor.double):
            return forward(*args)

    with (
        mock.patch.object(loop, "build_network", build_double),
        mock.patch.object(StageGroup, "forward", forward_double),
    ):
        yield


@contextmanager
def _watched(drawn: list[Batch]) -> Iterator[None]:
    draw = PatchSource.draw

    def keep(self: PatchSource, size: int, rng: np.random.Generator, share: slice = slice(None)) -> Batch:
        drawn.append(draw(self, size, rng, share))
        return drawn[-1]

    with mock.patch.object(PatchSource, "draw", keep):
        yield


def interrupted(data: Path, out: Path, processes: Processes) -> None:
    """Only the last process is interrupted, in the second step."""
    draw = PatchSource.draw
    calls = 0

    def draw_and_stop(
        self: PatchSource, size: int, rng: np.random.Generator, share: slice = slice(None)
    ) -> Batch:
        nonlocal calls
        calls += size == BATCH
        if calls == 2 and processes.rank == WORLD - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, size, rng, share)

    settings = LoopSettings(CPU, processes=processes)
    with _in_float64(), mock.patch.object(PatchSource, "draw", draw_and_stop):
        try:
            loop.train(open_dataset(data), SPLIT, recipe(True), out, settings, NullObserver())
        except InterruptedTrainingError as error:
            out.with_name(f"stop-{processes.rank}.txt").write_text(str(error))


def _decided(data: Path, out: Path, processes: Processes) -> None:
    """Only the first process receives the request; all continue for two more epochs of a step each."""
    made = retrained(recipe(True), steps_per_epoch=1)
    path = out.with_name(f"recipe-{processes.rank}.yaml")
    if processes.first:
        path.write_text(dump(made))
    request = TrainingRequest(str(path), folds=4, fold=2, seed=5)
    training_run.start(open_dataset(data), out, request, CPU, NullObserver(), processes)
    model = training_run.resume(open_dataset(data), out, CPU, NullObserver(), epochs=5, processes=processes)
    save_file(
        {n: torch.from_numpy(w).contiguous() for n, w in model.weights["fine"].items()},
        out.with_name(f"job-{processes.rank}.safetensors"),
    )


def _refused(data: Path, out: Path, processes: Processes) -> None:
    made = retrained(recipe(True), batch=1)
    settings = LoopSettings(CPU, processes=processes)
    try:
        loop.train(open_dataset(data), SPLIT, made, out / "refused", settings, NullObserver())
    except Exception as error:
        (out / f"refused-{processes.rank}.txt").write_text(f"{type(error).__name__}: {error}")


def _deserted(data: Path, out: Path, processes: Processes) -> None:
    """The last process fails in the second step; the first reports it and ends."""
    settings = LoopSettings(CPU, processes=processes)
    draw = PatchSource.draw

    def fail(self: PatchSource, size: int, rng: np.random.Generator, share: slice = slice(None)) -> Batch:
        if processes.rank == WORLD - 1:
            os._exit(3)
        return draw(self, size, rng, share)

    with mock.patch.object(PatchSource, "draw", fail):
        try:
            loop.train(open_dataset(data), SPLIT, recipe(True), out / "deserted", settings, NullObserver())
        except TrainingError as error:
            (out / "deserted.txt").write_text(str(error))
            os._exit(2)
