"""The recipe for the further training of the coarse network alone: the first stage of recipe.yaml, which more
often sees parts of the body without organs.

    uv run python benchmarks/abdomen_ct/coarse_recipe.py recipe-coarse.yaml
    zoomseg train BTCV -o coarse -r recipe-coarse.yaml --init MODEL --epochs 30

Trained together with the fine one, the coarse network only sees parts of scans in which an organ is in view,
as patches of the fine one are drawn at organs or near them: in the pelvis alone, it then finds organs. Also,
its steps cost a tenth of joint ones, so that it can take more of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

RECIPE = Path(__file__).with_name("recipe.yaml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    recipe = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    coarse = recipe["stages"][0]
    recipe |= {"name": "abdomen-ct-coarse", "stages": [coarse], "train_together": []}
    training = coarse["training"]
    training["optimiser"]["lr"] = 0.05  # --init divides it by 10
    training["sampler"]["background_share"] = 0.5
    training["augmentation"]["shorter_scan"] = 0.6
    out.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")


if __name__ == "__main__":
    main()
