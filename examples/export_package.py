"""A model as one zip, and the zip run on a scan: python export_package.py [MODEL] [SCAN] [ZIP] [LABELS]

Running it needs a few libraries, which README.txt in the zip names, and neither ZoomSeg nor PyTorch.
"""

import subprocess
import sys
from pathlib import Path

from zoomseg.export.package import export

DEFAULTS = (
    "zoomseg-demo/model",
    "zoomseg-demo/held-out/imagesTr/phantom_1000_0000.nii.gz",
    "model.zip",
    "labels.nii.gz",
)


def main(model: str, scan: str, package: str, out: str) -> None:
    export(model, Path(package))
    print(f"{package}: {Path(package).stat().st_size / 1e6:.1f} MB")
    # On another machine: python model.zip scan.nii.gz -o labels.nii.gz
    subprocess.run([sys.executable, package, scan, "-o", out], check=True)
    print(f"{out} written without ZoomSeg")


if __name__ == "__main__":
    main(*sys.argv[1:], *DEFAULTS[len(sys.argv) - 1 :])
