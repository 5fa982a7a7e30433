"""The training loop: groups of stages in order, each a plain loop over steps.

Every step's randomness comes from (seed, group, step) alone, so that a resumed run repeats exactly the steps
of an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zoomseg.backends.device import Device
from zoomseg.backends.torch_networks import build_network
from zoomseg.core.arrays import to_numpy
from zoomseg.core.errors import ModelError, RecipeError, TrainingError
from zoomseg.core.interrupts import InterruptedTrainingError, stop_signals
from zoomseg.core.labels import LabelSchema
from zoomseg.datasets.layouts import Dataset
from zoomseg.inference import atlas_priors
from zoomseg.io import bundle
from zoomseg.io.files import writable_directory, write_bytes_atomic
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.networks.build import laid_out
from zoomseg.pipeline import inputs
from zoomseg.pipeline.cascade import AtlasPriorOf
from zoomseg.pipeline.inputs import input_channels
from zoomseg.planning.network_sizes import require_room
from zoomseg.planning.training_length import TrainingLength
from zoomseg.recipe import graph, network_shapes
from zoomseg.recipe.network_shapes import INSTANCE_NORM
from zoomseg.recipe.spec import ATLAS, Recipe, Stage
from zoomseg.training import atlases, checkpoint
from zoomseg.training.data import augmentation, shared_cases
from zoomseg.training.data.packed_cases import load_to_device
from zoomseg.training.data.patches import Batch, PatchSource
from zoomseg.training.data.prefetch import on_side_stream, prefetched
from zoomseg.training.data.preprocessing import PackedCases, Preprocessing, check_annotated
from zoomseg.training.distillation import Teachers
from zoomseg.training.distributed import SINGLE_PROCESS, Processes
from zoomseg.training.fine_tuning import Transfer
from zoomseg.training.log import Log, LogRow, NullObserver, RunningDice, TrainingObserver
from zoomseg.training.out_of_fold import GroupRun, group_runs, split_in_halves
from zoomseg.training.stage_group import StageGroup

LOG_EVERY_STEPS = 10
CHECKPOINT_INTERVAL_SECONDS = 60.0
VALIDATIONS = 10
"""Validations per group, evenly spread over its progress."""
VALIDATION_PATCHES = 8
MIN_SHARE = 0.02
"""Minimum share of the time budget for every group, however long its preparation took."""
BAD_STEPS_ALLOWED = 10
"""Consecutive steps without a finite loss before training stops with an error."""


@dataclass(frozen=True)
class LoopSettings:
    """Length, device and start of a training: ``init`` are the weights that networks adopt from a trained
    model before their first step. With neither ``seconds`` nor ``epochs``, the recipe's iterations apply."""

    device: Device
    seconds: float | None = None
    epochs: int | None = None
    seed: int = 0
    resume: bool = False
    init: Transfer | None = None
    registered: Path | None = None
    """Folder in which registered atlases are kept for other trainings; None: within this one, while it
    runs."""
    processes: Processes = SINGLE_PROCESS
    """The processes that share every batch. All can read ``out``; only the first one writes there, reports to
    the observer and validates."""
    teachers: Teachers | None = None
    """Models whose predictions are a second target."""
    accepted: Callable[[], None] | None = None
    """Called by the first process once it has read the checkpoint, if there is one to be resumed."""
    recorded: Mapping[str, Any] | None = None
    """The recipe as it was recorded at the start, by which a checkpoint is recognised: if that was done by an
    earlier version, the recipe that is read from it may have more keys. None: the recipe itself."""
    domain: TrainingDomain | None = None
    """Properties of the training cases, by which the model recognises scans unlike them."""


@dataclass(frozen=True)
class Split:
    train: tuple[str, ...]
    validation: tuple[str, ...]


def train(
    dataset: Dataset,
    split: Split,
    recipe: Recipe,
    out: Path,
    settings: LoopSettings,
    observer: TrainingObserver,
) -> bundle.Bundle:
    """Train every stage of ``recipe`` and write the model to ``out``.

    ``out`` is a usable model after every checkpoint, and has its ONNX graphs at the end; ``out/training``
    contains the checkpoint, ``metrics.csv`` and TensorBoard events.

    Raises:
        TrainingError: no training data, losses that stay NaN, a checkpoint of another run, a GPU without
            enough memory.
        RecipeError: the recipe does not fit the scans' sizes, the labels or the memory.
        InterruptedTrainingError: SIGINT or SIGTERM was received; ``resume`` continues from here.
    """
    run = _Run(dataset, split, recipe, out, settings, observer)
    try:
        with stop_signals() as stop:
            return run.train(stop)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the memory of {settings.device.torch_device} ran out; close other programs that use it and "
            "continue with --resume, or train again with a smaller batch or patch (zoomseg recipes default "
            "--for DATASET -o FILE)"
        ) from error


def convert(out: Path, observer: TrainingObserver) -> None:
    """Write the networks of the model in ``out`` as ONNX graphs. A model without them is complete, but slower
    on CPUs; the observer receives the reason if there are none.

    Raises:
        OutputError: they cannot be written.
    """
    try:
        from zoomseg.backends import onnx_graph  # slow, and needed only at a training's end

        onnx_graph.write_graphs(out)
    except (ModelError, ModuleNotFoundError) as error:
        observer.message(f"note: not converted to ONNX, so the model predicts with torch alone ({error})")


class _Run:
    def __init__(
        self,
        dataset: Dataset,
        split: Split,
        recipe: Recipe,
        out: Path,
        settings: LoopSettings,
        observer: TrainingObserver,
    ) -> None:
        if not split.train:
            raise TrainingError("there are no training cases; add labelled cases or use fewer folds")
        self.dataset, self.split, self.recipe = dataset, split, recipe
        self.out, self.settings, self.processes = out, settings, settings.processes
        self.observer = observer if self.processes.first else NullObserver()
        self.folder = out / "training"
        self.cache = self.folder / "cache"
        if self.processes.first:
            writable_directory(self.cache)
        self.checkpoint = self.folder / "checkpoint.safetensors"
        self.started = time.monotonic()
        self.already_spent = 0.0
        self.parts = group_runs(recipe)
        self.halves = (
            split_in_halves(split.train, settings.seed) if any(p.half is not None for p in self.parts) else ()
        )
        self.finished: dict[str, nn.Module] = {}
        self.copies: tuple[dict[str, nn.Module], dict[str, nn.Module]] = ({}, {})
        self.stop = threading.Event()
        self.labels = {s.name: graph.resolve_labels(s, dataset.schema) for s in recipe.stages}
        self.schemas = {name: LabelSchema.consecutive(labels) for name, labels in self.labels.items()}
        self.labels[ATLAS] = dataset.schema.names
        self.atlas_of: AtlasPriorOf | None = None
        for part in self.parts:
            for name in part.trained:
                check_annotated(dataset, self._training_cases(part), name, self.labels[name])
        for stage in recipe.stages:
            _check_shapes(stage, self.processes.world)
            read = input_channels(stage, recipe, dataset.schema, len(dataset.channel_names))
            require_room(stage, read, self.schemas[stage.name].classes, settings.device)
        for group in graph.training_groups(recipe):
            for name in self._shown(group.trained):
                lead = graph.stage_of(recipe, group.trained[-1])
                augmentation.check_flips(lead.training.augmentation, self.schemas[name], dataset.schema)

    def _shown(self, trained: tuple[str, ...]) -> tuple[str, ...]:
        """Stages whose labels a patch of this group contains, as targets or as priors; its augmentation must
        be valid for all of them."""
        names = set(trained)
        for name in trained:
            stage = graph.stage_of(self.recipe, name)
            names.update(spec.of for spec in inputs.prior_specs(stage.inputs))
            if self.recipe.prior_from == "live":
                names.update(graph.ancestors(self.recipe, name))
        return tuple(stage.name for stage in self.recipe.stages if stage.name in names)

    @property
    def spent(self) -> float:
        """Seconds of the whole run, including interrupted earlier parts."""
        return self.already_spent + time.monotonic() - self.started

    @property
    def fingerprint(self) -> str:
        recorded = self.settings.recorded or self.recipe.model_dump(mode="json")
        parts = [json.dumps(recorded, sort_keys=True), *self.split.train, "|", *self.split.validation]
        parts.append(str(self.settings.seed))
        if self.settings.teachers is not None:
            parts += ["teachers", *self.settings.teachers.digests]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def train(self, stop: threading.Event) -> bundle.Bundle:
        self.stop = stop
        resumed = self._resume_point()  # before minutes are spent on atlases
        if self.processes.first and self.settings.accepted is not None:
            self.settings.accepted()
        if atlas_priors.uses_atlas(self.recipe) and self.processes.first:
            self.atlas_of = self._atlas()
        all_labels = self.dataset.schema.names
        resume_at = (resumed.group, resumed.step) if resumed else None
        with ExitStack() as closed:
            log: Log | None = None
            for index, part in enumerate(self.parts):
                group = self._group(index)
                if resumed is not None and index <= resumed.group:
                    self._restore(group, resumed)
                if resumed is None or index >= resumed.group:
                    if log is None and self.processes.first:  # a checkpoint that is refused changes no file
                        log = closed.enter_context(Log(self.folder, all_labels, resume_at))
                    self._train_group(group, log)
                done = self.finished if part.half is None else self.copies[part.half]
                done.update(group.finished())
        model = self._save_model()
        if self.processes.first:
            shutil.rmtree(self.cache, ignore_errors=True)
            convert(self.out, self.observer)
        self.processes.broadcast_value(0.0)  # no process returns before the first one has written the model
        return model

    # --- groups ------------------------------------------------------------------------------------

    def _group(self, index: int) -> StageGroup:
        """Networks and new optimiser of one group. Initial weights depend on the seed and group alone; a
        stage that an earlier group has trained continues from there."""
        torch.manual_seed(self.settings.seed * 1000 + index)
        part = self.parts[index]
        trained = part.trained
        begun = set(self.finished) if part.half is None else set()
        needed = set(trained)
        if self.recipe.prior_from == "live":
            for name in trained:
                needed.update(graph.ancestors(self.recipe, name))
        stages = tuple(s for s in self.recipe.stages if s.name in needed)
        channels = len(self.dataset.channel_names)
        modules: dict[str, nn.Module] = {}
        for stage in stages:
            if stage.name in trained and stage.name not in begun:
                module = build_network(stage, self.recipe, self.dataset.schema, channels)
                if self.settings.init is not None:
                    self.settings.init.apply(stage.name, module)
                modules[stage.name] = laid_out(stage.network, module.to(self.settings.device.torch_device))
            else:
                learns = stage.name in trained
                modules[stage.name] = self.finished[stage.name].requires_grad_(learns)
        length = TrainingLength(self._steps(stages[-1]), None)
        device, teachers = self.settings.device, self.settings.teachers
        taught = {} if teachers is None else teachers.networks(trained, device)
        return StageGroup.create(
            index, stages, trained, modules, length, self.labels, device, self.processes, taught
        )

    def _steps(self, stage: Stage) -> int:
        training, epochs = stage.training, self.settings.epochs
        return training.iterations if epochs is None else epochs * training.steps_per_epoch

    def _atlas(self) -> AtlasPriorOf:
        """The atlases: the training cases. The model stores them for scans other than these. Every case's
        prior is computed at once, and kept during the training."""
        library = atlases.collect(self.dataset, self.split.train, self.recipe, self.observer, self.stop)
        library.reduced().save(writable_directory(self.out / atlas_priors.FOLDER))
        registered = self.settings.registered or self.cache / "registered"
        prior_of = atlases.of_library(library, registered, self.observer.message)
        # First, so that its time is known when groups share the rest.
        ids = (*self.split.train, *self.split.validation)
        atlases.prepare_all(prior_of, self.dataset, ids, self.recipe, self.observer, self.stop)
        return prior_of

    def _resume_point(self) -> checkpoint.TrainingProgress | None:
        progress = self._checkpointed()
        place = -1.0 if progress is None else progress.group + progress.step / 2**32
        if self.processes.any_process(self.processes.broadcast_value(place) != place):
            raise TrainingError(
                f"not all {self.processes.world} processes see the same checkpoint in {self.folder}; "
                "put the model on a file system that all machines share"
            )
        return progress

    def _checkpointed(self) -> checkpoint.TrainingProgress | None:
        if not self.settings.resume or not self.checkpoint.is_file():
            return None
        progress = checkpoint.read_progress(self.checkpoint)
        if progress.fingerprint != self.fingerprint:
            raise TrainingError(
                f"{self.out} was trained with another recipe, seed, choice of cases or teachers; "
                "resume with the same ones, or train into a new folder"
            )
        if progress.group >= len(self.parts):
            raise TrainingError(
                f"checkpoint {self.checkpoint} is of training group {progress.group}, this recipe has "
                f"{len(self.parts)}; train again without --resume"
            )
        self.already_spent = progress.spent + progress.elapsed
        return progress

    def _restore(self, group: StageGroup, progress: checkpoint.TrainingProgress) -> None:
        """Restore a group from the checkpoint; earlier groups come from their own file."""
        path = self.checkpoint if group.index == progress.group else self._group_file(group.index)
        own = {name: group.modules[name] for name in group.trained}
        checkpoint.restore(path, own, group.ema_weights, group.optimiser)
        if group.index == progress.group:
            group.step, group.elapsed, group.spent = progress.step, progress.elapsed, progress.spent

    def _group_file(self, index: int) -> Path:
        return self.folder / f"group-{index}.safetensors"

    # --- one group ---------------------------------------------------------------------------------

    def _train_group(self, group: StageGroup, log: Log | None) -> None:
        begun = group.step
        if begun:
            self._set_length(group)
        if group.progress < 1.0:  # otherwise, it was stopped in the preparation of the next one
            self._prepare_and_train(group, log)
            self._save(group)
        if begun:
            more = f"{group.step - begun} more step{'s' * (group.step - begun != 1)}"
            self.observer.message(f"stage '{group.last_stage.name}': resumed at step {begun}, trained {more}")
        if self.processes.first:
            write_bytes_atomic(self._group_file(group.index), self.checkpoint.read_bytes())

    def _prepare_and_train(self, group: StageGroup, log: Log | None) -> None:
        part, parts = self.parts[group.index], len(self.parts)
        if parts > 1:
            name = part.row_name(group.last_stage.name)
            self.observer.message(f"training {group.index + 1} of {parts}: stage '{name}'")
        packs = self._pack(group)
        group.broadcast_weights()
        validation = self._validation_batches(group, packs)
        source, device = self._source(group, packs), self.settings.device
        if group.step == 0:
            group.spent = self.processes.broadcast_value(self.spent)
            self._set_length(group)

        def batch_of(step: int) -> Batch:
            rng = np.random.default_rng([self.settings.seed, group.index, step])
            make = partial(source.draw, group.last_stage.training.batch, rng, self.processes.share)
            return on_side_stream(make, device.torch_device)

        with closing(prefetched(batch_of, group.step, device.batches_ahead)) as batches, device.tuned():
            self._loop(group, batches, validation, log)

    def _source(self, group: StageGroup, packs: PackedCases) -> PatchSource:
        """The source of training patches, on the device, with as much of the data there as fits."""
        device, cases = self.settings.device, itertools.chain(*packs.train.values())
        held = load_to_device(cases, device.torch_device, device.room_for_data)
        return PatchSource(
            self.recipe, group.stages, packs.train, self.schemas, device=device.torch_device, held=held
        )

    def _set_length(self, group: StageGroup) -> None:
        """Give a group its part of the time budget, if there is one."""
        if self.settings.seconds is not None:
            seconds = self._group_seconds(group, self.settings.seconds)
            group.length = TrainingLength(None, self.processes.broadcast_value(seconds))

    def _group_seconds(self, group: StageGroup, whole: float) -> float:
        """This group's part of what was left of the whole budget at its first step."""
        shares = [part.share for part in self.parts[group.index :]]
        part = (whole - group.spent) * shares[0] / sum(shares)
        least = MIN_SHARE * whole
        if part >= least:
            return part
        if group.step > 0:  # resumed with a shorter budget
            self.observer.message(
                f"the time budget was used up before stage '{group.last_stage.name}'; it gets {least:.0f} s, "
                f"of which it had {group.elapsed:.0f}"
            )
            return least
        if group.index == 0:
            raise TrainingError(
                f"the time budget was used up by preparing the data, which took {group.spent:.1f} s of the "
                f"{whole:.1f} s that start-up and planning had left; increase it"
            )
        # The results of earlier groups must not be lost because their predictions took long.
        self.observer.message(
            f"preparing stage '{group.last_stage.name}' took what the time budget had left; "
            f"it is still trained for {least:.0f} s"
        )
        return least

    def _loop(
        self, group: StageGroup, batches: Iterator[Batch], validation: tuple[Batch, ...], log: Log | None
    ) -> None:
        dice = {n: RunningDice(self.schemas[n].classes, 0.95) for n in group.trained}
        validated = math.floor(group.progress * VALIDATIONS)
        saved, bad = time.monotonic(), 0
        began = time.monotonic() - group.elapsed
        while group.progress < 1.0:
            batch = next(batches)
            losses = group.train_step(batch, dice, measure=group.step % LOG_EVERY_STEPS == 0)
            bad = 0 if losses is not None else bad + 1
            if losses is None:
                self._report_bad(group, batch, bad)
            group.step += 1
            group.elapsed = self.processes.broadcast_value(time.monotonic() - began)
            if losses is not None and (group.step - 1) % LOG_EVERY_STEPS == 0:
                self._log_progress(group, losses, dice, log, "train")
            if math.floor(group.progress * VALIDATIONS) > validated:
                validated = math.floor(group.progress * VALIDATIONS)
                self._validate(group, validation, log)
                group.elapsed = self.processes.broadcast_value(time.monotonic() - began)
            if self.processes.any_process(self.stop.is_set()):
                self._save(group)
                self.processes.broadcast_value(group.step)  # no process ends before the first one has saved
                raise InterruptedTrainingError(f"stopped at step {group.step}; continue with --resume")
            if time.monotonic() - saved > CHECKPOINT_INTERVAL_SECONDS:
                self._save(group)
                saved = time.monotonic()

    def _pack(self, group: StageGroup) -> PackedCases:
        part = self.parts[group.index]
        validation = self.split.validation if part.half is None else ()
        preparation = Preprocessing(
            self.dataset,
            self.recipe,
            self.labels,
            self.cache,
            self.settings.seed,
            self.settings.device,
            self.observer,
            self.atlas_of,
        )
        prepare = partial(
            preparation.packs, group, self._training_cases(part), validation, self._networks_for
        )
        return shared_cases.shared_between_processes(
            prepare, group.index, self.cache, self.processes, self.stop
        )

    def _training_cases(self, part: GroupRun) -> tuple[str, ...]:
        """The cases on which a part is trained."""
        return self.split.train if part.half is None else self.halves[part.half]

    def _networks_for(self, case: str) -> Mapping[str, nn.Module]:
        """The finished networks for predicting a case: for stages with copies, the one not trained on it."""
        for half, ids in enumerate(self.halves):
            if case in ids:
                return self.finished | self.copies[1 - half]
        return self.finished

    def _validation_batches(self, group: StageGroup, packs: PackedCases) -> tuple[Batch, ...]:
        """The same unaugmented patches every time."""
        if not self.processes.first or not packs.validation[group.last_stage.name]:
            return ()
        source = PatchSource(self.recipe, group.stages, packs.validation, self.schemas, augmented=False)
        rng = np.random.default_rng([self.settings.seed, group.index, 0])
        return tuple(source.draw(1, rng) for _ in range(VALIDATION_PATCHES))

    # --- telling and saving -----------------------------------------------------------------------

    def _validate(self, group: StageGroup, batches: tuple[Batch, ...], log: Log | None) -> None:
        """Loss and Dice of the averaged weights on the fixed patches, if there are any."""
        if not batches:
            return
        dice = {n: RunningDice(self.schemas[n].classes, 1.0) for n in group.trained}
        self._log_progress(group, group.validate(batches, dice), dice, log, "validation")

    def _log_progress(
        self,
        group: StageGroup,
        losses: Mapping[str, float],
        dice: Mapping[str, RunningDice],
        log: Log | None,
        split: str,
    ) -> None:
        if log is None:
            return
        for name in group.trained:
            row = LogRow(
                group.index,
                group.step,
                group.elapsed,
                group.progress,
                group.learning_rate,
                split,
                self.parts[group.index].row_name(name),
                losses[name],
                dice[name].by_label(self.labels[name]),
            )
            log.write(row)
            self.observer.row(row, group.length.remaining_seconds(group.step, group.elapsed))

    def _report_bad(self, group: StageGroup, batch: Batch, consecutive: int) -> None:
        cases = ", ".join(dict.fromkeys(batch.cases))
        text = f"step {group.step}: loss or gradient is not finite; cases {cases}; step skipped"
        self.observer.message(text)
        if consecutive >= BAD_STEPS_ALLOWED:
            raise TrainingError(
                f"{consecutive} steps in a row without a finite loss, last with cases {cases}; "
                "check these scans (zoomseg check) or lower the learning rate"
            )

    def _save(self, group: StageGroup) -> None:
        """Save the checkpoint first, then the model: a kill between the two loses neither."""
        if not self.processes.first:
            return
        progress = checkpoint.TrainingProgress(
            group.index, group.step, group.elapsed, group.spent, self.fingerprint
        )
        own = {name: group.modules[name] for name in group.trained}
        checkpoint.save(self.checkpoint, progress, own, group.ema_weights, group.optimiser)
        self._save_model(group)

    def _save_model(self, group: StageGroup | None = None) -> bundle.Bundle:
        """Write the stages trained so far as a model."""
        weights: dict[str, Mapping[str, Tensor]] = {n: m.state_dict() for n, m in self.finished.items()}
        if group is not None and self.parts[group.index].half is None:
            weights |= group.final_weights
        stages = tuple(s for s in self.recipe.stages if s.name in weights)
        if all(stage.fusion == "none" for stage in stages):  # those that are fused are not trained yet
            stages = (*stages[:-1], graph.in_label_map(stages[-1]))
        model = bundle.Bundle(
            graph.restricted(self.recipe, stages),
            self.dataset.schema,
            self.dataset.channel_names,
            {name: {k: to_numpy(v) for k, v in w.items()} for name, w in weights.items()},
            self._provenance(complete=group is None),
            domain=self.settings.domain,
        )
        if self.processes.first:
            bundle.save(model, self.out)
        return model

    def _provenance(self, complete: bool) -> dict[str, bundle.JSON]:
        initial, teachers = self.settings.init, self.settings.teachers
        pseudo: list[bundle.JSON] = [case.id for case in self.dataset.cases if case.pseudo]
        return {
            "data_set": self.dataset.name,
            "training_cases": list(self.split.train),
            "validation_cases": list(self.split.validation),
            **({"pseudo_labelled_cases": pseudo} if pseudo else {}),
            "seed": self.settings.seed,
            "device": self.settings.device.name,
            "processes": self.processes.world,
            "precision": self.settings.device.precision,
            "torch": torch.__version__,
            "seconds": round(self.spent, 1),
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "complete": complete,
            **({} if initial is None else {"init": initial.provenance}),
            **({} if teachers is None else {"teachers": teachers.provenance}),
        }


def _check_shapes(stage: Stage, processes: int) -> None:
    """Check that the network accepts patch and tile, and that each process gets a patch.

    Raises:
        RecipeError: names the stage, the field and the nearest valid shapes.
    """
    if stage.training.batch < processes:
        raise RecipeError(
            f"stage '{stage.name}', training: a batch of {stage.training.batch} cannot be shared by "
            f"{processes} processes; start no more than that, or give the recipe a larger batch"
        )
    network_shapes.check_tile(stage)
    network_shapes.check_patch(stage)
    lowest = zip(stage.training.patch, network_shapes.divisor(stage.network), strict=True)
    batch_norm, patches = stage.network.kind not in INSTANCE_NORM, stage.training.batch // processes
    if batch_norm and patches == 1 and all(size == factor for size, factor in lowest):
        raise RecipeError(
            f"stage '{stage.name}', training: a patch of {list(stage.training.patch)} is reduced to a single "
            "voxel, which batch norm cannot normalise with a batch of 1; give a larger patch or batch"
        )
