"""Segment one scan: python segment_scan.py [SCAN] [MODEL] [LABELS]"""

import sys
from pathlib import Path

import zoomseg
from zoomseg.io.scans import write_labels

DEFAULTS = (
    "zoomseg-demo/held-out/imagesTr/phantom_1000_0000.nii.gz",
    "zoomseg-demo/model",
    "labels.nii.gz",
)


def main(scan: str, model: str, out: str) -> None:
    result = zoomseg.load(model).predict(scan)
    for organ in result.summary:
        flags = ", ".join(organ.flags)
        print(f"{organ.organ:24} {organ.volume_ml:8.1f} ml  {flags}")
    # The label map lies on the scan's own grid; ``like`` copies the scan's header fields, too.
    write_labels(Path(out), result.labels, like=Path(scan))
    print(f"{out}: {len(result.schema.names)} labels, {sum(result.seconds.values()):.1f} s")


if __name__ == "__main__":
    main(*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])
