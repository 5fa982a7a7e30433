"""The visible training loop: units of stages in order, each a plain loop over steps.

Every step's randomness comes from (seed, unit, step) alone, so a resumed run repeats exactly what an
uninterrupted one would have done.

Shapes: B batch, C channels or classes, I J K voxels.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from zoomseg.core.case import Prior
from zoomseg.core.errors import INTERRUPTED, RecipeError, TrainingError, ZoomSegError
from zoomseg.core.geometry import Box
from zoomseg.core.labels import IGNORE, LabelSchema
from zoomseg.core.resample import resample_data
from zoomseg.engine import checkpoint, look, pack
from zoomseg.engine.device import Device
from zoomseg.engine.log import Log, Observer, Row, RunningDice
from zoomseg.engine.patches import Batch, PatchSource, StageBatch
from zoomseg.engine.predict import as_network, build_network, run_stage
from zoomseg.engine.schedule import Length, learning_rate_factor
from zoomseg.io import bundle
from zoomseg.io.dataset import Dataset
from zoomseg.io.files import writable_directory, write_bytes_atomic
from zoomseg.networks import build as networks
from zoomseg.recipe import graph
from zoomseg.recipe.spec import SGD, AdamW, OptimiserSpec, Recipe, Stage
from zoomseg.stage import augment, inputs, loss

STEPS_PER_EPOCH = 100
"""An epoch is a number of steps, whatever the size of the data set."""

LOG_EVERY_STEPS = 10
CHECKPOINT_EVERY_SECONDS = 60.0
VALIDATIONS = 10
"""Validations per unit, evenly spread over its progress."""
VALIDATION_PATCHES = 8
LEAST_SHARE = 0.02
"""Part of the time budget that every unit gets, however long its preparation took."""
BAD_STEPS_ALLOWED = 10
"""Consecutive steps without a finite loss before training gives up."""


@dataclass(frozen=True)
class Settings:
    """How long, on what, and from where. Neither ``seconds`` nor ``epochs``: the recipe's iterations."""

    device: Device
    seconds: float | None = None
    epochs: int | None = None
    seed: int = 0
    resume: bool = False


@dataclass(frozen=True)
class Split:
    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(eq=False)
class _Unit:
    """Stages that run in one step; those in ``trained`` learn, the others are finished."""

    index: int
    stages: tuple[Stage, ...]
    trained: tuple[str, ...]
    modules: dict[str, nn.Module]
    averaged: dict[str, dict[str, Tensor]]
    optimiser: torch.optim.Optimizer
    length: Length
    step: int = 0
    elapsed: float = 0.0
    spent: float = 0.0

    @property
    def lead(self) -> Stage:
        """The last stage: its training section holds for the whole unit."""
        return self.stages[-1]

    @property
    def progress(self) -> float:
        return self.length.progress(self.step, self.elapsed)

    @property
    def learning_rate(self) -> float:
        training = self.lead.training
        return training.optimiser.lr * learning_rate_factor(
            training.schedule, self.progress, training.iterations
        )


class InterruptedTrainingError(ZoomSegError):
    """Training was asked to stop; its state is on disk."""

    exit_code = INTERRUPTED


def train(
    dataset: Dataset, split: Split, recipe: Recipe, out: Path, settings: Settings, observer: Observer
) -> bundle.Bundle:
    """Train every stage of ``recipe`` and write the model to ``out``.

    ``out`` is a usable model after every checkpoint; ``out/training`` holds the checkpoint,
    ``metrics.csv`` and TensorBoard events.

    Raises:
        TrainingError: nothing to train on, losses that stay NaN, a checkpoint of another run.
        InterruptedTrainingError: SIGINT or SIGTERM came; ``resume`` goes on from here.
    """
    run = _Run(dataset, split, recipe, out, settings, observer)
    with _stop_signals() as stop:
        return run.train(stop)


class _Run:
    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        recipe: Recipe,
        out: Path,
        settings: Settings,
        observer: Observer,
    ) -> None:
        if not split.train:
            raise TrainingError("there are no training cases; add labelled cases or use fewer folds")
        self.dataset, self.split, self.recipe = dataset, split, recipe
        self.out, self.settings, self.observer = out, settings, observer
        self.folder = out / "training"
        self.cache = writable_directory(self.folder / "cache")
        self.files = {case.id: case for case in dataset.cases}
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.started = time.monotonic()
        self.already_spent = 0.0
        self.finished: dict[str, nn.Module] = {}
        self.stop = threading.Event()
        self.labels = {s.name: graph.resolve_labels(s, dataset.schema) for s in recipe.stages}
        self.schemas = {name: LabelSchema.consecutive(labels) for name, labels in self.labels.items()}
        for stage in recipe.stages:
            _check_shapes(stage)
        for unit in graph.training_units(recipe):
            for name in self._shown(unit.trained):
                lead = graph.stage_of(recipe, unit.trained[-1])
                augment.check_flips(lead.training.augmentation, self.schemas[name])

    def _shown(self, trained: tuple[str, ...]) -> tuple[str, ...]:
        """Stages whose labels a patch of this unit carries, as targets or as priors; its augmentation
        must suit them all."""
        names = set(trained)
        for name in trained:
            stage = graph.stage_of(self.recipe, name)
            names.update(spec.of for spec in inputs.prior_specs(stage.inputs))
            if self.recipe.prior_from == "live":
                names.update(graph.ancestors(self.recipe, name))
        return tuple(stage.name for stage in self.recipe.stages if stage.name in names)

    @property
    def spent(self) -> float:
        """Seconds of the whole run, those of interrupted earlier parts included."""
        return self.already_spent + time.monotonic() - self.started

    @property
    def fingerprint(self) -> str:
        parts = [self.recipe.model_dump_json(), *self.split.train, "|", *self.split.validation]
        parts.append(str(self.settings.seed))
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def train(self, stop: threading.Event) -> bundle.Bundle:
        self.stop = stop
        resumed = self._resume_point()
        units = graph.training_units(self.recipe)
        all_labels = self.dataset.schema.names
        resume_at = (resumed.unit, resumed.step) if resumed else None
        with Log(self.folder, all_labels, resume_at) as log:
            for index, names in enumerate(units):
                unit = self._unit(index, names.trained)
                if resumed is not None and index <= resumed.unit:
                    self._restore(unit, resumed)
                if resumed is None or index >= resumed.unit:
                    self._train_unit(unit, units, log)
                for name in names.trained:
                    self.finished[name] = _with_weights(unit.modules[name], unit.averaged[name])
        model = self._save_model()
        shutil.rmtree(self.cache, ignore_errors=True)
        return model

    # --- units ------------------------------------------------------------------------------------

    def _unit(self, index: int, trained: tuple[str, ...]) -> _Unit:
        """Fresh networks and optimiser of one unit; initial weights depend on the seed and unit alone."""
        torch.manual_seed(self.settings.seed * 1000 + index)
        needed = set(trained)
        if self.recipe.prior_from == "live":
            for name in trained:
                needed.update(graph.ancestors(self.recipe, name))
        stages = tuple(s for s in self.recipe.stages if s.name in needed)
        channels = len(self.dataset.channel_names)
        modules: dict[str, nn.Module] = {}
        for stage in stages:
            if stage.name in trained:
                module = build_network(stage, self.recipe, self.dataset.schema, channels)
                modules[stage.name] = module.to(self.settings.device.place)
            else:
                modules[stage.name] = self.finished[stage.name]
        parameters = [p for name in trained for p in modules[name].parameters()]
        return _Unit(
            index,
            stages,
            trained,
            modules,
            {name: _copy(modules[name].state_dict()) for name in trained},
            _optimiser(stages[-1].training.optimiser, parameters),
            Length(self._steps(stages[-1]), None),
        )

    def _steps(self, stage: Stage) -> int:
        epochs = self.settings.epochs
        return stage.training.iterations if epochs is None else epochs * STEPS_PER_EPOCH

    def _resume_point(self) -> checkpoint.Progress | None:
        if not self.settings.resume or not self.checkpoint.is_file():
            return None
        progress = checkpoint.read_progress(self.checkpoint)
        if progress.fingerprint != self.fingerprint:
            raise TrainingError(
                f"{self.out} was trained with another recipe, seed or choice of cases; "
                "resume with the same ones, or train into a new folder"
            )
        self.already_spent = progress.spent + progress.elapsed
        return progress

    def _restore(self, unit: _Unit, progress: checkpoint.Progress) -> None:
        """Bring a unit back to where the checkpoint left it; earlier units come from their own file."""
        path = self.checkpoint if unit.index == progress.unit else self._unit_file(unit.index)
        own = {name: unit.modules[name] for name in unit.trained}
        checkpoint.restore(path, own, unit.averaged, unit.optimiser)
        if unit.index == progress.unit:
            unit.step, unit.elapsed, unit.spent = progress.step, progress.elapsed, progress.spent

    def _unit_file(self, index: int) -> Path:
        return self.folder / f"unit-{index}.safetensors"

    # --- one unit ---------------------------------------------------------------------------------

    def _train_unit(self, unit: _Unit, units: Sequence[graph.TrainingUnit], log: Log) -> None:
        packs = self._pack(unit)
        source = PatchSource(self.recipe, unit.stages, packs.train, self.schemas)
        validation = self._validation_batches(unit, packs.validation)
        if self.settings.seconds is not None:
            if unit.step == 0:
                unit.spent = self.spent
            unit.length = Length(None, self._unit_seconds(unit, units))
        elif unit.step == 0:
            unit.spent = self.spent
        self._loop(unit, source, validation, log)
        self._save(unit)
        write_bytes_atomic(self._unit_file(unit.index), self.checkpoint.read_bytes())

    def _unit_seconds(self, unit: _Unit, units: Sequence[graph.TrainingUnit]) -> float:
        """This unit's part of what the budget still holds at its first step."""
        assert self.settings.seconds is not None
        by_name = {s.name: s for s in self.recipe.stages}
        shares = [by_name[u.trained[-1]].training.budget_share for u in units[unit.index :]]
        part = (self.settings.seconds - unit.spent) * shares[0] / sum(shares)
        least = LEAST_SHARE * self.settings.seconds
        if part >= least:
            return part
        if unit.index == 0:
            raise TrainingError(
                f"the time budget of {self.settings.seconds:.0f} s was used up by preparing the data "
                f"({unit.spent:.0f} s); give more time"
            )
        # What earlier units learned must not be lost because their predictions took long.
        self.observer.message(
            f"preparing stage '{unit.lead.name}' took what the time budget had left; "
            f"it is trained for {least:.0f} s all the same"
        )
        return least

    def _loop(
        self,
        unit: _Unit,
        source: PatchSource,
        validation: Sequence[Batch],
        log: Log,
    ) -> None:
        dice = {n: RunningDice(self.schemas[n].classes, 0.95) for n in unit.trained}
        validated = math.floor(unit.progress * VALIDATIONS)
        saved, bad = time.monotonic(), 0
        began = time.monotonic() - unit.elapsed
        while unit.progress < 1.0:
            rng = np.random.default_rng([self.settings.seed, unit.index, unit.step])
            batch = source.draw(unit.lead.training.batch, rng)
            losses = self._step(unit, batch, dice, measure=unit.step % LOG_EVERY_STEPS == 0)
            bad = 0 if losses is not None else bad + 1
            if losses is None:
                self._report_bad(unit, batch, bad)
            unit.step += 1
            unit.elapsed = time.monotonic() - began
            if losses is not None and (unit.step - 1) % LOG_EVERY_STEPS == 0:
                self._log_training(unit, losses, dice, log)
            if validation and math.floor(unit.progress * VALIDATIONS) > validated:
                validated = math.floor(unit.progress * VALIDATIONS)
                self._validate(unit, validation, log)
                unit.elapsed = time.monotonic() - began
            if self.stop.is_set():
                self._save(unit)
                raise InterruptedTrainingError(f"stopped at step {unit.step}; go on with --resume")
            if time.monotonic() - saved > CHECKPOINT_EVERY_SECONDS:
                self._save(unit)
                saved = time.monotonic()

    def _step(
        self, unit: _Unit, batch: Batch, dice: Mapping[str, RunningDice], measure: bool
    ) -> dict[str, float] | None:
        """One update; None, and no update, where the loss or its gradient is not finite."""
        for name in unit.trained:
            unit.modules[name].train()
        for group in unit.optimiser.param_groups:
            group["lr"] = unit.learning_rate
        losses, answers = self._forward(unit, batch, unit.modules)
        total = torch.stack(list(losses.values())).sum()
        if not bool(torch.isfinite(total)):
            return None
        unit.optimiser.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        clip = unit.lead.training.gradient_clip or math.inf
        parameters = [p for group in unit.optimiser.param_groups for p in group["params"]]
        if not bool(torch.isfinite(nn.utils.clip_grad_norm_(parameters, clip))):
            return None
        unit.optimiser.step()
        _average(unit)
        if measure:
            for name in unit.trained:
                dice[name].add(*_overlaps(answers[name], batch.stages[name].target_BIJK))
        return {name: float(value.detach()) for name, value in losses.items()}

    def _forward(
        self, unit: _Unit, batch: Batch, modules: Mapping[str, nn.Module]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses of the trained stages and probabilities ``[B, C, I, J, K]`` of all, low to high.

        A stage's probabilities reach the stages after it with their gradient, where both are trained.
        """
        device = self.settings.device
        losses: dict[str, Tensor] = {}
        answers: dict[str, Tensor] = {}
        for stage in unit.stages:
            data = batch.stages[stage.name]
            x_BCIJK = self._assemble(stage, data, batch, answers)
            learning = stage.name in unit.trained and modules[stage.name].training
            with torch.set_grad_enabled(learning), device.autocast():
                logits = modules[stage.name](x_BCIJK)
            if stage.name in unit.trained:
                target = data.target_BIJK.to(device.place)
                losses[stage.name] = loss.compute(
                    stage.training.loss, logits, _answered(target, tuple(logits[0].shape[2:])), data.counts_BC
                )
            answers[stage.name] = logits[0].float().softmax(dim=1)
        return losses, answers

    def _assemble(
        self, stage: Stage, data: StageBatch, batch: Batch, answers: Mapping[str, Tensor]
    ) -> Tensor:
        device = self.settings.device.place
        parts = [data.image_BCIJK.to(device)]
        for spec in inputs.prior_specs(stage.inputs):
            labels = self.labels[spec.of]
            if spec.of in answers:
                chosen = inputs.select_prior(spec, answers[spec.of], labels)
                low = batch.stages[spec.of].grids
                middle = _middle(low[0].shape, tuple(chosen.shape[2:]))
                moved = [
                    resample_data(chosen[b], low[b].crop(middle), data.grids[b]) for b in range(len(low))
                ]
                parts.append(torch.stack(moved))
            else:
                parts.append(inputs.select_prior(spec, data.stored[spec.of].to(device), labels))
        return torch.cat(parts, dim=1)

    # --- data -------------------------------------------------------------------------------------

    def _pack(self, unit: _Unit) -> _Packs:
        """Sample every case on the grids of the unit's stages, one case after the other.

        Stages trained apart from those they follow look where these, finished, found something;
        stages that run together look where the reference says.
        """
        ids = [*self.split.train, *self.split.validation]
        kept: dict[str, dict[str, pack.Packed]] = {}
        for done, case_id in enumerate(ids):
            if self.stop.is_set():
                raise InterruptedTrainingError("stopped while preparing the data; go on with --resume")
            self.observer.preparing(unit.lead.name, done, len(ids))
            packed = self._pack_case(unit, case_id, len(kept))
            if packed is None:
                self.observer.message(f"{case_id}: stage '{unit.lead.name}' has nowhere to look; left out")
            else:
                kept[case_id] = packed
        self.observer.preparing(unit.lead.name, len(ids), len(ids))
        train = [kept[i] for i in self.split.train if i in kept]
        if not train:
            raise TrainingError(f"stage '{unit.lead.name}' has nowhere to look in any training case")
        validation = [kept[i] for i in self.split.validation if i in kept]
        names = [s.name for s in unit.stages]
        return _Packs(
            {n: [p[n] for p in train] for n in names}, {n: [p[n] for p in validation] for n in names}
        )

    def _pack_case(self, unit: _Unit, case_id: str, number: int) -> dict[str, pack.Packed] | None:
        scan = look.prepare(self.dataset.load(self.files[case_id]), self.recipe)
        priors = self._priors(unit, scan)
        out: dict[str, pack.Packed] = {}
        for stage in unit.stages:
            rng = np.random.default_rng([self.settings.seed, unit.index, number])
            live = {s.name for s in unit.stages}
            specs = tuple(
                spec for spec in stage.inputs if not (spec.kind == "prior" and spec.of in live)
            )  # live priors are computed in every step, not stored
            shown = stage.model_copy(update={"inputs": specs})
            labels = self.labels[stage.name]
            packed = pack.pack(shown, self.recipe, scan, priors, labels, self.cache, rng)
            if packed is None:
                return None
            out[stage.name] = packed
        return out

    def _priors(self, unit: _Unit, scan: look.Scan) -> dict[str, Prior]:
        together = tuple(s.name for s in unit.stages)
        priors = pack.reference_priors(self.recipe, together, scan)
        for stage in self.recipe.stages:
            if stage.name in self.finished and stage.name not in together:
                seen = look.view(stage, self.recipe, scan, priors)
                labels = self.labels[stage.name]
                if seen is None:
                    priors[stage.name] = look.nothing(stage, scan, labels)
                    continue
                network = as_network(self.finished[stage.name], self.settings.device)
                priors[stage.name], _ = run_stage(seen, scan, priors, labels, network, self.settings.device)
        return priors

    def _validation_batches(
        self, unit: _Unit, packs: Mapping[str, Sequence[pack.Packed]]
    ) -> tuple[Batch, ...]:
        """The same unaugmented patches every time."""
        if not packs[unit.lead.name]:
            return ()
        source = PatchSource(self.recipe, unit.stages, packs, self.schemas, augmented=False)
        rng = np.random.default_rng([self.settings.seed, unit.index, 0])
        return tuple(source.draw(1, rng) for _ in range(VALIDATION_PATCHES))

    # --- telling and saving -----------------------------------------------------------------------

    def _validate(self, unit: _Unit, batches: Sequence[Batch], log: Log) -> None:
        """Loss and Dice of the averaged weights on the fixed patches."""
        averaged: dict[str, nn.Module] = {
            name: _Averaged(unit.modules[name], unit.averaged[name]) for name in unit.trained
        }
        modules = {**unit.modules, **averaged}
        dice = {n: RunningDice(self.schemas[n].classes, 1.0) for n in unit.trained}
        sums = dict.fromkeys(unit.trained, 0.0)
        for module in unit.modules.values():
            module.eval()
        with torch.no_grad():
            for batch in batches:
                losses, answers = self._forward(unit, batch, modules)
                for name in unit.trained:
                    sums[name] += float(losses[name]) / len(batches)
                    dice[name].add(*_overlaps(answers[name], batch.stages[name].target_BIJK))
        self._tell(unit, sums, dice, log, "validation")

    def _log_training(
        self, unit: _Unit, losses: Mapping[str, float], dice: Mapping[str, RunningDice], log: Log
    ) -> None:
        self._tell(unit, losses, dice, log, "train")

    def _tell(
        self,
        unit: _Unit,
        losses: Mapping[str, float],
        dice: Mapping[str, RunningDice],
        log: Log,
        split: str,
    ) -> None:
        for name in unit.trained:
            row = Row(
                unit.index,
                unit.step,
                unit.elapsed,
                unit.progress,
                unit.learning_rate,
                split,
                name,
                losses[name],
                dice[name].by_label(self.labels[name]),
            )
            log.write(row)
            self.observer.row(row, unit.length.remaining_seconds(unit.step, unit.elapsed))

    def _report_bad(self, unit: _Unit, batch: Batch, consecutive: int) -> None:
        cases = ", ".join(dict.fromkeys(batch.cases))
        text = f"step {unit.step}: loss or gradient is not finite; cases {cases}; step skipped"
        self.observer.message(text)
        if consecutive >= BAD_STEPS_ALLOWED:
            raise TrainingError(
                f"{consecutive} steps in a row without a finite loss, last with cases {cases}; "
                "check these scans (zoomseg check) or lower the learning rate"
            )

    def _save(self, unit: _Unit) -> None:
        """Checkpoint first, then the model: a kill between the two loses neither."""
        progress = checkpoint.Progress(unit.index, unit.step, unit.elapsed, unit.spent, self.fingerprint)
        own = {name: unit.modules[name] for name in unit.trained}
        checkpoint.save(self.checkpoint, progress, own, unit.averaged, unit.optimiser)
        self._save_model(unit)

    def _save_model(self, unit: _Unit | None = None) -> bundle.Bundle:
        """Write the stages that have learned something so far as a model of their own."""
        weights: dict[str, Mapping[str, Tensor]] = {n: m.state_dict() for n, m in self.finished.items()}
        if unit is not None:
            weights |= {name: unit.averaged[name] for name in unit.trained}
        stages = tuple(s for s in self.recipe.stages if s.name in weights)
        groups = tuple(g for g in self.recipe.train_together if set(g) <= set(weights))
        recipe = self.recipe.model_copy(update={"stages": stages, "train_together": groups})
        model = bundle.Bundle(
            recipe,
            self.dataset.schema,
            self.dataset.channel_names,
            {name: {k: v.detach().cpu() for k, v in w.items()} for name, w in weights.items()},
            self._provenance(complete=unit is None),
        )
        bundle.save(model, self.out)
        return model

    def _provenance(self, complete: bool) -> dict[str, bundle.JSON]:
        return {
            "data_set": self.dataset.name,
            "training_cases": list(self.split.train),
            "validation_cases": list(self.split.validation),
            "seed": self.settings.seed,
            "device": self.settings.device.name,
            "precision": str(self.settings.device.precision or torch.float32).removeprefix("torch."),
            "torch": torch.__version__,
            "seconds": round(self.spent, 1),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "complete": complete,
        }


@dataclass(frozen=True, eq=False)
class _Packs:
    train: Mapping[str, Sequence[pack.Packed]]
    validation: Mapping[str, Sequence[pack.Packed]]


class _Averaged(nn.Module):
    """A module run with its averaged weights, in evaluation mode."""

    def __init__(self, module: nn.Module, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self._parts = (module, weights)  # in a tuple, so that torch does not register the module again
        self.eval()

    def forward(self, x_BCIJK: Tensor) -> tuple[Tensor, ...]:
        module, weights = self._parts
        answer: tuple[Tensor, ...] = functional_call(module, weights, (x_BCIJK,))
        return answer


def _check_shapes(stage: Stage) -> None:
    """Patch and tile must be shapes that the network can take.

    Raises:
        RecipeError: naming the stage, the field and the nearest shapes allowed.
    """
    for field, shape in (("training.patch", stage.training.patch), ("grid.tile", stage.grid.tile)):
        try:
            networks.check_input_shape(stage.network, stage.grid.padding, shape)
        except RecipeError as error:
            raise RecipeError(f"stage '{stage.name}', {field}: {error}") from error


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in state.items()}


def _with_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> nn.Module:
    """The finished stage: its averaged weights, frozen."""
    module.load_state_dict(dict(weights))
    return module.eval().requires_grad_(False)


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
                parameters, lr=spec.lr, betas=spec.betas, eps=spec.eps, weight_decay=spec.weight_decay
            )


@torch.no_grad()
def _average(unit: _Unit) -> None:
    """Exponential moving average of the weights; early steps are forgotten faster."""
    decay = min(unit.lead.training.ema_decay, (1 + unit.step) / (10 + unit.step))
    for name in unit.trained:
        for key, value in unit.modules[name].state_dict().items():
            kept = unit.averaged[name][key]
            if value.is_floating_point():
                kept.lerp_(value, 1 - decay)
            else:
                kept.copy_(value)


def _middle(patch: tuple[int, ...], answer: tuple[int, ...]) -> Box:
    """The box of a patch that a valid network answers for."""
    i, j, k = ((n - m) // 2 for n, m in zip(patch, answer, strict=True))
    return Box((i, j, k), (i + answer[0], j + answer[1], k + answer[2]))


def _answered(target_BIJK: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The part of the target that the network answers for."""
    return target_BIJK[(slice(None), *_middle(tuple(target_BIJK.shape[1:]), shape).slices)]


def _overlaps(probabilities_BCIJK: Tensor, target_BIJK: Tensor) -> tuple[list[float], list[float]]:
    """Per class: voxels where the argmax and the target agree, and both sizes summed."""
    classes = probabilities_BCIJK.shape[1]
    target = _answered(target_BIJK, tuple(probabilities_BCIJK.shape[2:])).to(probabilities_BCIJK.device)
    counts = target != IGNORE
    guess, truth = probabilities_BCIJK.argmax(dim=1)[counts], target[counts].long()
    overlap = torch.bincount(truth[guess == truth], minlength=classes)
    size = torch.bincount(truth, minlength=classes) + torch.bincount(guess, minlength=classes)
    return overlap.tolist(), size.tolist()


@contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turn SIGINT and SIGTERM into an event that the loop reads between steps."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if stop.is_set():  # who asks twice does not want to wait
            raise KeyboardInterrupt
        stop.set()

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
