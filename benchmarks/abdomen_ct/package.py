"""Package a trained model as the one included in ZoomSeg: weights in half precision, a card of its own.

    uv run python benchmarks/abdomen_ct/package.py MODEL VALIDATION -o src/zoomseg/models/abdomen-ct

MODEL was trained on all cases. VALIDATION contains the scores (`metrics.csv`, written by `zoomseg train
--folds` or `zoomseg evaluate`) of its twin, a model with the same recipe that was trained without the cases
that it is scored on. README.md in this folder lists the commands for both. The packaged model gets the recipe
from this folder, and the calibration of its confidence from the twin, in whose folder VALIDATION lies.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.io import bundle
from zoomseg.io.bundle import JSON
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import Recipe

LIMIT_MB = 15
CARD = Path(__file__).with_name("card.md")
RECIPE = Path(__file__).with_name("recipe.yaml")


def table(metrics: pd.DataFrame, model: bundle.Bundle) -> str:
    """Dice per organ on held-out cases, in Markdown."""
    lines = ["| value | organ | Dice | lowest | cases |", "|---:|---|---:|---:|---:|"]
    for name, value in zip(model.schema.names, model.schema.values, strict=True):
        dice = metrics.loc[metrics.organ == name, "dice"].dropna()
        lines.append(f"| {value} | {name} | {dice.mean():.3f} | {dice.min():.3f} | {len(dice)} |")
    mean = metrics.groupby("organ").dice.mean().mean()
    return "\n".join([*lines, f"| | mean of {len(model.schema.names)} organs | {mean:.3f} | | |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("validation", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    trained = bundle.load(options.model)
    metrics = pd.read_csv(options.validation / "metrics.csv")
    # Duration and hardware of the training are recorded, the identifiers of its scans are not.
    unsaid = {"training_cases", "validation_cases", "init"}
    told: dict[str, JSON] = {key: value for key, value in trained.provenance.items() if key not in unsaid}
    cases = trained.provenance["training_cases"]
    assert isinstance(cases, list)
    recipe = load(RECIPE)
    assert isinstance(recipe, Recipe)
    twin = bundle.load(options.validation.parent)
    told_of_it = {**told, "training_cases": len(cases)}
    model = replace(trained, recipe=recipe, provenance=told_of_it, calibration=twin.calibration)
    shutil.rmtree(options.out, ignore_errors=True)
    bundle.save(model, options.out, half=True)
    parameters = sum(t.numel() for tensors in model.weights.values() for t in tensors.values())
    size = sum(f.stat().st_size for f in (options.out / "weights").iterdir()) / 1e6
    if size > LIMIT_MB:
        raise SystemExit(f"the weights take {size:.1f} MB; at most {LIMIT_MB} are allowed in the package")
    text = CARD.read_text(encoding="utf-8").format(
        table=table(metrics, model),
        parameters=f"{parameters:,}",
        megabytes=f"{size:.1f}",
        cases=len(cases),
        kept_back=metrics["case"].nunique(),
        date=model.provenance["date"],
    )
    write_graphs(options.out)
    (options.out / "README.md").write_text(text, encoding="utf-8")
    print(f"{options.out}: {size:.1f} MB of weights")


if __name__ == "__main__":
    main()
