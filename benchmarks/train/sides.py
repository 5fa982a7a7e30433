"""The rows of the benchmark: ZoomSeg and nnU-Net, trained on the same cases for the same time, applied to the
same scans and scored by the same command."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "predict"))

from measure import environment, failure_of, processor  # noqa: E402
from watch import Watched, watch  # noqa: E402

MAX_WORKERS = 12
"""Number of processes with which nnU-Net prepares batches if there are enough cores."""

TIME_TOLERANCE = 0.1
"""Relative difference in training time that is allowed for a model that was trained before."""

__all__ = ["environment", "processor"]
"""From the benchmark of prediction, re-exported."""

ZOOMSEG = (sys.executable, "-m", "zoomseg")


@dataclass(frozen=True)
class Plan:
    """Settings of nnU-Net's plan; None: nnU-Net's default."""

    memory_gb: float | None = None
    batch: int | None = None

    @property
    def title(self) -> str:
        memory = "" if self.memory_gb is None else f", {self.memory_gb:g} GB plan"
        return f"nnU-Net{memory}" + ("" if self.batch is None else f", batch {self.batch}")

    @property
    def arguments(self) -> list[str]:
        given = {"--memory": self.memory_gb, "--batch": self.batch}
        return [text for name, value in given.items() if value is not None for text in (name, str(value))]

    @property
    def note(self) -> str:
        planned = "its default" if self.memory_gb is None else f"{self.memory_gb:g} GB"
        return f"planned for {planned}" + (
            "" if self.batch is None else f", a batch of {self.batch} asked for"
        )


class RowError(Exception):
    """A row failed; the message states the reason."""


@dataclass(frozen=True)
class Contest:
    """Conditions shared by all rows."""

    dataset: Path
    raw: Path
    """The data set in nnU-Net's layout, with the held-out cases in imagesTs."""
    held_back: tuple[str, ...]
    out: Path
    """Contains a folder with the name of each row."""
    seconds: float
    folds: int
    fold: int
    threads: int
    device: str
    peers: Path | None
    """Python interpreter of the environment with nnU-Net."""
    limit_mb: float
    """A row that uses more memory is terminated."""
    resume: bool
    """Continue interrupted rows."""
    model: Path | None
    """A ZoomSeg model that was trained on the same fold before."""


@dataclass(frozen=True)
class Row:
    """A column of the table. If the row failed, ``failure`` states the reason and the numbers are None."""

    name: str
    title: str
    date: str
    program: str = ""
    """Name and versions."""
    device: str = ""
    plan: str = ""
    """Networks, patches and batches."""
    notes: str = ""
    minutes: float | None = None
    """Planning, preprocessing and training, as recorded by the program itself."""
    steps: int | None = None
    parameters: int | None = None
    scan_seconds: float | None = None
    """Median over the held-out cases, from file to file, in a process that has already loaded its network."""
    peak_ram_mb: float | None = None
    """Highest of all processes of the row, including children."""
    dice: Mapping[str, float | None] | None = None
    """By organ, mean over the held-out cases; None for an organ that is in none of them."""
    mean_dice: float | None = None
    failure: str | None = None


def failed(name: str, title: str, reason: str) -> Row:
    return Row(name, title, _today(), failure=reason)


def zoomseg(contest: Contest, name: str, title: str) -> Row:
    """Train the default recipe, or use the given model, then predict the held-out cases.

    Raises:
        RowError: a process failed.
    """
    out = contest.out / name
    out.mkdir(exist_ok=contest.resume)
    env = environment(contest.threads)
    model = contest.model or out / "model"
    training = None if contest.model else _train(contest, model, env, out / "training.log")
    facts = json.loads(_output([sys.executable, str(HERE / "trained.py"), str(model)], env))
    _require_same_terms(contest, facts)
    scans, predictions = contest.raw / "imagesTs", out / "predictions"
    command = [*ZOOMSEG, "predict", str(scans), "-m", str(model), "-o", str(predictions)]
    command += ["--device", contest.device]
    predicting = _watched(command, env, out / "predictions.log", contest.limit_mb)
    run = json.loads((predictions / "run.json").read_text(encoding="utf-8"))
    seconds = [case["seconds"]["total"] for case in run["cases"].values()]
    dice, mean = score(contest, predictions, out / "scores")
    return Row(
        name=name,
        title=title,
        date=_today(),
        program=_program(f"ZoomSeg {run['zoomseg']}", facts),
        device=facts["device"],
        plan=facts["plan"],
        notes="" if training else f"trained before, on {facts['date']}; peak memory is of the prediction",
        minutes=facts["seconds"] / 60,
        steps=facts["steps"],
        parameters=facts["parameters"],
        scan_seconds=statistics.median(seconds),
        peak_ram_mb=max(seen.peak_ram_mb for seen in (training, predicting) if seen),
        dice=dice,
        mean_dice=mean,
    )


def _require_same_terms(contest: Contest, facts: Mapping[str, Any]) -> None:
    """
    Raises:
        RowError: the model has another fold or training time, which is possible if it was trained before.
    """
    if sorted(facts["held_back"]) != sorted(contest.held_back):
        raise RowError("it kept other cases back than the others do")
    if not facts["complete"]:
        raise RowError("its training was not finished")
    if abs(facts["seconds"] / contest.seconds - 1) > TIME_TOLERANCE:
        minutes = facts["seconds"] / 60, contest.seconds / 60
        raise RowError(f"it was trained for {minutes[0]:.1f} minutes, the others for {minutes[1]:.1f}")


def _train(contest: Contest, model: Path, env: Mapping[str, str], log: Path) -> Watched:
    command = [*ZOOMSEG, "train", str(contest.dataset), "-o", str(model), "--device", contest.device]
    if model.exists():
        return _watched([*command, "--resume"], env, log, contest.limit_mb)
    command += ["--time-budget", f"{contest.seconds:g}s"]
    command += ["--folds", str(contest.folds), "--fold", str(contest.fold)]
    return _watched(command, env, log, contest.limit_mb)


def nnunet(contest: Contest, name: str, plan: Plan) -> Row:
    """Plan, preprocess and train, then predict the held-out cases, all in one process.

    Raises:
        RowError: the process failed.
    """
    out = contest.out / name
    out.mkdir(exist_ok=contest.resume)
    workers = data_workers(contest.threads)
    folders = {"nnUNet_preprocessed": out / "preprocessed", "nnUNet_results": out / "results"}
    for folder in folders.values():
        folder.mkdir(exist_ok=True)
    env = environment(contest.threads) | {key: str(folder) for key, folder in folders.items()}
    env |= {"nnUNet_raw": str(contest.raw.parent), "nnUNet_n_proc_DA": str(workers)}
    command = [str(contest.peers), str(HERE / "peer.py"), "--raw", str(contest.raw), "--out", str(out)]
    command += ["--seconds", str(contest.seconds), "--device", contest.device]
    command += ["--threads", str(contest.threads), "--workers", str(workers), *plan.arguments]
    watched = _watched(command, env, out / "log.txt", contest.limit_mb)
    facts = json.loads((out / "account.json").read_text(encoding="utf-8"))
    dice, mean = score(contest, out / "predictions", out / "scores")
    mirroring = "mirroring, its default" if facts["mirroring"] else "no mirroring"
    return Row(
        name=name,
        title=plan.title,
        date=_today(),
        program=_program(facts["program"], facts),
        device=facts["device"],
        plan=facts["plan"],
        notes=f"{plan.note}; preprocessing took {facts['preparing_seconds'] / 60:.1f} of the "
        f"minutes; {workers} processes make batches; predicts with {mirroring}",
        minutes=(facts["preparing_seconds"] + facts["training_seconds"]) / 60,
        steps=facts["steps"],
        parameters=facts["parameters"],
        scan_seconds=statistics.median(facts["scans"].values()),
        peak_ram_mb=watched.peak_ram_mb,
        dice=dice,
        mean_dice=mean,
    )


def data_workers(threads: int) -> int:
    """Number of processes that prepare nnU-Net's batches: one core is reserved for training; with a single
    core, the training process prepares them."""
    return min(MAX_WORKERS, threads - 1)


def score(contest: Contest, predictions: Path, out: Path) -> tuple[dict[str, float | None], float]:
    """Dice by organ, and their mean, computed by ``zoomseg evaluate`` with the data set's own labels.

    Raises:
        RowError: a held-out case has no score.
    """
    command = [*ZOOMSEG, "evaluate", str(predictions), str(contest.dataset), "-o", str(out)]
    _output(command, environment(contest.threads))
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    if summary["cases"] != len(contest.held_back):
        raise RowError(f"{summary['cases']} of {len(contest.held_back)} cases kept back have a score")
    return {organ: found["dice"] for organ, found in summary["organs"].items()}, summary["mean"]["dice"]


def complaint(result: subprocess.CompletedProcess[str]) -> str:
    """The last line of a failed command's output."""
    lines = result.stderr.strip().splitlines() or result.stdout.strip().splitlines()
    return lines[-1] if lines else f"exit code {result.returncode}, no message"


def _watched(command: Sequence[str], env: Mapping[str, str], log: Path, limit_mb: float) -> Watched:
    found = watch(command, env, log, limit_mb)
    reason = failure_of(found, log, limit_mb)
    if reason is not None:
        raise RowError(reason)
    return found


def _output(command: Sequence[str], env: Mapping[str, str]) -> str:
    """The last line that a command prints."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=dict(env))
    if result.returncode != 0:
        raise RowError(complaint(result))
    return result.stdout.strip().splitlines()[-1]


def _program(name: str, facts: Mapping[str, Any]) -> str:
    return f"{name}, torch {facts['torch']}, {facts['precision']}"


def _today() -> str:
    return time.strftime("%Y-%m-%d")
