"""Train within a time budget: python train_model.py [DATASET] [MODEL] [SECONDS] [RECIPE]

If DATASET does not exist, phantoms are generated there. RECIPE is a name or a YAML file; ``default`` is
planned from the data.
"""

import sys
from pathlib import Path

import pandas as pd

import zoomseg
from zoomseg.datasets.phantom import write_phantom_dataset

DEFAULTS = ("phantoms", "phantom-model", "120", "default")


def main(dataset: str, model: str, seconds: str, recipe: str) -> None:
    if not Path(dataset).exists():
        write_phantom_dataset(Path(dataset), cases=8, size="small")
    # A quarter of the cases is held out: at the end, the model is scored on them, in its folder "validation".
    trained = zoomseg.train(dataset, model, recipe, seconds=float(seconds), folds=4, fold=0)
    print(f"{model} finds {', '.join(trained.schema.names)}")
    log = pd.read_csv(Path(model) / "training" / "metrics.csv")
    print(log.tail(3).to_string(index=False))
    scores = pd.read_csv(Path(model) / "validation" / "metrics.csv")
    print(f"held-out cases: mean Dice {scores.groupby('organ')['dice'].mean().mean():.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])
