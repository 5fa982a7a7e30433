"""Compare `evaluate --tolerance flare22` with the challenge's own script on the same cases.

    git clone https://github.com/JunMa11/FLARE
    uv run python benchmarks/flare_metrics.py PREDICTIONS REFERENCE --flare FLARE/FLARE22/Evaluation -o OUT

Both label maps of every case are written to OUT with the challenge's values, 1 to 13. The script is run
unchanged except for its paths, its number of digits (12 instead of 4), names that NumPy and SciPy have
removed since, and pandas, in place of which the table is written as JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from zoomseg.anatomy.organ_names import organ_words
from zoomseg.evaluation.case_matching import Pairs, find_pairs
from zoomseg.evaluation.evaluate import evaluate
from zoomseg.evaluation.result import Evaluation, mean
from zoomseg.evaluation.tolerances import FLARE22_ORGANS, FLARE22_TOLERANCES
from zoomseg.io.scans import write_array

SCRIPT = "FLARE22_DSC_NSD_Eval.py"

AT_MOST = 1e-6

BEFORE = """
import json, sys, types
import numpy, scipy.ndimage
numpy.Inf, numpy.NaN = numpy.inf, numpy.nan
scipy.ndimage.filters = scipy.ndimage.morphology = scipy.ndimage
class DataFrame(dict):
    def to_csv(self, path, index):
        numbers = {key: [v if key == "Name" else float(v) for v in own] for key, own in self.items()}
        json.dump(numbers, open(path, "w"))
sys.modules["pandas"] = types.SimpleNamespace(DataFrame=DataFrame)
"""

Scores = dict[tuple[str, str], tuple[float, float]]
"""Dice and NSD by case and organ, with the challenge's names of organs."""


def write_maps(pairs: Pairs, out: Path) -> None:
    """Write predictions and references with the values 1 to 13; organs that the data set lacks are in
    neither."""
    known = {organ_words(organ): organ for organ in pairs.organs}
    table = np.zeros(256, dtype=np.uint8)
    for value, (organ, _) in enumerate(FLARE22_ORGANS.values(), start=1):
        if organ_words(organ) in known:
            table[pairs.reference_schema.class_of(known[organ_words(organ)])] = value
    for pair in pairs.pairs:
        for folder, labels in zip(("predictions", "reference"), pairs.load(pair), strict=True):
            (out / folder).mkdir(parents=True, exist_ok=True)
            write_array(out / folder / f"{pair.id}.nii.gz", table[labels.data], labels.grid)


def theirs(flare: Path, out: Path) -> Scores:
    source = (flare / SCRIPT).read_text(encoding="utf-8")
    for placeholder, place in (
        ("path to segmentation", out / "predictions"),
        ("path to ground truth", out / "reference"),
        ("path to Results", out),
    ):
        assert source.count(f"'{placeholder}'") == 1, f"{SCRIPT} is another version: no '{placeholder}'"
        source = source.replace(f"'{placeholder}'", repr(str(place)))
    script = out / SCRIPT
    script.write_text(BEFORE + f"sys.path.insert(0, {str(flare)!r})\n" + source.replace("_i, 4)", "_i, 12)"))
    subprocess.run([sys.executable, str(script)], check=True, stdout=subprocess.DEVNULL)
    found = json.loads((out / "DSC_NSD_teamname.csv").read_text())
    names = [name.removesuffix(".nii.gz") for name in found["Name"]]
    return {
        (case, organ): (found[f"{organ}_DSC"][n], found[f"{organ}_NSD"][n])
        for n, case in enumerate(names)
        for organ in FLARE22_ORGANS
    }


def ours(evaluation: Evaluation) -> Scores:
    flare = {organ_words(organ): name for name, (organ, _) in FLARE22_ORGANS.items()}
    return {
        (case.id, flare[organ_words(score.organ)]): (score.dice, score.nsd)
        for case in evaluation.cases
        for score in case.scores
        if organ_words(score.organ) in flare
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument(
        "--flare", type=Path, required=True, help="folder with the challenge's evaluation scripts"
    )
    parser.add_argument("-o", "--out", type=Path, required=True)
    options = parser.parse_args()
    write_maps(find_pairs(options.predictions, options.reference, None, None), options.out)
    evaluation = evaluate(options.predictions, options.reference, options.out / "scores", FLARE22_TOLERANCES)
    same = ours(evaluate(options.predictions, options.reference, options.out / "at-1-mm", 1.0))
    a, b = ours(evaluation), theirs(options.flare, options.out)
    apart = max(abs(x - y) for key, own in a.items() for x, y in zip(own, b[key], strict=True))
    print(f"{len(evaluation.cases)} cases, {len(a)} scores of either kind, at most {apart:.1e} apart.")
    for name, scores in (("the challenge's script", b), ("the same maps, 1 mm for all", same)):
        dice, nsd = (mean(scores[key][n] for key in a) for n in range(2))
        print(f"Means, {name}: Dice {dice:.4f}, NSD {nsd:.4f}.")
    if not apart <= AT_MOST:
        sys.exit(f"more than {AT_MOST:g} apart")


if __name__ == "__main__":
    main()
