"""Fuzzing: invalid input must not cause a traceback, signal, hang, 4 GB of memory, or misleading files.

    uv run python benchmarks/robustness_fuzz.py 5000 -o OUT       seeds 0 to 4999
    uv run python benchmarks/robustness_fuzz.py --seed 17 -o OUT  one seed, with its changes and its output

Misleading files are those outside the command's folder, and incomplete results that look complete. Writes
OUT/report.md, and a folder with the input for each failure. The inputs are those of
tests/guards/test_robustness.py, which runs the first few hundred.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch

from fuzzing.inputs import KINDS
from fuzzing.outcomes import Outcome, outcomes
from fuzzing.runner import Runner
from fuzzing.samples import Samples


def report(found: Iterable[Outcome], seconds: float) -> str:
    """Number of inputs and failures by kind, then every cause with the seeds that reproduce it."""
    found = list(found)
    lines = [
        f"{len(found)} inputs in {seconds:.0f} s",
        "",
        "| kind | inputs | violations |",
        "|---|---:|---:|",
    ]
    for kind in KINDS:
        of_kind = [o for o in found if o.given.kind == kind]
        lines.append(f"| {kind} | {len(of_kind)} | {sum(bool(o.violations) for o in of_kind)} |")
    causes: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for outcome in found:
        for violation in outcome.violations:
            detail = violation.detail.replace(str(outcome.given.folder), "...")
            causes[outcome.given.kind, violation.kind, detail].append(outcome.given.seed)
    lines += ["", "| kind | violation | cause | seeds |", "|---|---|---|---|"]
    for (kind, wrong, detail), seeds in sorted(causes.items()):
        shown = " ".join(map(str, seeds[:6])) + (f" ... ({len(seeds)})" if len(seeds) > 6 else "")
        lines.append(f"| {kind} | {wrong} | {detail.replace('|', '/')} | {shown} |")
    return "\n".join(lines) + "\n"


def _run(seeds: range, share: int, workers: int, out: Path) -> Iterator[Outcome]:
    """Run the seeds of one of several workers."""
    mine = seeds[share::workers]
    folder = out / f"worker-{share}"
    with Runner(folder / "home") as runner:
        for outcome in outcomes(mine, folder, Samples(folder / "samples"), runner):
            if outcome.violations:
                print(outcome.told, flush=True)
            else:
                shutil.rmtree(outcome.given.folder, ignore_errors=True)
            yield outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("inputs", type=int, nargs="?", default=300, help="number of seeds")
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seed", type=int, help="run only this seed, keep its input and show its output")
    parser.add_argument("--workers", type=int, default=1, help="number of parallel processes")
    parser.add_argument("-o", "--out", type=Path, required=True, help="new folder for failing inputs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.seed is not None:
        samples = Samples(options.out / "samples")
        with Runner(options.out / "home") as runner:
            (outcome,) = outcomes([options.seed], options.out, samples, runner)
        print(outcome.told, outcome.ran.stdout, outcome.ran.stderr, outcome.ran.traceback, sep="\n")
        sys.exit(1 if outcome.violations else 0)
    began = time.monotonic()
    seeds = range(options.first, options.first + options.inputs)
    with ThreadPoolExecutor(options.workers) as pool:
        shares = range(options.workers)
        found = pool.map(lambda n: list(_run(seeds, n, options.workers, options.out)), shares)
        text = report([outcome for some in found for outcome in some], time.monotonic() - began)
    (options.out / "report.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
