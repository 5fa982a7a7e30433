"""GPU utilisation during training: trains the default recipe for some minutes and queries the driver.

    python benchmarks/train/utilisation.py DATASET -o OUT --minutes 5

Writes OUT/table.md: the share of time in which the GPU computed, and its allocated memory, between the first
steps and the last, as reported by nvidia-smi. OUT/model is the trained model.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trained import describe

PERIOD_SECONDS = 0.5
QUERY = ("nvidia-smi", "--query-gpu=utilization.gpu,memory.used,name", "--format=csv,noheader,nounits")


@dataclass(frozen=True)
class Sample:
    """State of one GPU: the share of the last sampling period in which a kernel ran, and memory in MiB."""

    percent: float
    memory_mib: float
    name: str


def parsed(line: str) -> Sample:
    """Parse a line of nvidia-smi's output."""
    percent, memory, name = line.split(", ", 2)
    return Sample(float(percent), float(memory), name.strip())


def table(samples: Sequence[Sample], facts: dict[str, object], minutes: float) -> str:
    """The results as a Markdown table."""
    busy = [sample.percent for sample in samples]
    rows = {
        "GPU": samples[0].name,
        "minutes": f"{minutes:g}",
        "steps": f"{facts['steps']:,}",
        "utilisation, mean of samples": f"{statistics.mean(busy):.0f} %",
        "utilisation, lowest tenth": f"{statistics.quantiles(busy, n=10)[0]:.0f} %",
        "memory, MiB": f"{max(sample.memory_mib for sample in samples):,.0f}",
        "samples": str(len(samples)),
        "plan": str(facts["plan"]),
    }
    return "| | |\n|---|---|\n" + "".join(f"| {name} | {value} |\n" for name, value in rows.items())


def watched(command: Sequence[str], steps: Path) -> list[Sample]:
    """Sample the GPU while ``command`` runs, starting when it has logged its first steps."""
    samples: list[Sample] = []
    with subprocess.Popen(command) as training:
        while training.poll() is None:
            time.sleep(PERIOD_SECONDS)
            if steps.exists() and len(steps.read_bytes().splitlines()) > 1:
                answer = subprocess.run(QUERY, capture_output=True, text=True, check=True).stdout
                samples.append(parsed(answer.splitlines()[0]))
    if training.returncode != 0:
        sys.exit(training.returncode)
    return samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    model = options.out / "model"
    command = [sys.executable, "-m", "zoomseg", "train", str(options.dataset), "-o", str(model)]
    command += ["--time-budget", f"{60 * options.minutes:g}s", "--device", options.device]
    samples = watched(command, model / "training" / "metrics.csv")
    if len(samples) < 2:
        parser.error(f"only {len(samples)} samples between the first step and the last; give more minutes")
    text = table(samples, describe(model), options.minutes)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
