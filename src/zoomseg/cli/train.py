"""``zoomseg train``: from labelled scans to a model."""

from __future__ import annotations

import math
import re
import shlex
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from zoomseg.cli.options import given_by_user

if TYPE_CHECKING:
    from zoomseg.datasets.layouts import Dataset
    from zoomseg.evaluation.result import Evaluation
    from zoomseg.io.bundle import Bundle
    from zoomseg.training.loop import Split
    from zoomseg.training.requested_recipe import TrainingRequest
    from zoomseg.training.validation import Validation

_DURATION = re.compile(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?")


def parse_duration(ctx: click.Context, param: click.Parameter, value: str | None) -> float | None:
    """``90s``, ``15m``, ``1h30m`` -> seconds."""
    if value is None:
        return None
    match = _DURATION.fullmatch(value.strip().lower())
    hours, minutes, seconds = (float(part or 0) for part in (match.groups() if match else ("", "", "")))
    total = 3600 * hours + 60 * minutes + seconds
    if not 0 < total < math.inf:
        raise click.BadParameter(f"got '{value}', expected a time such as 90s, 15m or 1h30m", ctx, param)
    return total


def require_one_length(time_budget: float | None, epochs: int | None) -> None:
    """Refuse two lengths of a training."""
    if time_budget is not None and epochs is not None:
        raise click.UsageError("give --time-budget or --epochs, not both")


def parse_fold(ctx: click.Context, param: click.Parameter, value: str) -> int | None:
    """The number of a fold; None for ``all``."""
    if value == "all":
        return None
    if not (value.isascii() and value.isdigit()):
        raise click.BadParameter(f"got '{value}', expected a fold's number, from 0, or 'all'", ctx, param)
    return int(value)


@click.command(name="train")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option("-r", "--recipe", help="Name or path of a recipe [default: that of --init, or 'default'].")
@click.option(
    "--time-budget",
    metavar="TIME",
    callback=parse_duration,
    help="Training time, e.g. 15m or 1h30m; the schedule is adapted to it [default: the recipe's number of "
    "iterations, 20,000 for 'default'].",
)
@click.option(
    "--epochs",
    type=click.IntRange(min=1),
    help="Length in epochs (of the recipe's steps_per_epoch, or 100 steps).",
)
@click.option("--folds", type=click.IntRange(min=2), help="Number of folds for a cross-validation.")
@click.option(
    "--split",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="JSON with lists train, validation and test, or nnU-Net's splits_final.json, instead of --folds; "
    "other cases are not used.",
)
@click.option(
    "--fold",
    metavar="FOLD",
    default="0",
    show_default=True,
    callback=parse_fold,
    help="Fold to hold out for validation; 'all' trains every fold, each with --time-budget or --epochs, to "
    "OUT/fold-0, OUT/fold-1, ...",
)
@click.option(
    "--init",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="Model to fine-tune, possibly to other labels, with a tenth of the learning rate.",
)
@click.option(
    "--teacher",
    "teachers",
    metavar="MODEL",
    multiple=True,
    help="Model whose predictions are learned as well (distillation). May be repeated; the folder of a "
    "cross-validation denotes all its folds. With --unlabelled, these models label its scans instead.",
)
@click.option(
    "--unlabelled",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Unlabelled scans from which the model learns as well: they are labelled by --teacher or by a "
    "cross-validation that is trained first, each fold with --time-budget or --epochs; uncertain organs are "
    "left out.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Resume the interrupted training in this folder; only its length and device may be changed. Under "
    "`torchrun`, which restarts a command when a process dies, a training starts if there is none yet.",
)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Seed; on the CPU and with --epochs, equal seeds give equal models. The folds do not depend on it.",
)
@click.pass_context
def command(
    context: click.Context,
    dataset: Path,
    out: Path,
    recipe: str | None,
    time_budget: float | None,
    epochs: int | None,
    folds: int | None,
    split: Path | None,
    fold: int | None,
    init: Path | None,
    teachers: tuple[str, ...],
    unlabelled: Path | None,
    resume: bool,
    device: str,
    seed: int,
) -> int:
    """Train a recipe on DATASET (nnU-Net raw, MSD, or images/ and labels/ folders) and write a model.

    The folder is a usable model after every checkpoint (about once a minute). With --folds or --split, the
    held-out cases are segmented and evaluated at the end, in OUT/validation; with --fold all, those of all
    folds. Under `torchrun`, processes share every batch.
    """
    began = time.monotonic()  # before the imports, which take seconds that count for users
    from rich.console import Console

    from zoomseg.backends import device as devices
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.core.interrupts import interruptible
    from zoomseg.datasets.layouts import open_dataset
    from zoomseg.datasets.split_file import read_splits
    from zoomseg.io.bundle import models_in
    from zoomseg.training import cross_validation, requested_recipe, self_training, training_run
    from zoomseg.training.distributed import by_torchrun, process_group
    from zoomseg.training.log import NullObserver

    require_one_length(time_budget, epochs)
    if fold != 0 and folds is None and split is None and not resume:
        wanted = "all" if fold is None else fold
        raise click.UsageError(
            f"--fold {wanted} needs the number of folds, for example --folds 5, or a --split"
        )
    if fold is None and unlabelled is not None:
        raise click.UsageError("--unlabelled cannot be combined with --fold all; give one --fold, or none")
    data = open_dataset(dataset)
    splits = () if split is None else requested_recipe.trained_on(read_splits(split, data))
    known = tuple(str(model) for teacher in teachers for model in models_in(teacher))
    request = requested_recipe.TrainingRequest(
        recipe, time_budget, epochs, folds, fold or 0, seed, init, teachers=known
    )
    if splits:
        request = requested_recipe.with_split(request, splits)
    given = given_by_user(context) - ({"fold"} if fold is None else set())
    settings = training_run.settings_given(request, given) if resume else None
    if fold is None or (resume and cross_validation.is_begun(out)):
        return _train_all(data, out, request, splits, device, settings)
    if unlabelled is not None or (resume and self_training.is_begun(out)):
        if settings is not None and unlabelled is not None:
            settings |= {"unlabelled": str(unlabelled.resolve())}
        return _train_with_unlabelled(data, out, unlabelled, request, device, settings)
    with process_group() as processes:
        where = devices.resolve(processes.device(device))
        shown = TrainingDisplay(Console(stderr=True)) if processes.first else nullcontext(NullObserver())
        with shown as display, interruptible(lambda: "training had not started; nothing is lost"):
            if settings is not None and processes.broadcast_value(
                training_run.is_begun(out) or not by_torchrun()
            ):
                model = training_run.resume(
                    data, out, where, display, time_budget, epochs, processes, settings
                )
            else:
                model = training_run.start(
                    data, out, replace(request, began=began), where, display, processes
                )
    if not processes.first:
        return 0
    _say_next(out)
    return _validate(data, out, model, device)


def _say_next(out: Path) -> None:
    """The path of the model, and the next commands."""
    click.echo(f"Model: {out}")
    click.echo(f"Next: zoomseg predict SCANS -o RESULTS -m {shlex.quote(str(out))}")


def _require_one_process(option: str, todo: str) -> None:
    from zoomseg.core.errors import TrainingError
    from zoomseg.training.distributed import process_group

    with process_group() as processes:
        if processes.world > 1:
            raise TrainingError(
                f"{option} needs a single process, but {processes.world} were started; {todo}"
            )


def _train_with_unlabelled(
    data: Dataset,
    out: Path,
    unlabelled: Path | None,
    request: TrainingRequest,
    device: str,
    settings: Mapping[str, Any] | None,
) -> int:
    """Teachers, unless they are given; their labels; the model. With ``settings``, the existing training,
    which must have had them, is resumed; finished parts are not repeated."""
    from rich.console import Console

    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.core.interrupts import interruptible
    from zoomseg.training import self_training

    _require_one_process("--unlabelled", "start one")
    if settings is not None:
        run = self_training.reopen(data, out, request.seconds, request.epochs, settings)
    else:
        assert unlabelled is not None
        run = self_training.begin(data, out, unlabelled, request)
    where, console, reporter = resolve(device), Console(stderr=True), _FoldReporter()
    with interruptible(lambda: "--resume continues from here"):
        scores = run.teach(where, lambda: TrainingDisplay(console), reporter.fold)
        if scores is not None:
            _print_all_folds(scores, run.folds, run.folder)
        with TrainingDisplay(console) as display:
            run.label(where, display)
            model = run.model(where, display)
    _say_next(out)
    return max(reporter.worst, _validate(data, out, model, device))


def _train_all(
    data: Dataset,
    out: Path,
    request: TrainingRequest,
    splits: tuple[Split, ...],
    device: str,
    settings: Mapping[str, Any] | None,
) -> int:
    """All folds, one after the other. With ``settings``, the existing cross-validation, which must have had
    them, is resumed; finished folds are not repeated."""
    from rich.console import Console

    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.core.interrupts import interruptible
    from zoomseg.training import cross_validation

    _require_one_process("--fold all", "start one command per fold: --fold 0, --fold 1, ...")
    where, console, reporter = resolve(device), Console(stderr=True), _FoldReporter()
    if settings is not None and splits:
        settings = {**settings, "split": tuple((split.train, split.validation) for split in splits)}
    with TrainingDisplay(console) as display:
        if settings is not None:
            trained = cross_validation.reopen(data, out, request.seconds, request.epochs, settings)
        else:
            count = request.folds or len(splits)
            trained = cross_validation.begin(data, out, count, request, where, display, splits)
    with interruptible(lambda: "--resume continues from here"):
        scores = trained.run(where, lambda: TrainingDisplay(console), reporter.fold)
    _print_all_folds(scores, trained.count, out)
    return reporter.worst


class _FoldReporter:
    """Reports the validation of the models of a cross-validation; ``worst`` is 1 if any case could not be
    segmented."""

    def __init__(self) -> None:
        self.worst = 0

    def fold(self, folder: Path, found: Validation) -> None:
        click.echo(f"Model: {folder}")
        self.worst = max(self.worst, print_validation(folder, found))


def _print_all_folds(scores: Evaluation, count: int, out: Path) -> None:
    click.echo(
        f"All {count} folds: mean Dice {scores.mean['dice']:.3f} of {len(scores.cases)} cases; "
        f"{out / 'validation' / 'report.html'}"
    )
    click.echo(f"Next: zoomseg predict SCANS -o RESULTS -m {shlex.quote(str(out))} (all folds together)")


def _validate(data: Dataset, out: Path, model: Bundle, device: str) -> int:
    """Validate a model on its held-out cases, if there are any, and report its accuracy; returns 1 if some
    could not be segmented."""
    from zoomseg.backends.device import resolve
    from zoomseg.core.interrupts import interruptible
    from zoomseg.training import validation

    with interruptible(
        lambda: f"the model in {out} is complete, but not its validation; --resume validates it"
    ):
        found = validation.validate_held_out(data, out, model, resolve(device))
    return 0 if found is None else print_validation(out, found)


def print_validation(out: Path, found: Validation) -> int:
    """Report the accuracy of a model; returns 1 if some cases could not be segmented."""
    for case in found.failed:
        click.echo(f"failed: {case.case}: {case.reason}", err=True)
    report = out / "validation" / "report.html"
    click.echo(f"Validation: mean Dice {found.scores.mean['dice']:.3f}; {report}")
    return 1 if found.failed else 0
