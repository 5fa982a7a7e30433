"""Cost of the network of a ZoomSeg model's last stage, to which the peers' networks are matched.

    python benchmarks/predict/fine_network.py MODEL

prints as JSON its FLOPs per predicted voxel, its kind and channels, and its classes.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from zoomseg.backends.torch_networks import build_network
from zoomseg.io import bundle
from zoomseg.networks import build as networks
from zoomseg.pipeline.inputs import input_channels
from zoomseg.recipe import network_shapes


def describe(model: bundle.Bundle) -> dict[str, object]:
    """Multiplications and additions count as one FLOP each."""
    stage, scans = model.recipe.stages[-1], len(model.channel_names)
    module = build_network(stage, model.recipe, model.schema, scans).eval()
    shape = (input_channels(stage, model.recipe, model.schema, scans), *stage.grid.tile)
    answered = network_shapes.check_input_shape(stage.network, stage.grid.padding, stage.grid.tile)
    return {
        "flops_per_voxel": 2 * networks.multiply_adds(module, shape) / math.prod(answered),
        "network": f"{stage.network.kind} {'-'.join(map(str, stage.network.channels))}",
        "classes": 1 + len(model.schema.names),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path)
    print(json.dumps(describe(bundle.load(parser.parse_args().model))))


if __name__ == "__main__":
    main()
