"""Plan, train and predict with nnU-Net v2 in one process, for a given time instead of a number of epochs.

Runs with the peers' Python, in an environment where nnUNet_raw, nnUNet_preprocessed and nnUNet_results are
set. Planning and preprocessing are done by nnU-Net's own command, training by its own trainer except for the
length (below), and prediction of the cases in imagesTs by its own predictor, from file to file. Writes label
maps and account.json. If it is run again in the same folder, it resumes from its last checkpoint; the time
lost by the interruption is not counted.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from nnunetv2 import paths
from nnunetv2.experiment_planning import plan_and_preprocess_entrypoints
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

CONFIGURATION = "3d_fullres"
PLANS = "nnUNetPlans"
KEEP_EVERY_SECONDS = 60.0
"""Interval between checkpoints, equal to ZoomSeg's."""

PREPARED = "prepared.json"
CHECKPOINT = "checkpoint.pt"
SCANS = "scans.json"
WORKERS = "nnUNet_n_proc_DA"


@dataclass(frozen=True)
class Job:
    raw: Path
    """The data set's folder in nnUNet_raw, whose name contains its number."""
    out: Path
    seconds: float
    """Time for planning, preprocessing and training together."""
    threads: int
    workers: int
    """Number of processes that prepare batches; with 0, the training process prepares them."""
    memory_gb: float | None
    """GPU memory for which the planner plans; None: its default."""
    batch: int | None
    """Batch size that replaces the planned one; None: the planned one."""
    device: torch.device


class TimedTrainer(nnUNetTrainer):  # type: ignore[misc]
    """nnU-Net's trainer with a time limit instead of epochs. The learning rate follows nnU-Net's own
    polynomial schedule as a function of the elapsed share of the time; the limit is checked at every step.
    Hence no time is spent on what follows each epoch (validation on patches, plots, checkpoints)."""

    seconds: float
    checkpoint: Path
    steps = 0
    elapsed = 0.0
    """Seconds of training, including those before an interruption."""

    def run_training(self) -> None:
        began = time.monotonic()
        self.on_train_start()
        self.network.train()
        if self.checkpoint.exists():
            self.resume()
            began = time.monotonic() - self.elapsed
        kept = self.elapsed = time.monotonic() - began
        while self.elapsed < self.seconds:
            self.lr_scheduler.step(self.num_epochs * self.elapsed / self.seconds)
            loss = self.train_step(next(self.dataloader_train))["loss"]
            self.steps += 1
            self.elapsed = time.monotonic() - began
            if self.elapsed - kept > KEEP_EVERY_SECONDS or self.steps == 1:
                kept = self.elapsed
                self.print_to_log_file(f"step {self.steps}, {kept:.0f} s, loss {loss:.4f}")
                self.keep()
        self.keep()
        self.on_train_end()

    def parts(self) -> dict[str, Any]:
        found = {"network": self.network, "optimizer": self.optimizer, "scaler": self.grad_scaler}
        return {name: part for name, part in found.items() if part is not None}

    def keep(self) -> None:
        state = {name: part.state_dict() for name, part in self.parts().items()}
        whole = self.checkpoint.with_suffix(".part")
        torch.save(state | {"steps": self.steps, "elapsed": self.elapsed}, whole)
        whole.replace(self.checkpoint)

    def resume(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.steps, self.elapsed = state["steps"], state["elapsed"]
        self.print_to_log_file(f"goes on from step {self.steps}, {self.elapsed:.0f} s")


def prepare(job: Job) -> float:
    """Run nnU-Net's command for planning and preprocessing, for the trained configuration only, unless an
    earlier run has done so. Returns the seconds that it took."""
    done = job.out / PREPARED
    if done.exists():
        return float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
    began = time.monotonic()
    number = job.raw.name.removeprefix("Dataset").split("_")[0]
    command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "--no_pbar"]
    command += ["-npfp", str(job.threads), "-np", str(job.threads)]
    if job.memory_gb is not None:
        command += ["-gpu_memory_target", str(job.memory_gb)]
    # The planner uses this as a number of threads, which must be at least one.
    with mock.patch.dict(os.environ, {WORKERS: str(max(1, job.workers))}), mock.patch("sys.argv", command):
        plan_and_preprocess_entrypoints.plan_and_preprocess_entry()
    seconds = time.monotonic() - began
    done.write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    return seconds


def trainer_of(job: Job, seconds: float) -> TimedTrainer:
    folder = Path(paths.nnUNet_preprocessed) / job.raw.name
    plans = json.loads((folder / f"{PLANS}.json").read_text(encoding="utf-8"))
    if CONFIGURATION not in plans["configurations"]:
        sys.exit(f"nnU-Net planned no {CONFIGURATION} for this data set, as its scans are flat")
    if job.batch is not None:
        plans["configurations"][CONFIGURATION]["batch_size"] = job.batch
    plans["continue_training"] = False
    description = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    trainer = TimedTrainer(plans, CONFIGURATION, 0, description, job.device)
    trainer.seconds = seconds
    trainer.checkpoint = job.out / CHECKPOINT
    return trainer


def predict(job: Job, trainer: TimedTrainer) -> dict[str, float]:
    """Predict the held-out cases; returns the seconds of each, including reading and writing. Cases predicted
    before an interruption are not predicted again."""
    gpu = job.device.type == "cuda"
    predictor = nnUNetPredictor(use_mirroring=gpu, device=job.device, allow_tqdm=False)
    trainer.set_deep_supervision_enabled(False)
    bare = getattr(trainer.network, "_orig_mod", trainer.network)  # unwrap a compiled network
    assert isinstance(bare, nn.Module)
    bare.eval()
    axes = trainer.inference_allowed_mirroring_axes
    plans, configuration = trainer.plans_manager, trainer.configuration_manager
    description, name = trainer.dataset_json, type(trainer).__name__
    predictor.manual_initialization(bare, plans, configuration, [bare.state_dict()], description, name, axes)
    split = json.loads((job.raw / "splits_final.json").read_text(encoding="utf-8"))
    kept = job.out / SCANS
    seconds: dict[str, float] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    for case in split[0]["val"]:
        if case in seconds:
            continue
        channels = range(len(description["channel_names"]))
        scan = [str(job.raw / "imagesTs" / f"{case}_{channel:04d}.nii.gz") for channel in channels]
        began = time.perf_counter()
        predictor.predict_from_files_sequential([scan], [str(job.out / "predictions" / case)])
        seconds[case] = time.perf_counter() - began
        kept.write_text(json.dumps(seconds), encoding="utf-8")
    return seconds


def account(trainer: TimedTrainer, preparing: float, scans: dict[str, float]) -> dict[str, Any]:
    """The record of this process."""
    configuration, gpu = trainer.configuration_manager, trainer.device.type == "cuda"
    arguments = configuration.network_arch_init_kwargs
    width = "-".join(map(str, arguments["features_per_stage"]))
    kind = configuration.network_arch_class_name.rpartition(".")[2]
    patch = " x ".join(map(str, configuration.patch_size))
    return {
        "program": f"nnU-Net {importlib.metadata.version('nnunetv2')}",
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "precision": "float16" if gpu else "float32",
        "plan": f"{CONFIGURATION}: {kind} {width}, patch {patch}, batch {configuration.batch_size}",
        "preparing_seconds": preparing,
        "training_seconds": trainer.elapsed,
        "steps": trainer.steps,
        "parameters": sum(p.numel() for p in trainer.network.parameters()),
        "mirroring": gpu,
        "scans": scans,
    }


def parse() -> Job:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--raw", type=Path, required=True)
    add("--out", type=Path, required=True)
    add("--seconds", type=float, required=True)
    add("--threads", type=int, required=True)
    add("--workers", type=int, required=True)
    add("--memory", type=float)
    add("--batch", type=int)
    add("--device", type=torch.device, required=True)
    given = parser.parse_args()
    return Job(
        given.raw,
        given.out,
        given.seconds,
        given.threads,
        given.workers,
        given.memory,
        given.batch,
        given.device,
    )


def main() -> None:
    job = parse()
    (job.out / "predictions").mkdir(exist_ok=True)
    preparing = prepare(job)
    if preparing >= job.seconds:
        sys.exit(f"preprocessing took {preparing:.0f} s of {job.seconds:.0f} s: nothing is left to train in")
    os.environ[WORKERS] = str(job.workers)
    gpu = job.device.type == "cuda"
    torch.set_num_threads(1 if gpu else job.threads)  # as in nnU-Net's command
    torch.backends.cudnn.benchmark = gpu
    trainer = trainer_of(job, job.seconds - preparing)
    trainer.run_training()
    facts = account(trainer, preparing, predict(job, trainer))
    (job.out / "account.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
