"""``zoomseg export``: a model as one file that runs without ZoomSeg."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The zip file to write.")
@click.option("--half", is_flag=True, help="Store the weights as float16: half the size.")
def command(model: Path, out: Path, half: bool) -> None:
    """Write the model folder MODEL as one zip that segments scans without ZoomSeg and without PyTorch.

    The zip holds the model, and those modules of ZoomSeg that predict with it. `python FILE.zip
    SCAN.nii.gz -o LABELS.nii.gz` runs it wherever a few libraries are installed: the command names them, as
    does README.txt in the zip. A model without ONNX graphs gets them first, which takes PyTorch, as does
    --half. Recipes with atlas priors cannot be exported.
    """
    from zoomseg.core.interrupts import ending
    from zoomseg.export.package import export, pip_line

    with ending(lambda: f"{out} was not written"):
        export(model, out, half)
    size = f"{out.stat().st_size / 1e6:.1f} MB"
    click.echo(f"{out} written ({size}); it needs Python 3.11 or newer, and: {pip_line()}")
