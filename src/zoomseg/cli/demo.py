"""``zoomseg demo``: the whole workflow on synthetic patients, in a few minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console

    from zoomseg.evaluation.result import Evaluation

HELD_OUT_SEED = 1000
"""Training phantoms are numbered from 0, test phantoms from here."""

SMALL_RECIPE: Mapping[str, object] = {
    "coarse_voxels": 12_000,
    "fine_patch_voxels": 16_000,
    "base_channels": (12, 12),
    "max_channels": 96,
    "learning_rate": 0.005,
}
"""Values of the default recipe that are replaced here: steps of a fifth of a second."""


@dataclass(frozen=True)
class Demo:
    """The size of the demo. The defaults take about four minutes on two cores."""

    training_cases: int = 12
    held_out_cases: int = 3
    size: Literal["demo", "small"] = "demo"
    seconds: float | None = 200.0
    """Training time; None: the recipe's number of steps."""
    recipe: Mapping[str, object] = field(default_factory=lambda: SMALL_RECIPE)
    """Values of the default recipe that are replaced."""


@click.command(name="demo")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    default=Path("zoomseg-demo"),
    show_default=True,
    help="Output folder; an interrupted demo in it is resumed.",
)
def command(out: Path) -> int:
    """Generate phantom torso CTs, train the default recipe on them, segment unseen ones, and evaluate.

    Takes at most 5 minutes on 2 cores. The phantoms are synthetic: the model cannot be used on patients.
    """
    from rich.console import Console

    from zoomseg.cli.evaluate import score_table
    from zoomseg.core.extras import require
    from zoomseg.core.interrupts import GO_ON, interruptible

    require("torch", "zoomseg demo")
    with interruptible(lambda: GO_ON):
        scores = run(out, Demo(), Console(stderr=True))
    Console().print(score_table(scores))
    click.echo(f"Report: {out / 'report.html'}")
    return 0


def run(out: Path, demo: Demo, notes: Console) -> Evaluation:
    """Run a demo in ``out``; phantoms and training steps of an interrupted one are kept.

    Each step is shown as the equivalent command.

    Raises:
        OutputError: ``out`` cannot be written.
        TrainingError: ``out`` contains the training of another demo.
        InterruptedTrainingError: the user stopped it.
    """
    from zoomseg.evaluation.evaluate import evaluate

    training, held_out, model, results = (
        out / name for name in ("training", "held-out", "model", "predictions")
    )
    _say(notes, 1, f"phantom CTs: {demo.training_cases} to train on, {demo.held_out_cases} to test on")
    _make(training, demo.training_cases, 0, demo.size, notes)
    _make(held_out, demo.held_out_cases, HELD_OUT_SEED, demo.size, notes)
    recipe = _write_recipe(out / "recipe.yaml", demo)
    length = "" if demo.seconds is None else f" --time-budget {demo.seconds:.0f}s"
    _say(notes, 2, f"zoomseg train {training} -o {model} -r {recipe}{length}")
    _train(training, model, recipe, demo.seconds, notes)
    _say(notes, 3, f"zoomseg predict {held_out / 'imagesTr'} -o {results} -m {model}")
    _predict(held_out / "imagesTr", results, model, notes)
    _say(notes, 4, f"zoomseg evaluate {results} {held_out} -o {out}")
    return evaluate(results, held_out, out, training_log=model / "training" / "metrics.csv")


def _say(notes: Console, step: int, text: str) -> None:
    notes.print(f"{step}/4  {text}", style="bold", markup=False, highlight=False, soft_wrap=True)


def _make(folder: Path, cases: int, seed: int, size: Literal["demo", "small"], notes: Console) -> None:
    from zoomseg.datasets.phantom import write_phantom_dataset

    if (folder / "dataset.json").is_file():  # the last file to be written
        return
    with _bar(notes, "Generating phantoms", cases) as done:
        write_phantom_dataset(folder, cases, seed, size, lambda number, total: done(number))


def _write_recipe(path: Path, demo: Demo) -> Path:
    from zoomseg.io.files import write_text_atomic
    from zoomseg.recipe.load import dump, from_dict, load

    recipe = from_dict({**load("default").model_dump(mode="json"), **demo.recipe})
    write_text_atomic(path, dump(recipe))
    return path


def _train(dataset: Path, model: Path, recipe: Path, seconds: float | None, notes: Console) -> None:
    from zoomseg.backends.device import resolve
    from zoomseg.cli.training_display import TrainingDisplay
    from zoomseg.core.interrupts import GO_ON, InterruptedTrainingError
    from zoomseg.datasets.layouts import open_dataset
    from zoomseg.training import requested_recipe, training_run

    data, device = open_dataset(dataset), resolve("auto")
    try:
        with TrainingDisplay(notes) as display:
            if training_run.is_begun(model):
                training_run.resume(data, model, device, display)
            else:
                training_run.start(
                    data, model, requested_recipe.TrainingRequest(str(recipe), seconds), device, display
                )
    except InterruptedTrainingError as error:
        raise InterruptedTrainingError(f"stopped; {GO_ON}") from error


def _predict(scans: Path, out: Path, model: Path, notes: Console) -> None:
    from zoomseg.core.errors import ScanError
    from zoomseg.inference.batch import Failed, Segmented
    from zoomseg.inference.load import load_predictor
    from zoomseg.inference.outputs import segment_to_folder
    from zoomseg.io.scans import find_scans

    found = find_scans(scans)
    finished: list[Segmented | Failed] = []
    with _bar(notes, "Segmenting", len(found)) as done:

        def count(outcome: Segmented | Failed) -> None:
            finished.append(outcome)
            done(len(finished))

        predictor = load_predictor([model])
        failed = segment_to_folder(found, out, predictor, on_result=count)
    if failed:
        raise ScanError(f"{failed[0].case} could not be segmented: {failed[0].reason}")


@contextmanager
def _bar(notes: Console, text: str, total: int) -> Iterator[Callable[[int], None]]:
    from rich.progress import MofNCompleteColumn, Progress

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn())
    with Progress(*columns, console=notes, transient=True, disable=not notes.is_terminal) as progress:
        task = progress.add_task(text, total=total)
        yield lambda done: progress.update(task, completed=done)
