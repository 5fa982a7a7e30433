"""Read what ``zoomseg predict`` wrote: python read_results.py [RESULTS]"""

import json
import sys
from pathlib import Path

import pandas as pd

DEFAULTS = ("zoomseg-demo/predictions",)


def main(results: str) -> None:
    summary = pd.read_csv(Path(results) / "summary.csv")  # a row per case and organ
    found = summary[summary["volume_ml"] > 0]
    print(found.groupby("organ")["volume_ml"].agg(["count", "mean", "std", "min", "max"]).round(1))
    flagged = summary[summary["flags"].notna()]
    print(f"\n{len(flagged)} of {len(summary)} organs have a flag")
    print(flagged[["case", "organ", "volume_ml", "flags"]].to_string(index=False))

    run = json.loads((Path(results) / "run.json").read_text(encoding="utf-8"))
    done = {case: told for case, told in run["cases"].items() if told["status"] == "done"}
    seconds = pd.DataFrame({case: told["seconds"] for case, told in done.items()}).T
    print(f"\nseconds by step, with {run['recipe']} on {run['device']}")
    print(seconds.round(2).to_string())
    for case, told in run["cases"].items():
        if told["status"] == "failed":
            print(f"{case} failed: {told['error']}")


if __name__ == "__main__":
    main(*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])
