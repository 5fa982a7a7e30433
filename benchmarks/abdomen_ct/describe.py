"""Add the description of the training scans (training domain) to a model that lacks it.

    uv run python benchmarks/abdomen_ct/describe.py BTCV src/zoomseg/models/abdomen-ct

BTCV contains exactly the cases that the model was trained on. `zoomseg train` writes this description into
every model; `abdomen-ct` was trained with an earlier version.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from zoomseg.datasets.layouts import open_dataset
from zoomseg.io import bundle
from zoomseg.io.files import write_bytes_atomic
from zoomseg.planning import training_domain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("model", type=Path)
    options = parser.parse_args()
    dataset, model = open_dataset(options.dataset), bundle.load(options.model)
    seen = training_domain.samples(dataset, dataset.ids)
    known = training_domain.describe(seen, model.recipe.intensity, model.channel_names, model.schema.names)
    # Only the manifest is rewritten: the weights are unchanged, and the card is written by hand.
    manifest = json.loads((options.model / "model.json").read_text(encoding="utf-8"))
    manifest["training_domain"] = asdict(known)
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    write_bytes_atomic(options.model / "model.json", text.encode())
    print(f"{options.model}: {len(seen)} cases described")


if __name__ == "__main__":
    main()
