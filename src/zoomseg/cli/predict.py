"""``zoomseg predict``: label maps for scans."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from zoomseg.cli.options import models_option

if TYPE_CHECKING:
    from zoomseg.cluster.predict import Request
    from zoomseg.inference.summary import OrganRow
    from zoomseg.io.scans import ScanInput

_PART = re.compile(r"(\d{1,9})/(\d{1,9})")

REVIEWED_FIRST = 3
"""Number of organs with the lowest confidence that are named at the end of a batch."""


def parse_part(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """``3/8`` -> ``(3, 8)``."""
    if value is None:
        return None
    match = _PART.fullmatch(value)
    number, parts = (int(n) for n in match.groups()) if match else (0, 0)
    if not 1 <= number <= parts:
        raise click.BadParameter(f"got '{value}', expected a part such as 3/8, counted from 1", ctx, param)
    return number, parts


@click.command(name="predict")
@click.argument("scans", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder for the results.")
@models_option("Several models form an ensemble; the folder of a cross-validation denotes all its folds.")
@click.option("--organs", help="Organs to write, separated by commas [default: all].")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda or cuda:N.")
@click.option(
    "--backend",
    default="auto",
    show_default=True,
    help="Runtime for the networks: auto (the fastest available), openvino, onnxruntime or torch.",
)
@click.option(
    "--max-ram",
    metavar="SIZE",
    help="Memory limit, e.g. 4G, met by smaller tiles [default: what is free].",
)
@click.option("--max-vram", metavar="SIZE", help="Limit for GPU memory.")
@click.option(
    "--overlap",
    type=click.FloatRange(0, 1, max_open=True),
    metavar="FRACTION",
    help="Overlap of neighbouring tiles, less than the model's: 0.25 computes about a third of the tiles of "
    "0.5, with slightly different labels at tile borders.",
)
@click.option(
    "--mirror",
    is_flag=True,
    help="Also predict the mirror images of each tile, along the axes that the model was trained with, and "
    "average: up to 8 times the time for slightly more accurate labels.",
)
@click.option(
    "--keep-stages",
    is_flag=True,
    help="Also write the label map and region of every stage to OUT/stages, so that `evaluate` can attribute "
    "errors. Needs more memory.",
)
@click.option("--dicom-seg", is_flag=True, help="For DICOM series, also write <case>.seg.dcm: DICOM SEG.")
@click.option("--rtstruct", is_flag=True, help="For DICOM series, also write <case>.rtstruct.dcm: contours.")
@click.option(
    "--seg-nrrd",
    is_flag=True,
    help="Also write slicer/<case>.seg.nrrd: a segmentation for 3D Slicer, with names and colours.",
)
@click.option(
    "--probabilities",
    metavar="ORGAN,...",
    help="Also write probabilities/<case>-<organ>.nii.gz: the probability of these organs (or all) "
    "at the scan's resolution, linearly interpolated. Needs more memory.",
)
@click.option(
    "--any-scan",
    is_flag=True,
    help="Also segment scans that clearly differ from the training scans (another modality or unit), with a "
    "warning and a confidence of 0.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Skip scans whose results in OUT are complete and were computed from the same scan by the same "
    "model.",
)
@click.option(
    "--part",
    metavar="I/N",
    callback=parse_part,
    help="Only the I-th of N parts of SCANS, for jobs that share OUT; `zoomseg gather OUT` then writes the "
    "summaries.",
)
@click.option(
    "--cluster",
    metavar="ADDRESS",
    help="Compute on a Dask cluster: its scheduler's address or file, or local:N for N workers here.",
)
@click.option(
    "--ship",
    is_flag=True,
    help="With --cluster: send model and scans to the workers, and results back; without it, all machines "
    "must have access to the same folders.",
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Show the progress of tiles, then seconds, FLOPs and memory."
)
def command(
    scans: tuple[Path, ...],
    out: Path,
    models: tuple[str, ...],
    organs: str | None,
    device: str,
    backend: str,
    max_ram: str | None,
    max_vram: str | None,
    overlap: float | None,
    mirror: bool,
    keep_stages: bool,
    dicom_seg: bool,
    rtstruct: bool,
    seg_nrrd: bool,
    probabilities: str | None,
    any_scan: bool,
    resume: bool,
    part: tuple[int, int] | None,
    cluster: str | None,
    ship: bool,
    verbose: bool,
) -> int:
    """Segment SCANS: NIfTI, NRRD or MHA files, folders of those, or folders and zips of DICOM series.

    Writes <case>.nii.gz on each scan's own grid, summary.csv (one row per case and organ), review.csv (the
    same rows, lowest confidence first), report.html (pictures of each scan and organ), run.json (seconds per
    step, tiles computed and skipped, FLOPs, peak memory), and names and colours of the values for 3D Slicer
    and ITK-SNAP (labels.ctbl, labels.itksnap.txt). A scan that fails is reported, the others are processed,
    and the exit code is 1 (2 if none is left). While one scan is computed, the next is read and the previous
    one is written, unless memory is limited. A scan that does not fit into memory is rejected, with the
    amount that it needs.
    """
    from rich.console import Console

    from zoomseg.cli.prediction_display import PredictionDisplay
    from zoomseg.core.extras import require
    from zoomseg.core.interrupts import interruptible
    from zoomseg.inference import earlier_results
    from zoomseg.inference.batch import ExtraOutputs
    from zoomseg.inference.load import PredictionSettings, load_predictor
    from zoomseg.inference.memory_limits import parse_bytes
    from zoomseg.inference.outputs import ALL, Part, segment_to_folder
    from zoomseg.io.dicom.write.results import DicomResult, require_series

    if cluster is None and ship:
        raise click.UsageError("--ship is for --cluster; give both")
    if cluster is not None and part is not None:
        raise click.UsageError("--part and --cluster both share the scans out; give one")
    if cluster is not None and verbose:
        raise click.UsageError(
            "-v shows the steps of this process, and --cluster computes in others; give one"
        )
    found, notes = _found(scans if cluster is None else [path.absolute() for path in scans])
    notes += earlier_results.notes_on(out)
    kinds = [(DicomResult.SEG, dicom_seg), (DicomResult.RTSTRUCT, rtstruct)]
    dicom = tuple(kind for kind, asked in kinds if asked)
    require_series(found, dicom)
    organ_names = None if organs is None else _listed(organs)
    map_names = () if probabilities is None else _listed(probabilities)
    ram: int | Literal["free"] = "free" if max_ram is None else parse_bytes(max_ram)
    vram = None if max_vram is None else parse_bytes(max_vram)
    settings = PredictionSettings(
        backend=backend,
        max_ram=ram,
        max_vram=vram,
        any_scan=any_scan,
        overlap=overlap,
        mirror=mirror,
    )
    if cluster is not None:
        require("distributed", "predict --cluster")
        from zoomseg.cluster.predict import Request

        extra = ExtraOutputs(keep_stages, dicom, seg_nrrd)
        request = Request(
            models,
            organs=organ_names,
            probabilities=map_names,
            extra=extra,
            device=device,
            settings=settings,
            ship=ship,
            resume=resume,
        )
        return _on_cluster(found, out, cluster, request, notes)
    mine = ALL if part is None else Part(*part)
    wanted = len(mine.of(found))
    display = PredictionDisplay(Console(stderr=True), wanted, verbose)
    predictor = load_predictor(
        models, device, settings, on_warning=display.warn, on_registration=display.register
    )
    select = predictor.bundle.schema.select
    chosen = None if organ_names is None else select(organ_names)
    maps = select(map_names)
    rows: list[OrganRow] = []
    with display, interruptible(lambda: f"{display.finished} of {wanted} scans done, in {out}"):
        for note in notes:
            display.warn(note)
        # One scan after the other with a memory limit: two overlapping ones would both have to fit.
        ahead = max_ram is None and predictor.limits.vram is None
        failed = segment_to_folder(
            found,
            out,
            predictor,
            chosen,
            on_result=display.show_result,
            on_progress=display.show_progress,
            ahead=ahead,
            extra=ExtraOutputs(keep_stages, dicom, seg_nrrd, maps),
            on_organs=rows.extend,
            notes=notes,
            resume=resume,
            part=mine,
            on_skipped=display.leave_out,
        )
    written = wanted - len(failed)
    click.echo(f"{written} of {wanted} scans written to {out}{_before(display.left_out)}")
    if part is not None:
        click.echo(f"once all parts are done: zoomseg gather {out}")
    elif written - display.left_out > 1:
        say_least_certain(rows)
    if not failed:
        return 0
    return 1 if written else 2


def _on_cluster(
    found: Sequence[ScanInput], out: Path, address: str, request: Request, notes: Sequence[str]
) -> int:
    from rich.console import Console

    from zoomseg.cli.cluster_display import ClusterDisplay
    from zoomseg.cluster.predict import predict
    from zoomseg.core.interrupts import interruptible

    display = ClusterDisplay(Console(stderr=True), len(found))
    with display, interruptible(lambda: f"{display.finished} of {len(found)} scans done, in {out}"):
        for note in notes:
            display.warn(note)
        outcome = predict(found, out, address, request, display, notes)
    written = len(found) - outcome.failed
    click.echo(f"{written} of {len(found)} scans written to {out}{_before(outcome.left_out)}")
    if outcome.missing:
        gone = f"{outcome.missing} of them are not there"
        click.echo(f"{gone}: check that the workers have access to this folder, or use --ship", err=True)
        return 2
    if written - outcome.left_out > 1:
        say_least_certain(outcome.found.rows)
    if not outcome.failed:
        return 0
    return 1 if written else 2


def _before(scans: int) -> str:
    return f", {scans} of them by earlier runs" if scans else ""


def _found(paths: Iterable[Path]) -> tuple[list[ScanInput], list[str]]:
    """The scans in ``paths``, with names that differ on every disk, and notes on other files there."""
    from zoomseg.core.errors import ScanError
    from zoomseg.io.files import one_file
    from zoomseg.io.scans import find_scans

    notes: list[str] = []
    found = [scan for path in paths for scan in find_scans(path, notes.append)]
    alike = one_file(scan.id for scan in found)
    if alike is not None:
        one, other = alike
        both = f"'{one}' and '{other}', which some disks treat as one name"
        names = both if one != other else f"'{one}'"
        raise ScanError(f"two scans are named {names}; their results would overwrite each other")
    return found, notes


def say_least_certain(rows: Sequence[OrganRow]) -> None:
    """Name the organs to be inspected first."""
    from zoomseg.core.errors import quoted
    from zoomseg.inference.summary import least_certain

    for row in least_certain(rows)[:REVIEWED_FIRST]:
        click.echo(f"review first: {quoted(row.case)}, {row.organ}: confidence {row.confidence:.2f}")


def _listed(organs: str) -> tuple[str, ...] | str:
    """Names separated by commas, or all."""
    return "all" if organs.strip() == "all" else tuple(organ.strip() for organ in organs.split(","))
