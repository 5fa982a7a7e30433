"""Accuracy of a cascade after each of its stages, on the cases held out in training.

    uv run python benchmarks/coarse_and_fine.py DATASET MODEL -o OUT

Writes OUT/<stage>/ (label maps, metrics.csv, report.html) for the cascade truncated after each stage,
OUT/attributed/ (the whole cascade, with the stage at which Dice is lost), and OUT/table.md: Dice per organ
and stage, the share of each organ's voxels in the region of the stage that predicts it, and seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from zoomseg.backends.device import resolve
from zoomseg.datasets.layouts import open_dataset
from zoomseg.evaluation.evaluate import evaluate
from zoomseg.inference.batch import ExtraOutputs
from zoomseg.inference.outputs import segment_to_folder
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.scans import ScanInput


def cut_after(model: bundle.Bundle, stages: int) -> bundle.Bundle:
    """The same cascade with only its first ``stages`` stages."""
    kept = model.recipe.stages[:stages]
    names = {s.name for s in kept}
    groups = tuple(g for g in model.recipe.train_together if set(g) <= names)
    recipe = model.recipe.model_copy(update={"stages": kept, "train_together": groups})
    weights = {n: w for n, w in model.weights.items() if n in names}
    return bundle.Bundle(recipe, model.schema, model.channel_names, weights, model.provenance)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, device = bundle.load(options.model), resolve("auto")
    held_out = [str(i) for i in model.provenance["validation_cases"]]  # type: ignore[union-attr]
    dataset = open_dataset(options.dataset).subset(held_out)
    scans = [ScanInput(case.id, case.images) for case in dataset.cases]
    dice: dict[str, dict[str, float]] = {}
    seconds: dict[str, float] = {}
    for count, stage in enumerate(model.recipe.stages, start=1):
        folder = options.out / stage.name
        segment_to_folder(
            scans, folder / "predictions", Predictor(cut_after(model, count), device, any_scan=True)
        )
        scores = evaluate(folder / "predictions", dataset, folder)
        dice[stage.name] = {row.organ: row.dice for row in scores.summary} | {"mean": scores.mean["dice"]}
        run = json.loads((folder / "predictions" / "run.json").read_text())
        seconds[stage.name] = float(np.median([c["seconds"]["total"] for c in run["cases"].values()]))
    folder = options.out / "attributed"  # a separate run: storing the stages' predictions takes time
    segment_to_folder(
        scans,
        folder / "predictions",
        Predictor(model, device, any_scan=True),
        extra=ExtraOutputs(stages=True),
    )
    found = evaluate(folder / "predictions", dataset, folder)
    recall = {row.organ: row.region_recall for row in found.summary}
    stages = list(dice)
    lines = [
        f"| organ | {' | '.join(f'Dice after {s}' for s in stages)} | voxels in the last region |",
        "|---|" + "---:|" * (len(stages) + 1),
    ]
    for organ in dice[stages[-1]]:
        share = f"{100 * recall[organ]:.2f} %" if organ in recall else ""
        lines.append(f"| {organ} | {' | '.join(f'{dice[s][organ]:.3f}' for s in stages)} | {share} |")
    lines.append(f"| seconds a scan (median) | {' | '.join(f'{seconds[s]:.1f}' for s in stages)} | |")
    text = "\n".join(lines) + "\n"
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
