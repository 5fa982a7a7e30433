"""Computing time and accuracy of atlas priors: cases segmented by the other cases of their data set.

    uv run python benchmarks/atlas.py DATASET CASE [CASE ...] -o OUT

Each CASE is a target, and the other cases are the atlases, with the defaults of `AtlasSpec` (ten atlases,
4 mm, affine and deformable registration). Writes OUT/table.md: for each method of label fusion, the Dice per
organ of the most probable labels, on the atlas grid and against the reference resampled to it; and for each
step, wall-clock and processor seconds, which agree unless other processes use the processor.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from zoomseg.atlas.library import AtlasLibrary
from zoomseg.core.resample import resample_labels
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.pipeline import stage_input
from zoomseg.recipe.load import load
from zoomseg.recipe.spec import (
    AtlasFusionSpec,
    AtlasSpec,
    IntensityFusion,
    MajorityFusion,
    PatchFusion,
    Recipe,
)

FUSIONS: tuple[AtlasFusionSpec, ...] = (MajorityFusion(), IntensityFusion(), PatchFusion())
"""The cache is empty for the first one, whose time therefore includes registration."""


@dataclass(frozen=True)
class Seconds:
    clock: float
    processor: float

    @classmethod
    def now(cls) -> Seconds:
        return cls(time.perf_counter(), time.process_time())

    def __sub__(self, earlier: Seconds) -> Seconds:
        return Seconds(self.clock - earlier.clock, self.processor - earlier.processor)


def dice(
    found: npt.NDArray[np.intp], reference: npt.NDArray[np.uint8], schema_names: tuple[str, ...]
) -> dict[str, float]:
    """Dice per organ; organs that are missing from the reference are omitted."""
    out = {}
    for c, name in enumerate(schema_names, start=1):
        a, b = found == c, reference == c
        if b.any():
            out[name] = float(2 * (a & b).sum() / (a.sum() + b.sum()))
    return out


def cases(
    dataset: Dataset, recipe: Recipe, targets: dict[str, stage_input.PreparedScan | None]
) -> Iterator[tuple[str, Volume, LabelMap]]:
    """The cases from which the library is built. One scan at a time is in memory, except for the targets,
    which are stored in ``targets``."""
    for files in dataset.cases:
        scan = stage_input.prepare(dataset.load(files), recipe)
        if scan.id in targets:
            targets[scan.id] = scan
        assert isinstance(scan.labels, LabelMap)
        yield scan.id, scan.image, scan.labels


def run(
    target: stage_input.PreparedScan, library: AtlasLibrary
) -> tuple[dict[str, dict[str, float]], dict[str, Seconds]]:
    """Dice per fusion method and organ, and seconds per step."""
    scores: dict[str, dict[str, float]] = {}
    seconds: dict[str, Seconds] = {}
    assert isinstance(target.labels, LabelMap)
    with tempfile.TemporaryDirectory() as cache:
        for fusion in FUSIONS:
            spec = library.spec.model_copy(update={"fusion": fusion})
            variant = AtlasLibrary(spec, library.schema, library.atlases)
            start = Seconds.now()
            prior = variant.prior(target.image, exclude=target.id, cache=Path(cache), on_warning=print)
            elapsed = Seconds.now() - start
            if not seconds:
                seconds[f"registration of {len(variant.chosen(target.id))} atlases"] = elapsed
            else:
                seconds[f"{fusion.kind} fusion, registered atlases from the cache"] = elapsed
            reference = resample_labels(target.labels, prior.grid).data
            scores[fusion.kind] = dice(prior.probabilities.argmax(axis=0), reference, prior.labels)
    return scores, seconds


def table(names: tuple[str, ...], results: Mapping[str, list[dict[str, float]]]) -> list[str]:
    lines = [f"| organ | {' | '.join(results)} |", "|---|" + "---:|" * len(results)]
    for name in (*names, "mean"):
        row: list[str] = []
        for cases in results.values():
            values = [float(np.mean([*c.values()])) if name == "mean" else c.get(name, np.nan) for c in cases]
            row.append(f"{np.nanmean(values):.3f}" if not np.isnan(values).all() else "")
        lines.append(f"| {name} | {' | '.join(row)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("targets", nargs="+", metavar="CASE")
    parser.add_argument(
        "-r", "--recipe", default="valindria2018-small-organs", help="recipe with the intensity normalisation"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    recipe = load(options.recipe)
    assert isinstance(recipe, Recipe)
    targets: dict[str, stage_input.PreparedScan | None] = dict.fromkeys(options.targets)
    library = AtlasLibrary.build(AtlasSpec(), cases(open_dataset(options.dataset), recipe, targets))
    results: dict[str, list[dict[str, float]]] = {fusion.kind: [] for fusion in FUSIONS}
    seconds: dict[str, list[Seconds]] = {}
    for id, target in targets.items():
        if target is None:
            parser.error(f"{options.dataset} has no case '{id}'")
        scores, spent = run(target, library)
        for kind, score in scores.items():
            results[kind].append(score)
        for step, value in spent.items():
            seconds.setdefault(step, []).append(value)
    lines = table(library.schema.names, results)
    lines += ["", "| step | seconds a scan | of the processor |", "|---|---:|---:|"]
    for step, values in seconds.items():
        clock = float(np.mean([v.clock for v in values]))
        processor = float(np.mean([v.processor for v in values]))
        lines.append(f"| {step} | {clock:.1f} | {processor:.1f} |")
    text = "\n".join(lines) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "table.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
