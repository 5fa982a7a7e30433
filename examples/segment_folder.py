"""Segment every scan of a folder: python segment_folder.py [FOLDER] [MODEL] [OUT]

``zoomseg predict`` does this and more: it reads, computes and writes at the same time. This is for who needs
something done with each result. Scans have one channel. The exit code is that of ``zoomseg predict``: 1 if
some scans failed, 2 if all did.
"""

import sys
from pathlib import Path

import zoomseg
from zoomseg.core.errors import OutputError, ZoomSegError
from zoomseg.io.scans import find_scans, write_labels

DEFAULTS = ("zoomseg-demo/held-out/imagesTr", "zoomseg-demo/model", "labels")


def main(folder: str, model: str, out: str) -> int:
    loaded = zoomseg.load(model)  # once for all
    Path(out).mkdir(parents=True, exist_ok=True)
    scans, failed = find_scans(Path(folder)), 0
    for scan in scans:
        try:
            result = loaded.predict(scan.paths[0])
            write_labels(Path(out) / f"{scan.id}.nii.gz", result.labels, like=scan.paths[0])
        except OutputError:
            raise  # a full disk is full for the next scan, too
        except ZoomSegError as error:  # one line: what came, what is allowed, what to do next
            failed += 1
            print(f"{scan.id}: {error}")
        else:
            missing = [organ.organ for organ in result.summary if "missing" in organ.flags]
            print(f"{scan.id}: done" + (f", without {', '.join(missing)}" if missing else ""))
    if not failed:
        return 0
    return 1 if failed < len(scans) else 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :]))
