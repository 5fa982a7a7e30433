"""Benefit of partially annotated cases: the default recipe, trained twice on the cases of one fold.

    uv run python benchmarks/partial_annotation.py DATASET -o OUT --time-budget 20m

``partly``: trained on all training cases, each with the organs that are annotated in it. ``complete``: only
on those in which all organs are annotated. Both have the same recipe (planned from all training cases), the
same time and the same held-out cases, each scored for the organs that are annotated in it. A training that
cannot distinguish "not annotated" from "absent" is limited to ``complete``; if few cases are complete, it
also has few cases.

Writes OUT/<training>/ (model), OUT/<training>/validation/ (label maps, metrics.csv, report.html) and
OUT/table.md: per organ, the training cases in which it is annotated, the scored cases, and Dice.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from zoomseg.backends.device import Device, resolve
from zoomseg.cli.train import parse_duration
from zoomseg.cli.training_display import TrainingDisplay
from zoomseg.core.errors import DatasetError
from zoomseg.datasets.audit import annotated_cases
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.evaluation.evaluate import evaluate
from zoomseg.evaluation.result import Evaluation
from zoomseg.inference.outputs import segment_to_folder
from zoomseg.inference.predictor import Predictor
from zoomseg.io.bundle import Bundle
from zoomseg.io.files import writable_directory, write_text_atomic
from zoomseg.io.scans import ScanInput
from zoomseg.recipe.load import dump
from zoomseg.training import requested_recipe, training_run


def complete_cases(dataset: Dataset, ids: Sequence[str]) -> tuple[str, ...]:
    """Those of ``ids`` in which every label is annotated.

    Raises:
        DatasetError: there are none, or no others, so that there is nothing to compare.
    """
    every = set(dataset.schema.names)
    found = tuple(
        c.id for c in dataset.cases if c.id in ids and (c.annotated is None or c.annotated >= every)
    )
    if not 0 < len(found) < len(ids):
        raise DatasetError(
            f"data set '{dataset.name}': {len(found)} of {len(ids)} training cases are annotated completely; "
            "for a comparison some must be and some not"
        )
    return found


def score(model: Bundle, held_out: Dataset, folder: Path, device: Device) -> Evaluation:
    """Predict and score the held-out cases."""
    scans = [ScanInput(case.id, case.images) for case in held_out.cases]
    segment_to_folder(scans, folder / "predictions", Predictor(model, device, any_scan=True))
    return evaluate(folder / "predictions", held_out, folder)


def steps(folder: Path) -> str:
    """The number of training steps of each stage, from the log."""
    last: dict[str, str] = {}
    with (folder / "training" / "metrics.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            last[row["stage"]] = row["step"]
    return ", ".join(f"{stage} {step}" for stage, step in last.items())


def table(taught: dict[str, Dataset], scores: dict[str, Evaluation], trained: dict[str, str]) -> str:
    """A Markdown table with one row per organ and two columns per training, and a description of each
    training."""
    drawn = {name: annotated_cases(dataset) for name, dataset in taught.items()}
    header = "".join(f" drawn in ({n}) | Dice ({n}) |" for n in taught)
    lines = [f"| organ | cases scored |{header}", "|---|---:|" + "---:|" * 2 * len(taught)]
    rows = {name: {row.organ: row for row in found.summary} for name, found in scores.items()}
    for organ, row in rows[next(iter(rows))].items():
        values = "".join(f" {drawn[n][organ]} | {rows[n][organ].dice:.3f} |" for n in taught)
        lines.append(f"| {organ} | {row.cases} |{values}")
    means = "".join(f" | {found.mean['dice']:.3f} |" for found in scores.values())
    lines += [f"| mean over organs | |{means}", ""]
    lines += [f"- {n}: {len(data.cases)} training cases; steps: {trained[n]}" for n, data in taught.items()]
    return "\n".join(lines) + "\n"


@click.command()
@click.argument("source", metavar="DATASET", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option(
    "--time-budget", "seconds", callback=parse_duration, required=True, help="Duration of each training."
)
@click.option("--folds", default=5, show_default=True)
@click.option("--fold", default=0, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True)
def main(source: Path, out: Path, seconds: float, folds: int, fold: int, seed: int, device: str) -> None:
    dataset, where = open_dataset(source), resolve(device)
    split = requested_recipe.choose_split(
        dataset, requested_recipe.TrainingRequest(folds=folds, fold=fold, seed=seed)
    )
    taught = {
        "partly": dataset.subset(split.train),
        "complete": dataset.subset(complete_cases(dataset, split.train)),
    }
    recipe = writable_directory(out) / "recipe.yaml"
    scores: dict[str, Evaluation] = {}
    for name, cases in taught.items():
        request = requested_recipe.TrainingRequest(
            str(recipe) if recipe.is_file() else None, seconds, seed=seed
        )
        with TrainingDisplay(Console(stderr=True)) as display:
            model = training_run.start(cases, out / name, request, where, display)
        write_text_atomic(recipe, dump(model.recipe))
        scores[name] = score(model, dataset.subset(split.validation), out / name / "validation", where)
    text = table(taught, scores, {name: steps(out / name) for name in taught})
    write_text_atomic(out / "table.md", text)
    click.echo(text)


if __name__ == "__main__":
    main()
