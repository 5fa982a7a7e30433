"""The command of a package: ``python FILE.zip SCAN.nii.gz -o LABELS.nii.gz``."""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from zoomseg.anatomy.measurements import measure
from zoomseg.anatomy.plausibility import plausibility_flags, position_notes
from zoomseg.backends.compilers import COMPILERS
from zoomseg.core.errors import INTERRUPTED, ModelError, OutputError, ScanError, ZoomSegError, quoted
from zoomseg.inference.load import PredictionSettings, load_predictor
from zoomseg.inference.memory_limits import parse_bytes
from zoomseg.inference.predictor import Predictor
from zoomseg.io import bundle
from zoomseg.io.files import out_of_memory, reason_of, same_file, why, writing
from zoomseg.io.scans import ScanInput, read_scan, reading_bytes, scan_name, scan_suffix, write_labels
from zoomseg.pipeline.cascade import Prediction

MODEL, CHECKSUM = "model", "model.sha256"
MANIFEST = f"{MODEL}/{bundle.MANIFEST}"
"""Names in a package: the model's folder, its manifest, and the manifest's SHA-256. The manifest contains
those of the other files."""

MEMBER = re.compile(r"model/(model\.json|README\.md|weights/[a-z][a-z0-9_-]*\.(safetensors|onnx))")
"""Files of a model. Nothing else is unpacked, so that nothing is written outside the folder."""

SUFFIXES = (".nii.gz", ".nii")


def main(archive: Path, arguments: Sequence[str]) -> int:
    """Segment one scan; the exit code: 0 done, 2 wrong use or unreadable input (one line on stderr)."""
    options = _parser(archive).parse_args(arguments)
    scans, out = tuple(Path(scan) for scan in options.scans), Path(options.out)
    try:
        run(archive, scans, out, options.engine, options.max_ram, options.any_scan)
    except ZoomSegError as error:
        print(f"{archive.name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{archive.name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:  # of a runtime, or a bug of ours
        more = "the scan does not fit in memory; use a machine with more memory"
        print(f"{archive.name}: {more if out_of_memory(error) else why(error)}", file=sys.stderr)
        return ZoomSegError.exit_code
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
        choices=("auto", *COMPILERS),
        default="auto",
        help="what computes the networks (default: openvino if it is installed, else onnxruntime)",
    )
    parser.add_argument(
        "--max-ram",
        metavar="SIZE",
        help="stay below so much memory, e.g. 4G, by smaller tiles (default: below what is free)",
    )
    parser.add_argument(
        "--any-scan",
        action="store_true",
        help="also segment a scan that clearly differs from the training scans",
    )
    return parser


def run(
    archive: Path, scans: tuple[Path, ...], out: Path, engine: str, max_ram: str | None, any_scan: bool
) -> None:
    """Read, segment, write.

    Raises:
        ZoomSegError: the package is damaged, the scan cannot be used or the result not be written.
    """
    started = time.perf_counter()
    _check_names(scans, out)
    limit: int | Literal["free"] = "free" if max_ram is None else parse_bytes(max_ram)
    # On disk, as runtimes read a graph's weights from the file beside it; not needed after compilation.
    with tempfile.TemporaryDirectory(prefix="zoomseg-", ignore_cleanup_errors=True) as room:
        folder = unpacked(archive, Path(room))
        predictor = load_predictor([folder], "cpu", PredictionSettings(engine, limit, any_scan=any_scan))
    found = _segmented(predictor, scans)
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    write_labels(out, found.labels, like=scans[0])
    seconds = time.perf_counter() - started
    print(f"{out} written in {seconds:.1f} s ({predictor.backend}). For research, not for diagnosis.")


def _check_names(scans: tuple[Path, ...], out: Path) -> None:
    """Refuse files that are not NIfTI, or invalid output paths, before anything is computed."""
    for scan in scans:
        if not _is_nifti(scan):
            raise ScanError(
                f"{scan}: a package reads {' and '.join(SUFFIXES)} files; 'zoomseg predict' reads others"
            )
    if not _is_nifti(out):
        raise OutputError(f"{out}: cannot write this format; allowed are {' and '.join(SUFFIXES)}")
    if not out.parent.is_dir():
        raise OutputError(f"{out}: there is no folder {out.parent}; create it first")
    if any(same_file(out, scan) for scan in scans):
        raise OutputError(f"{out}: is the scan itself; choose another file for the label map")


def _is_nifti(path: Path) -> bool:
    return scan_suffix(path) in SUFFIXES


def unpacked(archive: Path, room: Path) -> Path:
    """The folder of a package's model, written to the folder ``room``. Only files of a model are unpacked,
    and only if unchanged since the export.

    Raises:
        ModelError: not a package, or damaged.
        OutputError: there is not enough space.
    """
    folder = room / archive.name
    try:
        with zipfile.ZipFile(archive) as files:
            _check_manifest(files)
            for entry in files.infolist():
                if MEMBER.fullmatch(entry.filename):
                    _unpack(files, entry, folder / entry.filename.removeprefix(f"{MODEL}/"))
    except (MemoryError, OutputError):
        raise
    except Exception as error:  # on hostile bytes, zipfile may raise many exceptions
        raise ModelError(
            f"package {archive} is damaged ({quoted(reason_of(error))}); export it again"
        ) from error
    return folder


def _check_manifest(files: zipfile.ZipFile) -> None:
    expected = files.read(CHECKSUM).decode().partition(" ")[0]
    if hashlib.sha256(files.read(MANIFEST)).hexdigest() != expected:
        raise ModelError(f"{MANIFEST} differs from what was exported")


def _unpack(files: zipfile.ZipFile, entry: zipfile.ZipInfo, target: Path) -> None:
    if entry.compress_type != zipfile.ZIP_STORED:  # unpacked files are not larger than the package
        raise ModelError(f"{entry.filename} is compressed, which is not allowed")
    with files.open(entry) as content, writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as file:
            shutil.copyfileobj(content, file)


def _segmented(predictor: Predictor, files: tuple[Path, ...]) -> Prediction:
    """The steps that ``inference.batch`` applies to each scan."""
    scan, channels_last = ScanInput(scan_name(files[0]), files), predictor.channels > 1
    predictor.admit(*reading_bytes(scan, channels_last), keep=False)
    case = read_scan(scan, channels_last)
    found = predictor.predict(case, keep=False)
    organs = measure(case.id, found.labels, case.image, found.schema.names)
    placed = position_notes(plausibility_flags(found.schema, organs))
    return replace(found, notes=(*found.notes, *placed))
