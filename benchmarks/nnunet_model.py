"""Write an nnU-Net model of usual size with random weights, to measure the cost of prediction.

    PEERS/bin/python benchmarks/nnunet_model.py OUT --spacing 1.5 --classes 14

PEERS is an environment with nnunetv2. The network is that of nnU-Net's plans for abdominal CT: six levels
with 32 to 320 channels, patches of 128 x 128 x 128 voxels.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "predict"))

from networks import DEFAULT_FEATURES, IMPORTED, NETWORK_CLASS, PATCH, architecture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--spacing", type=float, default=1.5)
    parser.add_argument("--classes", type=int, default=14, help="number of classes, including background")
    given = parser.parse_args()
    network = _network(given.classes)
    folder = given.out / "fold_0"
    folder.mkdir(parents=True)
    labels = {"background": 0} | {f"organ_{n}": n for n in range(1, given.classes)}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    plans = _plans(given.spacing)
    (given.out / "plans.json").write_text(json.dumps(plans))
    (given.out / "dataset.json").write_text(json.dumps(dataset))
    checkpoint = {
        "network_weights": network.state_dict(),
        "init_args": {"configuration": "3d_fullres", "fold": 0, "plans": plans, "dataset_json": dataset},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "checkpoint_final.pth")


def _network(classes: int) -> torch.nn.Module:
    from nnunetv2.utilities.get_network_from_plans import get_network_from_plans

    torch.manual_seed(0)
    settings = architecture(DEFAULT_FEATURES)
    network = get_network_from_plans(
        NETWORK_CLASS, settings, list(IMPORTED), 1, classes, allow_init=True, deep_supervision=True
    )
    assert isinstance(network, torch.nn.Module)
    return network


def _plans(spacing: float) -> dict[str, Any]:
    resampling = "resample_data_or_seg_to_shape"
    options = {"order_z": 0, "force_separate_z": None}
    configuration = {
        "data_identifier": "random",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": PATCH,
        "median_image_size_in_voxels": PATCH,
        "spacing": [spacing] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resampling,
        "resampling_fn_data_kwargs": options | {"is_seg": False, "order": 3},
        "resampling_fn_seg": resampling,
        "resampling_fn_seg_kwargs": options | {"is_seg": True, "order": 1},
        "resampling_fn_probabilities": resampling,
        "resampling_fn_probabilities_kwargs": options | {"is_seg": False, "order": 1},
        "architecture": {
            "network_class_name": NETWORK_CLASS,
            "arch_kwargs": architecture(DEFAULT_FEATURES),
            "_kw_requires_import": IMPORTED,
        },
        "batch_dice": True,
    }
    intensities = {"mean": 90.0, "median": 95.0, "std": 60.0, "min": -500.0, "max": 1000.0}
    intensities |= {"percentile_00_5": -100.0, "percentile_99_5": 240.0}
    return {
        "dataset_name": "Dataset999_Random",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [spacing] * 3,
        "original_median_shape_after_transp": PATCH,
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": configuration},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": intensities},
    }


if __name__ == "__main__":
    main()
