"""``zoomseg import``: other programs' trained models made ZoomSeg models."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="import")
@click.argument("program", type=click.Choice(["nnunet"]))
@click.argument("source", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Model folder to write.")
@click.option(
    "--folds", default="", metavar="LIST", help="Folds, e.g. 0,1 or all [default: all that were trained]."
)
def command(program: str, source: Path, out: Path, folds: str) -> None:
    """Convert a model trained by nnU-Net v2 into a ZoomSeg model: `zoomseg import nnunet SOURCE -o MODEL`.

    SOURCE is the folder written by nnU-Net's training, with plans.json, dataset.json and
    fold_*/checkpoint_final.pth, or a zip of it. Several folds become one model each and form an ensemble;
    `--folds all` is the fold trained on all cases. Checkpoints are pickles: only tensors and numbers are read
    from them, and nothing is executed. Reading them needs PyTorch; predicting with the model does not.
    """
    from zoomseg.core.extras import require

    for module in ("torch", "onnx", "onnxscript"):
        require(module, "zoomseg import")
    from zoomseg.importing.nnunet.run import import_model

    wanted = tuple(fold.strip() for fold in folds.split(",") if fold.strip()) or None
    written = import_model(source, out, wanted)
    number = f"{len(written)} folds" if len(written) > 1 else "model"
    click.echo(f"{out} written ({number}); use it with: zoomseg predict SCAN -m {out} -o OUT")
