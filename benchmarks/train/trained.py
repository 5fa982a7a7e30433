"""Describe a model of ``zoomseg train`` for the table: size, steps and held-out cases.

    python benchmarks/train/trained.py MODEL

prints the description as JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from zoomseg.backends.torch_networks import build_network
from zoomseg.io import bundle
from zoomseg.recipe.spec import Stage


def describe(folder: Path) -> dict[str, object]:
    """Facts about a model: learnable parameters, steps of all stages together, and its provenance."""
    model = bundle.load(folder)
    recipe, channels = model.recipe, len(model.channel_names)
    modules = [build_network(stage, recipe, model.schema, channels) for stage in recipe.stages]
    return {
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "steps": count_steps(folder / "training" / "metrics.csv"),
        "plan": "; ".join(map(_plan, recipe.stages)),
        "complete": model.provenance["complete"],
        "seconds": model.provenance["seconds"],
        "date": model.provenance["date"],
        "held_back": model.provenance["validation_cases"],
        "device": model.provenance["device"],
        "torch": model.provenance["torch"],
        "precision": model.provenance["precision"],
    }


def count_steps(log: Path) -> int:
    """The number of steps, summed over groups: the highest step in the log of each."""
    last: dict[str, int] = {}
    with log.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            last[row["group"]] = max(last.get(row["group"], 0), int(row["step"]))
    return sum(last.values())


def _plan(stage: Stage) -> str:
    patch = " x ".join(map(str, stage.training.patch))
    width = "-".join(map(str, stage.network.channels))
    return f"{stage.name}: {stage.network.kind} {width}, patch {patch}, batch {stage.training.batch}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    print(json.dumps(describe(parser.parse_args().model)))


if __name__ == "__main__":
    main()
