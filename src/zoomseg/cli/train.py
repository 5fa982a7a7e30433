"""``zoomseg train``: from labelled scans to a model."""

from __future__ import annotations

import math
import re
from contextlib import nullcontext
from pathlib import Path

import click

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


@click.command(name="train")
@click.argument("dataset", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option("-r", "--recipe", help="Name or path of a recipe; left out: that of --init, or 'default'.")
@click.option(
    "--time-budget",
    metavar="TIME",
    callback=parse_duration,
    help="How long it may take, e.g. 15m or 1h30m; the schedule fits itself to it.",
)
@click.option("--epochs", type=click.IntRange(min=1), help="Length in epochs of 100 steps.")
@click.option("--folds", type=click.IntRange(min=2), help="Split the cases into so many folds ...")
@click.option(
    "--fold", type=click.IntRange(min=0), default=0, show_default=True, help="... and validate on this one."
)
@click.option(
    "--init",
    metavar="MODEL",
    type=click.Path(path_type=Path),
    help="Fine-tune a model, also to other labels: a tenth of the learning rate.",
)
@click.option("--resume", is_flag=True, help="Go on where an interrupted training of this folder stopped.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="On the CPU and with --epochs, the same seed gives the same model.",
)
def command(
    dataset: Path,
    out: Path,
    recipe: str | None,
    time_budget: float | None,
    epochs: int | None,
    folds: int | None,
    fold: int,
    init: Path | None,
    resume: bool,
    device: str,
    seed: int,
) -> int:
    """Train a recipe on DATASET (nnU-Net raw, MSD, or images/ and labels/ folders) and write a model.

    The folder is a usable model after every checkpoint (about once a minute). With --folds, the fold
    kept back is predicted and scored at the end, into OUT/validation. Started by `torchrun`, its processes
    share every batch.
    """
    from rich.console import Console

    from zoomseg.cli.live import TrainingDisplay
    from zoomseg.engine import device as devices
    from zoomseg.engine import job
    from zoomseg.engine.log import Silent
    from zoomseg.engine.processes import joined
    from zoomseg.io.dataset import open_dataset

    if time_budget is not None and epochs is not None:
        raise click.UsageError("give --time-budget or --epochs, not both")
    if fold and folds is None:
        raise click.UsageError("--fold says which of --folds is kept back; give both")
    data = open_dataset(dataset)
    with joined() as processes:
        where = devices.resolve(processes.device(device))
        with TrainingDisplay(Console(stderr=True)) if processes.first else nullcontext(Silent()) as display:
            if resume:
                model = job.resume(data, out, where, display, time_budget, epochs, processes)
            else:
                wish = job.Job(recipe, time_budget, epochs, folds, fold, seed, init)
                model = job.start(data, out, wish, where, display, processes)
    if not processes.first:
        return 0
    click.echo(f"Model: {out}")
    held_back = model.provenance["validation_cases"]
    if isinstance(held_back, list) and held_back:
        return _validate(dataset, out, tuple(str(i) for i in held_back), device)
    return 0


def _validate(dataset: Path, out: Path, held_back: tuple[str, ...], device: str) -> int:
    """Predict and score the cases that were kept back; 1 if some could not be."""
    from zoomseg.engine.device import resolve
    from zoomseg.engine.predict import Predictor
    from zoomseg.io import bundle
    from zoomseg.io.dataset import open_dataset
    from zoomseg.io.scans import ScanInput
    from zoomseg.report.evaluate import evaluate
    from zoomseg.report.run import segment_to_folder

    kept_back = open_dataset(dataset).subset(held_back)
    folder = out / "validation"
    scans = [ScanInput(case.id, case.images) for case in kept_back.cases]
    predictor = Predictor(bundle.load(out), resolve(device))
    failed = segment_to_folder(scans, folder / "predictions", predictor, keep_stages=True)
    for case in failed:
        click.echo(f"failed: {case.case}: {case.reason}", err=True)
    log = out / "training" / "metrics.csv"
    scores = evaluate(folder / "predictions", kept_back, folder, training_log=log)
    click.echo(f"Validation: mean Dice {scores.mean['dice']:.3f}; {folder / 'report.html'}")
    return 1 if failed else 0
