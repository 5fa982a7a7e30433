"""Package a trained model as the one included in ZoomSeg: weights in half precision, a card of its own.

    uv run python benchmarks/abdomen_ct/package.py TWIN --coarse COARSE --score-on DATASET -o PACKAGED
    uv run python benchmarks/abdomen_ct/package.py MODEL --coarse COARSE --twin PACKAGED -o FOLDER

MODEL was trained on all cases, its twin with the same recipe but without some. README.md in this folder lists
all commands. Both get the recipe from this folder, the coarse network of a further training of it alone
(``coarse_recipe.py``), on the same cases and some scans without these organs (``coarse_cases.py``), and the
shifts below. The first command then scores the twin on its held-out cases and calibrates its confidence; it
keeps its precision, and gets no card. The second one writes the included model (FOLDER is
``src/zoomseg/models/abdomen-ct``), with the calibration and the scores of the twin.
"""

from __future__ import annotations

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd

from zoomseg.backends.device import resolve
from zoomseg.backends.onnx_graph import write_graphs
from zoomseg.datasets.layouts import open_dataset
from zoomseg.io import bundle
from zoomseg.io.bundle import JSON
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import Recipe
from zoomseg.training.validation import FOLDER, validate

LIMIT_MB = 15
CARD = Path(__file__).with_name("card.md")
RECIPE = Path(__file__).with_name("recipe.yaml")

ALL_BUT_CURVES = shutil.ignore_patterns("cache", "init", "*.safetensors")

SHIFTS = {"esophagus": -1.5, "portal vein and splenic vein": 0.75}
"""Added to the logits of organs that are over- or underestimated on unseen scans (`organ_bias.py`)."""


def table(metrics: pd.DataFrame, model: bundle.Bundle) -> str:
    """Dice per organ on held-out cases, in Markdown."""
    lines = ["| value | organ | Dice | lowest | cases |", "|---:|---|---:|---:|---:|"]
    for name, value in zip(model.schema.names, model.schema.values, strict=True):
        dice = metrics.loc[metrics.organ == name, "dice"].dropna()
        lines.append(f"| {value} | {name} | {dice.mean():.3f} | {dice.min():.3f} | {len(dice)} |")
    mean = metrics.groupby("organ").dice.mean().mean()
    return "\n".join([*lines, f"| | mean of {len(model.schema.names)} organs | {mean:.3f} | | |"])


def packaged(trained: bundle.Bundle, coarse: bundle.Bundle) -> bundle.Bundle:
    """The model with the recipe from this folder, the first stage of ``coarse``, and shifted logits of its
    last stage."""
    same, held_out = set(_cases(trained, "training_cases")), set(_cases(trained, "validation_cases"))
    seen = set(_cases(coarse, "training_cases"))
    if not same <= seen or held_out & seen:
        raise SystemExit("the coarse network was not trained on the cases of the model, or on held-out ones")
    recipe = load(RECIPE)
    assert isinstance(recipe, Recipe)
    first, last = recipe.stages[0].name, recipe.stages[-1].name
    tensors = dict(trained.weights[last])
    bias = tensors["heads.0.bias"].copy()
    for organ, shift in SHIFTS.items():
        bias[1 + trained.schema.names.index(organ)] += shift  # class 0 is the background
    weights = {first: coarse.weights[first], last: {**tensors, "heads.0.bias": bias}}
    return replace(trained, recipe=recipe, weights=weights)


def _cases(model: bundle.Bundle, kind: str) -> list[str]:
    cases = model.provenance[kind]
    assert isinstance(cases, list)
    return [str(case) for case in cases]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--coarse", type=Path, required=True)
    use = parser.add_mutually_exclusive_group(required=True)
    use.add_argument("--score-on", type=Path)
    use.add_argument("--twin", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    model = packaged(bundle.load(options.model), bundle.load(options.coarse))
    shutil.rmtree(options.out, ignore_errors=True)
    if options.twin is not None:
        include(model, options.twin, options.out)
        return
    bundle.save(model, options.out)
    # Its report shows the curves of the training.
    shutil.copytree(options.model / "training", options.out / "training", ignore=ALL_BUT_CURVES)
    validate(open_dataset(options.score_on), options.out, _cases(model, "validation_cases"), resolve("auto"))
    write_graphs(options.out)


def include(model: bundle.Bundle, twin: Path, out: Path) -> None:
    """Write a packaged model as the included one."""
    metrics = pd.read_csv(twin / FOLDER / "metrics.csv")
    # Duration and hardware of the training are recorded, the identifiers of its scans are not.
    unsaid = {"training_cases", "validation_cases", "init"}
    told: dict[str, JSON] = {key: value for key, value in model.provenance.items() if key not in unsaid}
    cases = _cases(model, "training_cases")
    told_of_it = {**told, "training_cases": len(cases)}
    model = replace(model, provenance=told_of_it, calibration=bundle.load(twin).calibration)
    bundle.save(model, out, half=True)
    parameters = sum(t.size for tensors in model.weights.values() for t in tensors.values())
    size = sum(f.stat().st_size for f in (out / "weights").iterdir()) / 2**20
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
    write_graphs(out)
    (out / "README.md").write_text(text, encoding="utf-8")
    print(f"{out}: {size:.1f} MB of weights")


if __name__ == "__main__":
    main()
