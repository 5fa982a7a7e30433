"""``zoomseg import``: convert models of other programs to ZoomSeg models."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="import")
@click.argument("program", type=click.Choice(["nnunet", "totalsegmentator"]))
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option(
    "--folds", default="", metavar="LIST", help="Folds, e.g. 0,1 or all [default: all that were trained]."
)
@click.option(
    "--lowres",
    type=click.Path(path_type=Path),
    help="For a 3d_cascade_fullres: folder or zip of its 3d_lowres, if it is not next to it.",
)
@click.option(
    "--task",
    metavar="TASK",
    help="Task of TotalSegmentator: total, total_fast, total_mr, body and others [default: total].",
)
@click.option(
    "--body",
    is_flag=True,
    help="For CT: predict inside the body only, not in the air around it; everything outside is background.",
)
@click.option(
    "--configuration",
    metavar="NAME",
    help="Which model is imported if SOURCE holds several, e.g. 3d_fullres.",
)
@click.option(
    "--orientation",
    metavar="AXES",
    help="Directions of the axes of all training files, e.g. LAS, if nnU-Net does not reorient them: scans "
    "with other axes, such as DICOM (LPS), are then brought into this orientation.",
)
def command(
    program: str,
    sources: tuple[Path, ...],
    out: Path,
    folds: str,
    lowres: Path | None,
    task: str | None,
    body: bool,
    configuration: str | None,
    orientation: str | None,
) -> None:
    """Convert a model trained by nnU-Net v2 into a ZoomSeg model: `zoomseg import nnunet SOURCE -o MODEL`.

    SOURCE is the folder written by nnU-Net's training, with plans.json, dataset.json and
    fold_*/checkpoint_final.pth, or a zip of it. Several SOURCES become one model with the labels of all: in
    voxels that more than one of them labels, the label of the later one is kept, and a label that several
    have is predicted by the last of them. Several folds become one model each and form an ensemble;
    `--folds all` is the fold trained on all cases. Checkpoints are pickles: only tensors and numbers are read
    from them, and nothing is executed. Reading them needs PyTorch; predicting with the model does not.

    `zoomseg import totalsegmentator FOLDER -o MODEL` converts the weights that TotalSegmentator v2 has stored
    on this machine, for example in ~/.totalsegmentator; nothing is downloaded.
    """
    from zoomseg.core.extras import require

    for module in ("torch", "onnx", "onnxscript"):
        require(module, "zoomseg import")
    if program == "totalsegmentator":
        from zoomseg.importing.totalsegmentator.run import import_task

        if len(sources) > 1 or folds or lowres:
            raise click.UsageError("of TotalSegmentator, one folder of weights is read, and its one fold")
        if orientation or configuration:
            raise click.UsageError("--orientation and --configuration are for models of nnU-Net")
        written: tuple[Path, ...] = (import_task(sources[0], out, task or "total", body),)
    else:
        from zoomseg.importing.nnunet.run import import_models

        if task is not None:
            raise click.UsageError("--task is for models of TotalSegmentator")
        wanted = tuple(fold.strip() for fold in folds.split(",") if fold.strip()) or None
        written = import_models(
            sources, out, wanted, lowres, body, orientation, configuration=configuration, on_warning=_warn
        )
    number = f"{len(written)} folds" if len(written) > 1 else "model"
    click.echo(f"{out} written ({number}); use it with: zoomseg predict SCAN -m {out} -o OUT")


def _warn(message: str) -> None:
    click.echo(f"note: {message}", err=True)
