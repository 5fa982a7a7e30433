"""Score and compare two models: python compare_models.py [REFERENCES] [FIRST] [OTHER] [OUT]

FIRST and OTHER are folders of label maps that two models gave to the same scans, REFERENCES a data set or a
folder of label maps.
"""

import sys
from pathlib import Path

import zoomseg
from zoomseg.evaluation.comparison import compare_folders

DEFAULTS = ("zoomseg-demo/held-out", "zoomseg-demo/predictions", "labels", "comparison")


def main(references: str, first: str, other: str, out: str) -> None:
    scores = [Path(out) / name for name in ("first", "other")]
    for predictions, folder in zip((first, other), scores, strict=True):
        evaluation = zoomseg.evaluate(predictions, references, folder)
        print(f"{predictions}: Dice {evaluation.mean['dice']:.3f}, NSD {evaluation.mean['nsd']:.3f}")
    (comparison,) = compare_folders(scores, Path(out))
    for row in comparison.organs:
        interval = f"[{row.low:+.3f}, {row.high:+.3f}]"
        print(f"{row.organ:24} {row.difference:+.3f} {interval}  p (Holm) {row.p_holm:.3f}")
    print(comparison.finding)


if __name__ == "__main__":
    main(*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])
