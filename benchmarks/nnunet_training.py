"""Train an nnU-Net model for a few minutes, with nnU-Net's own planner, preprocessing and trainer.

    PEERS/bin/python benchmarks/nnunet_training.py DATASET -o OUT --minutes 5 [--configuration 3d_fullres]
        [--planner nnUNetPlannerResEncM] [--trainer nnUNetTrainerAdam1en3] [--features 32] [--memory-gb 1]
        [--cases 8] [--leave-out CASE...] [--bfloat16]

PEERS is an environment with nnunetv2. DATASET has `imagesTr`, `labelsTr` and `dataset.json` as ZoomSeg and
nnU-Net read them. For `3d_cascade_fullres`, half of the minutes are those of `3d_lowres`, which then predicts
the training cases. To be trainable on a CPU, the network has at most `--features` channels, and its patch is
planned for a GPU of `--memory-gb`. `--trainer` is one of nnU-Net's own trainers; its default one finds few
organs in a few minutes. ``--bfloat16`` trains in this precision, as nnU-Net trains in half precision on a GPU
(on the CPU, it trains in float32). Prints the model's folder, for `nnunet_agreement.py` with `--fold all`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "train"))

DATASET_ID, FOLD = 1, "all"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--configuration", default="3d_fullres")
    parser.add_argument("--planner", default="ExperimentPlanner")
    parser.add_argument("--trainer", default="nnUNetTrainer")
    parser.add_argument("--features", type=int, default=32, help="highest number of channels")
    parser.add_argument("--memory-gb", type=float, default=1.0)
    parser.add_argument("--cases", type=int, default=8, help="number of training cases")
    parser.add_argument("--leave-out", nargs="*", default=[], help="cases that are kept back")
    parser.add_argument("--bfloat16", action="store_true")
    given = parser.parse_args()
    for kind in ("raw", "preprocessed", "results"):
        os.environ[f"nnUNet_{kind}"] = str((given.out / kind).absolute())
    os.environ |= {"nnUNet_compile": "f", "nnUNet_n_proc_DA": "1"}
    if given.bfloat16:
        _train_in_bfloat16()
    cascade = given.configuration == "3d_cascade_fullres"
    configurations = ["3d_lowres", given.configuration] if cascade else [given.configuration]
    _link(given.dataset, given.out / "raw", given.cases, given.leave_out)
    plans = _planned(given.out / "preprocessed", given.planner, given.memory_gb, given.features)
    _preprocess(plans, ["3d_lowres", "3d_fullres"] if cascade else configurations)
    for configuration in configurations:
        minutes, is_read = given.minutes / len(configurations), configuration != configurations[-1]
        print(_trained(plans, configuration, given.trainer, minutes, is_read), flush=True)


def _train_in_bfloat16() -> None:
    """Replace the context that nnU-Net's trainer uses where it does not use autocast."""
    import torch
    from nnunetv2.training.nnUNetTrainer import nnUNetTrainer

    nnUNetTrainer.dummy_context = lambda: torch.autocast("cpu", torch.bfloat16)


def _link(dataset: Path, raw: Path, cases: int, left_out: list[str]) -> None:
    """nnU-Net's folder of raw data, with links to the first cases."""
    folder = raw / f"Dataset{DATASET_ID:03}_{dataset.name}"
    labels = [p for p in sorted((dataset / "labelsTr").glob("*.nii.gz")) if _case(p) not in left_out][:cases]
    chosen = {_case(path) for path in labels}
    images = [
        p for p in sorted((dataset / "imagesTr").glob("*.nii.gz")) if p.name.rsplit("_", 1)[0] in chosen
    ]
    for kind, files in (("labelsTr", labels), ("imagesTr", images)):
        (folder / kind).mkdir(parents=True)
        for file in files:
            (folder / kind / file.name).symlink_to(file.absolute())
    described = json.loads((dataset / "dataset.json").read_text()) | {"numTraining": len(labels)}
    (folder / "dataset.json").write_text(json.dumps(described))


def _case(labels: Path) -> str:
    return labels.name.removesuffix(".nii.gz")


def _planned(preprocessed: Path, planner: str, memory_gb: float, features: int) -> Path:
    """The file of the plans, with fewer channels than planned."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([DATASET_ID], num_processes=2, check_dataset_integrity=False)
    name = plan_experiments([DATASET_ID], planner, gpu_memory_target_in_gb=memory_gb)
    (file,) = preprocessed.glob(f"*/{name}.json")
    plans = json.loads(file.read_text())
    for configuration in plans["configurations"].values():
        if "architecture" in configuration:
            own = configuration["architecture"]["arch_kwargs"]
            own["features_per_stage"] = [min(count, features) for count in own["features_per_stage"]]
    file.write_text(json.dumps(plans))
    return file


def _preprocess(plans: Path, configurations: list[str]) -> None:
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess

    preprocess([DATASET_ID], plans.stem, configurations, [2] * len(configurations))


def _trained(plans: Path, configuration: str, trainer_name: str, minutes: float, is_read: bool) -> Path:
    """The folder of a model that was trained for some minutes on all cases; if ``is_read``, with predictions
    of these for the next configuration."""
    import nnunetv2
    import torch
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class
    from peer import TimedTrainer

    folder = str(Path(nnunetv2.__file__).parent / "training" / "nnUNetTrainer")
    own = recursive_find_python_class(folder, trainer_name, "nnunetv2.training.nnUNetTrainer")
    if own is None:
        raise SystemExit(f"nnU-Net has no trainer {trainer_name}")
    told = json.loads(plans.read_text()) | {"continue_training": False}
    described = json.loads((plans.parent / "dataset.json").read_text())
    # With the name by which nnU-Net's predictor finds its own class.
    timed: Any = type(trainer_name, (TimedTrainer, own), {})
    trainer = timed(told, configuration, FOLD, described, torch.device("cpu"))
    out = Path(trainer.output_folder)
    trainer.seconds, trainer.checkpoint = 60 * minutes, out / "checkpoint.pt"
    trainer.run_training()
    print(f"{configuration}: {trainer.steps} steps", flush=True)
    if is_read:
        trainer.inference_allowed_mirroring_axes = None  # mirrored tiles would take eight times as long
        trainer.perform_actual_validation(save_probabilities=False)
    return out.parent


if __name__ == "__main__":
    main()
