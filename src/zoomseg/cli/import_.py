"""``zoomseg import``: other programs' trained models made ZoomSeg models."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="import")
@click.argument("program", type=click.Choice(["nnunet"]))
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option("--folds", default="", metavar="LIST", help="0,1 or all [default: all that were trained].")
@click.option(
    "--lowres",
    type=click.Path(path_type=Path),
    help="Of a 3d_cascade_fullres: the folder or zip of its 3d_lowres, if that does not lie beside it.",
)
def command(program: str, sources: tuple[Path, ...], out: Path, folds: str, lowres: Path | None) -> None:
    """Make a ZoomSeg model of one that nnU-Net v2 trained: `zoomseg import nnunet SOURCE -o MODEL`.

    SOURCE is the folder that nnU-Net's training wrote, with plans.json, dataset.json and
    fold_*/checkpoint_final.pth, or its zip. Several SOURCES become one model with the labels of all: where
    two found something in the same voxel, the later one's label stays, and of a label that several have, the
    last of them decides. Several folds become one model each, which predict together; `--folds all` is the
    fold trained on all cases. Checkpoints are pickles: of what they hold, tensors and numbers are read, and
    nothing is executed. Reading them needs PyTorch; predicting with the model does not.
    """
    from zoomseg.core.extras import require

    for module in ("torch", "onnx", "onnxscript"):
        require(module, "zoomseg import")
    from zoomseg.importing.nnunet.run import import_models

    wanted = tuple(fold.strip() for fold in folds.split(",") if fold.strip()) or None
    written = import_models(sources, out, wanted, lowres)
    number = f"{len(written)} folds" if len(written) > 1 else "model"
    click.echo(f"{out} written ({number}); use it with: zoomseg predict SCAN -m {out} -o OUT")
