"""Compare training of ZoomSeg and nnU-Net v2: same cases, same device, same time, same metrics.

    python benchmarks/train/run.py DATASET -o OUT --minutes M [--peers PYTHON] [--nnunet-memory GB]

Rows run one after the other, in separate processes that are monitored from outside. Writes OUT/table.md,
results.json and plot.png; OUT/<row>/ contains each row's model, label maps, scores and output. A later run
with --only adds its rows to those in OUT; one with --resume continues interrupted rows. README.md describes
how to set up the peers.
"""

from __future__ import annotations

# Import nothing large here: the peak memory of a child process includes that of its parent (see watch).
import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from results import Setting, read_results, write_results
from sides import (
    HERE,
    Contest,
    Plan,
    Row,
    RowError,
    complaint,
    environment,
    failed,
    nnunet,
    processor,
    zoomseg,
)

NAMES = ("zoomseg", "nnunet", "nnunet-small")
RAW = Path("nnUNet_raw") / "Dataset001_benchmark"
FREE_SHARE = 0.9
"""Share of the memory that is free at the start to which each row is limited."""


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    smaller = Plan(options.nnunet_memory, options.nnunet_batch)
    names = _names(parser, options, smaller)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (options.out / name).exists() and not options.resume:
            parser.error(f"{options.out / name} is there already; remove it, give --resume or another folder")
    facts = _converted(parser, options, for_nnunet=names != ["zoomseg"])
    setting = _setting(options, facts)
    rows = _earlier(parser, options.out, setting, [] if options.resume else names)
    contest = _contest(options, facts)
    for name in names:
        if any(row.name == name for row in rows):
            continue
        print(f"{name} ...", flush=True)
        rows.append(_run(contest, name, smaller))
        rows.sort(key=lambda row: NAMES.index(row.name))
        write_results(setting, rows, options.out)
    print((options.out / "table.md").read_text(encoding="utf-8"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("dataset", type=Path)
    add("-o", "--out", type=Path, required=True)
    add(
        "--minutes",
        type=_positive,
        required=True,
        help="time of each row, including planning and preprocessing",
    )
    add("--folds", type=int, default=5)
    add("--fold", type=int, default=0, help="held-out fold")
    add("--peers", type=Path, help="Python interpreter of the environment with nnU-Net")
    add("--nnunet-memory", type=_positive, metavar="GB", help="add a row planned for this GPU memory")
    add(
        "--nnunet-batch",
        type=_count,
        metavar="N",
        help="batch size of the added row, instead of the planned one",
    )
    add("--only", help=f"rows, separated by commas: {', '.join(NAMES)}")
    add(
        "--zoomseg",
        type=Path,
        metavar="MODEL",
        help="only predict and score with a model trained before on this fold",
    )
    add("--resume", action="store_true", help="continue interrupted rows")
    add("--threads", type=int, default=os.cpu_count())
    add("--device", default="cpu", choices=("cpu", "cuda"))
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"'{text}' is not a positive number")
    return value


_positive.__name__ = "positive number"  # the name in argparse's error message


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of one or more")
    return int(text)


def _names(parser: argparse.ArgumentParser, options: argparse.Namespace, smaller: Plan) -> list[str]:
    """The requested rows, in their order; exits with an error if one is not possible."""
    possible = NAMES[: 1 if options.peers is None else 2 if smaller == Plan() else 3]
    names = options.only.split(",") if options.only else list(possible)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"no row '{unknown[0]}'; allowed: {', '.join(NAMES)}")
    wanted = [name for name in NAMES if name in names]
    if options.threads < 1:
        parser.error(f"--threads {options.threads}: one or more")
    if wanted == ["zoomseg"]:
        return wanted
    if options.peers is None:
        parser.error(f"row '{wanted[-1]}' needs --peers, the Python that has nnU-Net")
    if "nnunet-small" in wanted and smaller == Plan():
        parser.error(
            "row 'nnunet-small' needs --nnunet-memory, the GB that it is planned for, or --nnunet-batch"
        )
    _check_peers(parser, options.peers)
    return wanted


def _check_peers(parser: argparse.ArgumentParser, peers: Path) -> None:
    try:
        found = subprocess.run([peers, "-c", "import nnunetv2"], capture_output=True, check=False)
    except OSError as error:
        parser.error(f"--peers {peers}: cannot be run ({error.strerror})")
    if found.returncode != 0:
        parser.error(f"--peers {peers}: has no package nnunetv2; README.md says how to set it up")


def _converted(
    parser: argparse.ArgumentParser, options: argparse.Namespace, for_nnunet: bool
) -> dict[str, Any]:
    """Convert the data set to nnU-Net's layout; returns its name, organs and fold."""
    command = [sys.executable, str(HERE / "convert.py"), str(options.dataset), "-o", str(options.out / RAW)]
    command += ["--folds", str(options.folds), "--fold", str(options.fold)]
    command += ["--for-nnunet"] if for_nnunet else []
    env = environment(options.threads)
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if result.returncode != 0:
        parser.error(complaint(result))
    facts: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return facts


def _setting(options: argparse.Namespace, facts: dict[str, Any]) -> Setting:
    machine = f"{processor()}, {psutil.virtual_memory().total / 1024**3:.0f} GB"
    named = {"--minutes": f"{options.minutes:g}", "--folds": options.folds, "--fold": options.fold}
    named |= {"--threads": options.threads, "--device": options.device}
    if options.zoomseg is not None:
        named["--zoomseg"] = "MODEL"
    if options.peers is not None:
        named["--peers"] = "PEERS/bin/python"
    if options.nnunet_memory is not None:
        named["--nnunet-memory"] = f"{options.nnunet_memory:g}"
    if options.nnunet_batch is not None:
        named["--nnunet-batch"] = options.nnunet_batch
    arguments = " ".join(f"{name} {value}" for name, value in named.items())
    return Setting(
        data_set=facts["name"],
        training=len(facts["training"]),
        held_back=tuple(facts["held_back"]),
        minutes=options.minutes,
        machine=machine,
        device=options.device,
        threads=options.threads,
        command=f"python benchmarks/train/run.py {options.dataset.resolve().name} -o OUT {arguments}",
    )


def _earlier(parser: argparse.ArgumentParser, out: Path, setting: Setting, again: list[str]) -> list[Row]:
    """Rows finished in an earlier run, without those to be run ``again``."""
    try:
        found = read_results(out)
    except ValueError as error:
        parser.error(str(error))
    if found is None:
        return []
    if not setting.agrees(found[0]):
        parser.error(f"{out} has rows of another data set, fold, time or machine; choose another folder")
    return [row for row in found[1] if row.failure is None and row.name not in again]


def _contest(options: argparse.Namespace, facts: dict[str, Any]) -> Contest:
    out = options.out.resolve()
    return Contest(
        dataset=options.dataset.resolve(),
        raw=out / RAW,
        held_back=tuple(facts["held_back"]),
        out=out,
        seconds=60 * options.minutes,
        folds=options.folds,
        fold=options.fold,
        threads=options.threads,
        device=options.device,
        peers=options.peers,
        resume=options.resume,
        model=options.zoomseg and options.zoomseg.resolve(),
        limit_mb=FREE_SHARE * psutil.virtual_memory().available / 1024**2,
    )


def _run(contest: Contest, name: str, smaller: Plan) -> Row:
    """Compute one row; if it fails, the row contains the reason."""
    plan = smaller if name == "nnunet-small" else Plan()
    title = "ZoomSeg" if name == "zoomseg" else plan.title
    side: Callable[[], Row] = partial(nnunet, contest, name, plan)
    if name == "zoomseg":
        side = partial(zoomseg, contest, name, title)
    try:
        row = side()
    except (RowError, OSError, ValueError, KeyError) as error:
        row = failed(name, title, str(error) or type(error).__name__)
    print(f"  {row.failure or f'mean Dice {row.mean_dice:.3f}, {row.minutes:.1f} minutes'}", flush=True)
    return row


if __name__ == "__main__":
    main()
