"""Which scans a model rejects, which cause a warning, and which it accepts as similar to its training scans.

    uv run python benchmarks/training_domain.py MODEL SCANS... [--trained-on DATASET]

MODEL is a model's folder or name, SCANS are files or folders. With --trained-on, every case of the data set
that the model was trained on is compared with the description of the other cases. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path

from zoomseg.core.case import Case
from zoomseg.core.errors import ScanError
from zoomseg.datasets.layouts import open_dataset
from zoomseg.inference import domain_similarity
from zoomseg.io import bundle
from zoomseg.io.scans import find_scans, read_scan
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.planning import training_domain
from zoomseg.recipe.spec import IntensitySpec

Compared = tuple[TrainingDomain, Case]


def row(name: str, compared: Iterable[Compared], intensity: IntensitySpec) -> str:
    """A line of the table: numbers of rejected scans and of warnings, range of the confidence factor."""
    refused, warned, factors = 0, 0, []
    for known, case in compared:
        try:
            found = domain_similarity.compare(known, case, intensity)
        except ScanError:
            refused += 1
            continue
        warned += bool(found.warnings)
        factors.append(found.confidence_factor)
    span = f"{min(factors):.2f} to {max(factors):.2f}" if factors else "-"
    return f"| {name} | {refused + len(factors)} | {refused} | {warned} | {span} |"


def left_out(dataset: Path, model: bundle.Bundle) -> Iterator[Compared]:
    """Every case, with the description of all other cases."""
    data, intensity = open_dataset(dataset), model.recipe.intensity
    seen = [training_domain.sample(data.load(case)) for case in data.cases]
    for n, case in enumerate(data.cases):
        others = seen[:n] + seen[n + 1 :]
        yield (
            training_domain.describe(others, intensity, model.channel_names, model.schema.names),
            data.load(case),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("scans", type=Path, nargs="*")
    parser.add_argument("--trained-on", type=Path)
    options = parser.parse_args()
    model = bundle.load(options.model)
    if model.domain is None:
        raise SystemExit(f"{options.model} does not say what its training scans were like")
    intensity = model.recipe.intensity
    print("| scans | number | refused | warned of | confidence factor |\n|---|---:|---:|---:|---|")
    if options.trained_on:
        print(
            row(f"{options.trained_on.name}, each left out", left_out(options.trained_on, model), intensity)
        )
    for path in options.scans:
        cases = ((model.domain, read_scan(scan)) for scan in find_scans(path))
        print(row(path.parent.name if path.name == "imagesTr" else path.name, cases, intensity), flush=True)


if __name__ == "__main__":
    main()
