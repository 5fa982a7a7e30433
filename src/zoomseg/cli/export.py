"""``zoomseg export``: a model as a single file that runs without ZoomSeg."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="export")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The zip file to write.")
@click.option("--half", is_flag=True, help="Store weights as float16, which halves the size.")
def command(model: Path, out: Path, half: bool) -> None:
    """Export the model folder MODEL as a zip that segments scans without ZoomSeg and without PyTorch.

    The zip contains the model and those modules of ZoomSeg that predict with it. Run it with `python FILE.zip
    SCAN.nii.gz -o LABELS.nii.gz` where a few libraries are installed, which this command and README.txt in
    the zip list. Models without ONNX graphs, and --half, need PyTorch for the export. Recipes with atlas
    priors cannot be exported.
    """
    from zoomseg.core.interrupts import interruptible
    from zoomseg.core.memory import UNITS
    from zoomseg.export.package import export, pip_line

    with interruptible(lambda: f"{out} was not written"):
        export(model, out, half)
    size = f"{out.stat().st_size / UNITS['M']:.1f} MB"
    click.echo(f"{out} written ({size}); it needs Python 3.11 or newer, and: {pip_line()}")
