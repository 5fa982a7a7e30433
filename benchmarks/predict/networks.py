"""The peers' network: nnU-Net's plain 3D U-Net, and the width at which it costs as much as another network.

    python networks.py --flops-per-voxel F --classes N

prints as JSON the features per level and the FLOPs per voxel of nnU-Net's default (32 to 320) and of the
U-Net whose FLOPs per voxel are closest to F. Needs the peers' environment.
"""

from __future__ import annotations

import argparse
import json
import pydoc
from typing import Any

import torch
from dynamic_network_architectures.architectures.unet import (
    PlainConvUNet,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

DEFAULT_FEATURES = (32, 64, 128, 256, 320, 320)
GROWTH = (1, 2, 4, 8, 10, 10)
"""Features per level of the default, relative to the first level."""
MULTIPLE = 8
"""Numbers of channels are multiples of this: convolutions are slow for other numbers, which would make the
comparison at equal FLOPs unfair."""
PATCH = (128, 128, 128)

Features = tuple[int, ...]


def architecture(features: Features) -> dict[str, Any]:
    """The network as described in nnU-Net's plans: isotropic, two convolutions per level of the encoder and
    the decoder."""
    levels = len(features)
    return {
        "n_stages": levels,
        "features_per_stage": list(features),
        "conv_op": "torch.nn.modules.conv.Conv3d",
        "kernel_sizes": [[3, 3, 3]] * levels,
        "strides": [[1, 1, 1]] + [[2, 2, 2]] * (levels - 1),
        "n_conv_per_stage": [2] * levels,
        "n_conv_per_stage_decoder": [2] * (levels - 1),
        "conv_bias": True,
        "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


IMPORTED = ("conv_op", "norm_op", "dropout_op", "nonlin")
"""Keys of the architecture whose values are names of classes."""
NETWORK_CLASS = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def plain_unet(features: Features, classes: int) -> nn.Module:
    """The network for one channel, with nnU-Net's random initialisation, in evaluation mode."""
    named = architecture(features)
    settings = named | {key: pydoc.locate(named[key]) for key in IMPORTED if named[key]}
    network: nn.Module = PlainConvUNet(1, num_classes=classes, **settings)
    network.apply(PlainConvUNet.initialize)
    return network.eval()


def flops_per_voxel(features: Features, classes: int) -> float:
    """FLOPs per voxel of one patch; multiplications and additions count as one each. They are counted on the
    meta device, without computing anything."""
    with torch.device("meta"):
        network, patch = plain_unet(features, classes), torch.empty(1, 1, *PATCH)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(patch)
    return float(counter.get_total_flops()) / patch.numel()


def closest_features(wanted: float, classes: int) -> Features:
    """The features whose FLOPs per voxel are closest to ``wanted``. The first level is the widest that does
    not exceed ``wanted`` with the default's growth; for finer steps, lower levels are up to twice as wide."""
    first = MULTIPLE
    while flops_per_voxel(_grown(first + MULTIPLE, 1.0), classes) <= wanted:
        first += MULTIPLE
    candidates = sorted({_grown(first, 1 + step / 20) for step in range(21)})
    return min(candidates, key=lambda features: abs(flops_per_voxel(features, classes) - wanted))


def _grown(first: int, factor: float) -> Features:
    """Features per level: ``first``, then ``factor`` times the default's growth for the lower levels."""
    below = (max(1, round(first * growth * factor / MULTIPLE)) * MULTIPLE for growth in GROWTH[1:])
    return (first, *below)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--flops-per-voxel", type=float, required=True)
    parser.add_argument("--classes", type=int, required=True)
    options = parser.parse_args()
    chosen = {
        "default": DEFAULT_FEATURES,
        "same_flops": closest_features(options.flops_per_voxel, options.classes),
    }
    described = {
        name: {"features": features, "flops_per_voxel": flops_per_voxel(features, options.classes)}
        for name, features in chosen.items()
    }
    print(json.dumps(described))


if __name__ == "__main__":
    main()
