"""Real signals to real processes: every long command reacts immediately, ends as documented, and loses
nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from helpers.tiny_dataset import SCHEMA, tiny_case, tiny_dataset, tiny_recipe
from helpers.untrained_models import untrained_bundle
from zoomseg.core.errors import INTERRUPTED
from zoomseg.core.interrupts import GO_ON, SAME_SIGNAL_SECONDS, SAVING, STOPPING
from zoomseg.io import bundle
from zoomseg.io.scans import write_image, write_labels
from zoomseg.recipe.load import dump
from zoomseg.serve.server import STOPPING as SERVER_STOPPING

ANSWER_SECONDS = 10.0
"""Timeout, long enough for a machine under load."""

AGAIN = ". Press Ctrl-C again to end immediately"

STALLED = """
import sys, time
from pathlib import Path
from zoomseg.cli.main import main

def stalled(*given, **named):
    Path(sys.argv[1]).touch()
    {stall}

import {module} as module
module.{name}  # there is one
module.{name} = stalled
main(sys.argv[2:])
"""
"""A command that calls a function that never returns: in Python, or in a single call of C, during which
Python cannot handle a signal."""

SLEEPS = "time.sleep(600)"
IN_C = "import hashlib; hashlib.pbkdf2_hmac('sha256', b'a', b'b', 10**9)"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a recipe, a model, and scans with their label maps."""
    root = tmp_path_factory.mktemp("room")
    tiny_dataset(root / "data")
    (root / "recipe.yaml").write_text(dump(tiny_recipe(together=True, iterations=100_000)))
    bundle.save(untrained_bundle(), root / "model")
    (root / "scans").mkdir()
    (root / "labels").mkdir()
    for seed in range(3):
        image, labels = tiny_case(seed)
        write_image(root / "scans" / f"case_{seed}.nii.gz", image)
        write_labels(root / "labels" / f"case_{seed}.nii.gz", labels)
    shutil.copytree(root / "labels", root / "predicted")
    return root


@contextmanager
def running(command: list[str], until: Callable[[], bool]) -> Iterator[subprocess.Popen[str]]:
    """The process, after it has reached the intended point."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        deadline = time.monotonic() + 300
        while not until():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def stalled(
    module: str, name: str, arguments: list[str], reached: Path, stall: str = SLEEPS
) -> tuple[list[str], Callable[[], bool]]:
    source = STALLED.format(module=module, name=name, stall=stall)
    return [sys.executable, "-c", source, str(reached), *arguments], reached.exists


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that starts with the program's name; it must appear immediately."""
    assert process.stderr is not None
    began = time.monotonic()
    for line in process.stderr:
        if line.startswith("zoomseg: "):
            assert time.monotonic() - began < ANSWER_SECONDS
            return line.strip()
    raise AssertionError("no answer")


def unfinished(folder: Path) -> list[Path]:
    """Files that look like results, or are remains of one."""
    kinds = (".nii.gz", ".zip", ".html", ".json", ".md", ".csv", ".safetensors")
    return [f for f in folder.rglob("*") if f.name.endswith(kinds) or ".partial-" in f.name]


def commands(room: Path, out: Path) -> dict[str, tuple[str, str, list[str], str]]:
    """The point of each command when the signal arrives, its arguments, and its last message."""
    data, model, recipe = str(room / "data"), str(room / "model"), str(room / "recipe.yaml")
    scans, labels, o = str(room / "scans"), str(room / "labels"), str(out)
    study = ["--ablation", "roth2018-pyramid", "--time-budget", "60s"]
    return {
        "demo": ("zoomseg.datasets.phantom", "write_phantom_dataset", ["demo", "-o", o], GO_ON),
        "check": ("zoomseg.datasets.audit", "_audit_case", ["check", data], "checking: 0 of 4 cases done"),
        "ceiling": (
            "zoomseg.evaluation.upper_bound",
            "measure",
            ["ceiling", data, "-r", recipe, "-o", o],
            "0 of 4 cases were measured, and nothing was written",
        ),
        "train": (
            "zoomseg.planning.fingerprint",
            "compute_fingerprint",
            ["train", data, "-o", o, "--epochs", "1"],
            "training had not started; nothing is lost",
        ),
        "predict": (
            "zoomseg.pipeline.stage_input",
            "prepare",
            ["predict", scans, "-m", model, "-o", o],
            f"0 of 3 scans done, in {o}",
        ),
        "evaluate": (
            "zoomseg.evaluation.evaluate",
            "as_completed",
            ["evaluate", str(room / "predicted"), labels, "-o", o],
            "cases were scored, and nothing was written",
        ),
        "study": ("zoomseg.study.run", "_held_out", ["study", data, "-o", o, *study], GO_ON),
        "export": (
            "zoomseg.export.package",
            "_pack",
            ["export", "abdomen-ct", "-o", f"{o}/x.zip"],  # it has its graphs, which would take seconds
            f"{o}/x.zip was not written",
        ),
    }


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("demo", signal.SIGTERM),
        ("check", signal.SIGTERM),
        ("check", signal.SIGINT),
        ("ceiling", signal.SIGTERM),
        ("train", signal.SIGINT),
        ("predict", signal.SIGTERM),
        ("evaluate", signal.SIGTERM),
        ("study", signal.SIGTERM),
        ("export", signal.SIGINT),
    ],
)
def test_a_long_command_says_what_it_does_and_ends(
    name: str, number: signal.Signals, room: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    module, function, arguments, end = commands(room, out)[name]
    command, reached = stalled(module, function, arguments, tmp_path / "reached")
    with running(command, reached) as process:
        process.send_signal(number)
        assert answer(process) == f"zoomseg: {STOPPING}{AGAIN}"
        said = answer(process)
        assert said.startswith("zoomseg: stopped; ")
        assert said.endswith(end)
        assert process.wait(60) == INTERRUPTED
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert name in ("demo", "study", "predict") or unfinished(out) == []


def test_an_answer_does_not_wait_for_a_call_that_takes_long_and_the_second_signal_ends_it(
    room: Path, tmp_path: Path
) -> None:
    module, function, arguments, _ = commands(room, tmp_path / "out")["predict"]
    command, reached = stalled(module, function, arguments, tmp_path / "reached", IN_C)
    with running(command, reached) as process:
        process.send_signal(signal.SIGINT)
        assert answer(process) == f"zoomseg: {STOPPING}{AGAIN}"
        process.send_signal(signal.SIGINT)  # for the same request
        time.sleep(SAME_SIGNAL_SECONDS + 0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert answer(process) == "zoomseg: stopped immediately"
        assert process.wait(60) == INTERRUPTED  # although the call takes many minutes
    assert list((tmp_path / "out").glob("*.nii.gz")) == []


def test_a_training_that_learns_saves_first(room: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    arguments = [str(room / "data"), "-o", str(out), "-r", str(room / "recipe.yaml"), "--device", "cpu"]
    log = out / "training" / "metrics.csv"
    command = [sys.executable, "-m", "zoomseg", "train", *arguments]

    def learning() -> bool:
        return log.is_file() and len(log.read_text().splitlines()) > 2

    with running(command, learning) as process:
        process.send_signal(signal.SIGTERM)
        assert answer(process) == f"zoomseg: {SAVING}{AGAIN}"
        assert "continue with --resume" in answer(process)
        assert process.wait(60) == INTERRUPTED
    assert bundle.load(out).provenance["complete"] is False
    assert bundle.load(out).schema == SCHEMA


def test_a_server_says_what_it_does_and_ends(room: Path, tmp_path: Path) -> None:
    options = [
        "-m",
        str(room / "model"),
        "--port",
        "0",
        "--folder",
        str(tmp_path / "jobs"),
        "--device",
        "cpu",
    ]
    reached = tmp_path / "reached"
    source = STALLED.replace("{stall}", "return served(*given, **named)").format(
        module="zoomseg.serve.server", name="run"
    )
    source = source.replace("module.run = stalled", "served = module.run\nmodule.run = stalled")
    command = [sys.executable, "-c", source, str(reached), "serve", *options]
    with running(command, reached.exists) as process:
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        assert answer(process) == f"zoomseg: {SERVER_STOPPING}{AGAIN}"
        assert answer(process) == "zoomseg: stopped; scans that wait are segmented after the next start"
        assert process.wait(60) == INTERRUPTED
