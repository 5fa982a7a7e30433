"""nnU-Net v2's own pipeline, from file to file and without mirroring, its functions timed from outside.

Preprocessing, sliding window, resampling of the logits, argmax and saving are nnU-Net's, with the plans that
its default planner writes for CT; only the network's weights are random.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any

import torch
from account import Clock
from networks import IMPORTED, NETWORK_CLASS, PATCH, architecture, plain_unet
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.preprocessing.preprocessors import default_preprocessor
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from peer import Counted, Job, clock_of, finish, parse

INTENSITIES = {"mean": 80.0, "std": 140.0, "percentile_00_5": -900.0, "percentile_99_5": 300.0}
"""Approximate statistics of the foreground in abdominal CT; they affect values, but not computing time."""


def resampling(is_seg: bool, order: int) -> dict[str, Any]:
    return {"is_seg": is_seg, "order": order, "order_z": 0, "force_separate_z": None}


def plans(job: Job) -> dict[str, Any]:
    """Plans as written by the default planner, with only the configuration ``3d_fullres``."""
    resample = "resample_data_or_seg_to_shape"
    fullres = {
        "preprocessor_name": "DefaultPreprocessor",
        "patch_size": list(PATCH),
        "spacing": [job.spacing_mm] * 3,
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": resample,
        "resampling_fn_data_kwargs": resampling(is_seg=False, order=3),
        "resampling_fn_seg": resample,
        "resampling_fn_seg_kwargs": resampling(is_seg=True, order=1),
        "resampling_fn_probabilities": resample,
        "resampling_fn_probabilities_kwargs": resampling(is_seg=False, order=1),
        "architecture": {
            "network_class_name": NETWORK_CLASS,
            "arch_kwargs": architecture(job.features),
            "_kw_requires_import": IMPORTED,
        },
    }
    return {
        "plans_name": "nnUNetPlans",
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "foreground_intensity_properties_per_channel": {"0": INTENSITIES},
        "configurations": {"3d_fullres": fullres},
    }


def data_set(classes: int) -> dict[str, Any]:
    labels = {"background": 0} | {f"organ {n}": n for n in range(1, classes)}
    return {"channel_names": {"0": "CT"}, "labels": labels, "file_ending": ".nii.gz"}


def time_steps(clock: Clock, manager: PlansManager) -> None:
    """Time nnU-Net's functions; the time of a function outside the timed functions that it calls is a step of
    its own."""

    def wrap(owner: Any, name: str, step: str, group: str) -> None:
        setattr(owner, name, clock.timed(step, group, getattr(owner, name)))

    def wrap_property(name: str, step: str, group: str) -> None:
        found = getattr(ConfigurationManager, name).fget
        setattr(ConfigurationManager, name, property(lambda self: clock.timed(step, group, found(self))))

    reader_writer = manager.image_reader_writer_class
    wrap(reader_writer, "read_images", "load", "read")
    wrap(DefaultPreprocessor, "run_case", "copies", "prepare")
    wrap(default_preprocessor, "crop_to_nonzero", "crop to nonzero", "prepare")
    wrap(DefaultPreprocessor, "_normalize", "normalise", "prepare")
    wrap_property("resampling_fn_data", "resample in", "prepare")
    wrap_property("resampling_fn_seg", "resample the mask", "prepare")
    wrap(nnUNetPredictor, "predict_logits_from_preprocessed_data", "sliding window", "network")
    wrap_property("resampling_fn_probabilities", "resample logits", "merge")
    wrap(LabelManager, "convert_logits_to_segmentation", "argmax", "merge")
    wrap(predict_from_raw_data, "export_prediction_from_logits", "uncrop", "merge")
    wrap(reader_writer, "write_seg", "save", "write")


def main() -> None:
    job = parse(__doc__)
    torch.manual_seed(0)
    network, clock = Counted(plain_unet(job.features, job.classes)), clock_of(job)
    predictor = nnUNetPredictor(use_mirroring=False, device=job.device, allow_tqdm=False)
    manager, labels = PlansManager(plans(job)), data_set(job.classes)
    predictor.manual_initialization(
        network,
        manager,
        manager.get_configuration("3d_fullres"),
        [network.state_dict()],
        labels,
        "nnUNetTrainer",
        None,
    )
    time_steps(clock, manager)
    predictor.predict_from_files_sequential([[str(job.scan)]], [str(job.out / "labels")])
    finish(job, f"nnU-Net v{importlib.metadata.version('nnunetv2')}", clock, network.tiles)


if __name__ == "__main__":
    main()
