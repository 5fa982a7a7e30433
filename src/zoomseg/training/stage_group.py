"""Stages that are trained together: their common step, and the averaged weights.

Shapes: B batch, C channels or classes, I J K voxels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoomseg.backends.device import Device
from zoomseg.core.geometry import Box
from zoomseg.core.labels import IGNORE
from zoomseg.core.resample import resample_data
from zoomseg.pipeline import inputs
from zoomseg.pipeline.sliding_window import StageNetwork
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe import network_shapes
from zoomseg.recipe.spec import SGD, AdamW, OptimiserSpec, Stage
from zoomseg.training import loss
from zoomseg.training.data.packed_cases import stored_labels
from zoomseg.training.data.patches import Batch, StageBatch
from zoomseg.training.distributed import SINGLE_PROCESS, Processes
from zoomseg.training.log import RunningDice
from zoomseg.training.schedule import learning_rate_factor

NORM_DECAY = 0.99
"""Decay per step of the running statistics of batch norms, which prediction uses: they are means over the
last few hundred batches. With torch's own 0.9, ten batches would have two thirds of the weight; in a batch of
one patch, prediction would depend on which patches came last."""


@dataclass(eq=False)
class StageGroup:
    """Stages that run in one step; those in ``trained`` learn, the others are finished.

    ``index`` is the group's position in the run; ``labels`` are those that every stage of the recipe
    predicts; ``ema_weights`` are moving averages of the trained stages' state dicts, none with an
    ``ema_decay`` of 0; ``teachers``, if there are any, are the teachers' networks by stage.
    """

    index: int
    stages: tuple[Stage, ...]
    trained: tuple[str, ...]
    modules: dict[str, nn.Module]
    ema_weights: dict[str, dict[str, Tensor]]
    optimiser: torch.optim.Optimizer
    length: TrainingLength
    labels: Mapping[str, tuple[str, ...]]
    device: Device
    processes: Processes = SINGLE_PROCESS
    teachers: Mapping[str, StageNetwork] = field(default_factory=dict)
    step: int = 0
    elapsed: float = 0.0
    spent: float = 0.0

    @classmethod
    def create(
        cls,
        index: int,
        stages: tuple[Stage, ...],
        trained: tuple[str, ...],
        modules: dict[str, nn.Module],
        length: TrainingLength,
        labels: Mapping[str, tuple[str, ...]],
        device: Device,
        processes: Processes = SINGLE_PROCESS,
        teachers: Mapping[str, StageNetwork] = MappingProxyType({}),
    ) -> StageGroup:
        """A group before its first step: averaged weights are the modules' own."""
        training = stages[-1].training
        parameters = [p for name in trained for p in modules[name].parameters()]
        ema_weights = {name: _copy(modules[name].state_dict()) for name in trained if training.ema_decay > 0}
        optimiser = _optimiser(training.optimiser, parameters)
        return cls(
            index,
            stages,
            trained,
            modules,
            ema_weights,
            optimiser,
            length,
            labels,
            device,
            processes,
            teachers,
        )

    @property
    def last_stage(self) -> Stage:
        """The last stage: its training section applies to the whole group."""
        return self.stages[-1]

    @property
    def final_weights(self) -> dict[str, dict[str, Tensor]]:
        """The final state dicts of the trained stages: their moving averages, or the last weights."""
        return self.ema_weights or {name: self.modules[name].state_dict() for name in self.trained}

    @property
    def progress(self) -> float:
        return self.length.progress(self.step, self.elapsed)

    @property
    def learning_rate(self) -> float:
        training = self.last_stage.training
        return training.optimiser.lr * learning_rate_factor(training.schedule, self.progress, self.step)

    def train_step(
        self, batch: Batch, dice: Mapping[str, RunningDice], measure: bool
    ) -> dict[str, float] | None:
        """One update; returns None, without an update, if the loss or its gradient is not finite.

        Args:
            dice: of every trained stage, updated with this batch if ``measure``.
        """
        buffers = [b for name in self.trained for b in self.modules[name].buffers()]
        before = [buffer.clone() for buffer in buffers]
        losses = self._update(batch, dice, measure)
        if losses is None:  # a forward pass has changed the statistics of batch norms
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)
        return losses

    def _update(
        self, batch: Batch, dice: Mapping[str, RunningDice], measure: bool
    ) -> dict[str, float] | None:
        """As ``train_step``; a skipped step leaves the buffers of its forward pass."""
        for name in self.trained:
            self.modules[name].train()
            for part in self.modules[name].modules():
                if isinstance(part, nn.BatchNorm3d):
                    part.momentum = 1 - self._decay(NORM_DECAY)
        for group in self.optimiser.param_groups:
            group["lr"] = self.learning_rate
        losses, predicted = self.forward(batch, self.modules, self.progress, self.processes.total)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total)):
            return None
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        clip = self.last_stage.training.gradient_clip or math.inf
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        self.processes.sum_over_processes([p.grad for p in parameters if p.grad is not None])
        if not bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, clip))):
            return None
        self.optimiser.step()
        buffers = [b for name in self.trained for b in self.modules[name].buffers()]
        self.processes.average([b for b in buffers if b.is_floating_point()])
        self._average()
        if measure:
            self._measure(predicted, batch, dice, self.processes.total)
        return {name: float(value.detach()) for name, value in losses.items()}

    def forward(
        self,
        batch: Batch,
        modules: Mapping[str, nn.Module],
        progress: float = 1.0,
        total: loss.Total = loss.all_here,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of the trained stages at this progress of the training, and logits ``[B, C, I, J, K]`` of
        all, low to high.

        A stage's probabilities reach the stages after it with their gradient, if both are trained.
        """
        losses: dict[str, Tensor] = {}
        predicted: dict[str, Tensor] = {}
        for stage in self.stages:
            data = batch.stages[stage.name]
            x_BCIJK = self._assemble(stage, data, batch, predicted)
            learning = stage.name in self.trained and modules[stage.name].training
            with torch.set_grad_enabled(learning), self._autocast(stage):
                logits = [level.contiguous().float() for level in modules[stage.name](x_BCIJK)]
            if stage.name in self.trained:
                target = _predicted_part(
                    data.target_BIJK.to(self.device.torch_device), tuple(logits[0].shape[2:])
                )
                losses[stage.name] = loss.compute(
                    stage.training.loss, logits, target, data.counts_BC, total, data.annotated_BC, progress
                )
                if stage.name in self.teachers:
                    taught_BCIJK = self.teachers[stage.name](x_BCIJK, ())
                    losses[stage.name] = loss.distilled(
                        losses[stage.name], logits[0], taught_BCIJK, target, total
                    )
            predicted[stage.name] = logits[0]
        return losses, predicted

    def validate(self, batches: tuple[Batch, ...], dice: Mapping[str, RunningDice]) -> dict[str, float]:
        """Mean losses of the averaged weights, in evaluation mode and as at the end of the training, so that
        they can be compared; ``dice`` is updated with every batch."""
        averaged: dict[str, nn.Module] = {
            name: _AveragedWeights(self.modules[name], weights)
            for name, weights in self.final_weights.items()
        }
        modules = {**self.modules, **averaged}
        sums = dict.fromkeys(self.trained, 0.0)
        for module in self.modules.values():
            module.eval()
        with torch.no_grad():
            for batch in batches:
                losses, predicted = self.forward(batch, modules)
                for name in self.trained:
                    sums[name] += float(losses[name]) / len(batches)
                self._measure(predicted, batch, dice, loss.all_here)
        return sums

    def broadcast_weights(self) -> None:
        """Continue from the first process's weights: initial weights of other hardware may differ in the last
        bits."""
        states = [self.modules[name].state_dict() for name in self.trained]
        states += self.ema_weights.values()
        self.processes.broadcast([value for state in states for value in state.values()])

    def finished(self) -> dict[str, nn.Module]:
        """The trained stages with their averaged weights, frozen."""
        for name, weights in self.ema_weights.items():
            self.modules[name].load_state_dict(weights)
        for name in self.trained:
            self.modules[name].eval().requires_grad_(False)
        return {name: self.modules[name] for name in self.trained}

    def _autocast(self, stage: Stage) -> torch.autocast:
        """Float32 if feature maps shrink to two voxels along their first axis: there, torch's bfloat16
        gradient of a 3x3x3 convolution on a CPU reads uninitialised memory (observed with torch 2.13)."""
        size, factor = stage.training.patch[0], network_shapes.divisor(stage.network)[0]
        if self.device.torch_device.type == "cpu" and 2 <= size <= 2 * factor:
            return torch.autocast("cpu", enabled=False)
        return self.device.autocast()

    def _measure(
        self,
        predicted: Mapping[str, Tensor],
        batch: Batch,
        dice: Mapping[str, RunningDice],
        total: loss.Total,
    ) -> None:
        """Update ``dice`` of every trained stage with a batch."""
        for name in self.trained:
            data = batch.stages[name]
            here = overlaps(predicted[name], data.target_BIJK, data.annotated_BC)
            dice[name].add(*total(torch.tensor(here, dtype=torch.float64)).tolist())

    def _assemble(
        self, stage: Stage, data: StageBatch, batch: Batch, predicted: Mapping[str, Tensor]
    ) -> Tensor:
        device = self.device.torch_device
        parts = [data.image_BCIJK.to(device)]
        for n, spec in enumerate(inputs.prior_specs(stage.inputs)):
            labels = self.labels[spec.of]
            if spec.of in predicted:
                chosen = inputs.select_prior(spec, predicted[spec.of].softmax(dim=1), labels)
                low = batch.stages[spec.of].grids
                middle = _middle(low[0].shape, tuple(chosen.shape[2:]))
                moved = [
                    resample_data(chosen[b], low[b].crop(middle), data.grids[b]) for b in range(len(low))
                ]
                prior_BCIJK = torch.stack(moved)
            else:
                own = stored_labels(stage, spec.of, labels)
                prior_BCIJK = inputs.select_prior(spec, data.stored[spec.of].to(device), own)
            if data.within_BIJK is not None:
                prior_BCIJK = prior_BCIJK * data.within_BIJK.to(device)[:, None]
            if data.shown:
                prior_BCIJK = prior_BCIJK * data.shown[n].to(prior_BCIJK)[:, :, None, None, None]
            parts.append(prior_BCIJK)
        return torch.cat(parts, dim=1)

    def _decay(self, final: float) -> float:
        """Of a moving average in this step: at first lower, so that early steps lose their weight faster."""
        return min(final, (1 + self.step) / (10 + self.step))

    @torch.no_grad()
    def _average(self) -> None:
        """Exponential moving average of the weights."""
        decay = self._decay(self.last_stage.training.ema_decay)
        for name, weights in self.ema_weights.items():
            for key, value in self.modules[name].state_dict().items():
                kept = weights[key]
                if value.is_floating_point():
                    kept.lerp_(value, 1 - decay)
                else:
                    kept.copy_(value)


class _AveragedWeights(nn.Module):
    """A module that runs with its averaged weights, in evaluation mode."""

    def __init__(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._parts = (module, weights)  # in a tuple, so that torch does not register the module again
        self.eval()

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        module, weights = self._parts
        logits: tuple[Tensor, ...] = functional_call(module, weights, (x_BCIJK,))
        return logits


def overlaps(
    logits_BCIJK: Tensor, target_BIJK: Tensor, annotated_BC: Tensor | None = None
) -> tuple[list[float], list[float]]:
    """Per class: voxels where the argmax and the target agree, and both sizes summed. An organ that is found
    where it is not annotated counts as background, as its voxels do in the target.

    Args:
        annotated_BC: classes annotated in the patches' cases; None: all.
    """
    classes = logits_BCIJK.shape[1]
    target = _predicted_part(target_BIJK, tuple(logits_BCIJK.shape[2:])).to(logits_BCIJK.device)
    counts = target != IGNORE
    found_BIJK = logits_BCIJK.argmax(dim=1)
    if annotated_BC is not None:
        known = annotated_BC.to(found_BIJK.device).gather(1, found_BIJK.flatten(1))
        found_BIJK = found_BIJK * known.view_as(found_BIJK)
    guess, truth = found_BIJK[counts], target[counts].long()
    overlap = torch.bincount(truth[guess == truth], minlength=classes)
    size = torch.bincount(truth, minlength=classes) + torch.bincount(guess, minlength=classes)
    return overlap.tolist(), size.tolist()


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}


def _optimiser(spec: OptimiserSpec, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    match spec:
        case SGD():
            return torch.optim.SGD(
                parameters,
                lr=spec.lr,
                momentum=spec.momentum,
                nesterov=spec.nesterov,
                weight_decay=spec.weight_decay,
            )
        case AdamW():
            return torch.optim.AdamW(
                parameters,
                lr=spec.lr,
                betas=spec.betas,
                eps=spec.eps,
                weight_decay=spec.weight_decay,
                fused=True,  # one kernel instead of many small ones
            )


def _middle(patch: tuple[int, ...], shape: tuple[int, ...]) -> Box:
    """The box of a patch that a valid network predicts."""
    i, j, k = ((n - m) // 2 for n, m in zip(patch, shape, strict=True))
    return Box((i, j, k), (i + shape[0], j + shape[1], k + shape[2]))


def _predicted_part(target_BIJK: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The part of the target that the network predicts."""
    return target_BIJK[(slice(None), *_middle(tuple(target_BIJK.shape[1:]), shape).slices)]
