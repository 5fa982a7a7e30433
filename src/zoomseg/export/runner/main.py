"""The command of a package: ``python FILE.zip SCAN.nii.gz -o LABELS.nii.gz``."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from zoomseg.core.errors import INTERRUPTED, ZoomSegError

LIBRARIES = ("numpy", "scipy", "nibabel")


def main(archive: Path, arguments: Sequence[str]) -> int:
    """Segment one scan; the exit code: 0 done, 2 wrong use or unreadable input (one line on stderr)."""
    options = _parser(archive).parse_args(arguments)
    try:
        run(archive, [Path(scan) for scan in options.scans], Path(options.out), options.engine)
    except ZoomSegError as error:
        print(f"{archive.name}: {error}", file=sys.stderr)
        return error.exit_code
    except MemoryError:
        print(f"{archive.name}: the scan does not fit in memory; run it on a larger machine", file=sys.stderr)
        return ZoomSegError.exit_code
    except KeyboardInterrupt:
        print(f"{archive.name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _parser(archive: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python {archive.name}",
        description="Segment a scan. Research software: not a medical device, not for diagnosis.",
    )
    parser.add_argument(
        "scans", nargs="+", metavar="SCAN", help="NIfTI file; several: one per channel, in order"
    )
    parser.add_argument("-o", "--out", required=True, metavar="LABELS", help="NIfTI file for the label map")
    parser.add_argument(
        "--engine",
        choices=("auto", "openvino", "onnxruntime"),
        default="auto",
        help="what computes the networks (default: openvino if it is installed, else onnxruntime)",
    )
    return parser


def run(archive: Path, scans: Sequence[Path], out: Path, engine: str) -> None:
    """Read, segment, write.

    Raises:
        ZoomSegError: a library is missing, the scan cannot be used or the result not be written.
    """
    missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
    if missing:
        raise ZoomSegError(f"{', '.join(missing)} is needed; install: pip install {' '.join(missing)}")
    # Only now, so that what is missing is said in one line.
    from zoomseg.backends.compilers import choose, load
    from zoomseg.export.runner import pipeline, predict, scan

    def tell(note: str) -> None:
        print(f"note: {note}", file=sys.stderr)

    started = time.perf_counter()
    chosen = choose(engine)
    scan.check_out(out)
    loaded = scan.read(scans)
    for note in loaded.notes:
        tell(note)
    parts, models = pipeline.read(archive)
    networks = {stage: load(chosen, model) for stage, model in models.items()}
    classes = predict.segment(parts, networks, loaded.voxels, loaded.grid, tell)
    scan.write(out, parts.schema.decode(classes), loaded)
    print(
        f"{out} written in {time.perf_counter() - started:.1f} s ({chosen}). For research, not for diagnosis."
    )
