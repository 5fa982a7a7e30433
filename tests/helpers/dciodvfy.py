"""dciodvfy of dicom3tools, which validates DICOM objects, for tests of writing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

VERIFIER = shutil.which("dciodvfy")

needed = pytest.mark.skipif(
    VERIFIER is None, reason="dciodvfy is not there: apt-get install dicom3tools, or what your system has"
)

KNOWN_WARNINGS = (
    "Unrecognized defined term = <99ZOOMSEG>",  # our own scheme: defined terms may be extended
    "Missing attribute or value that would be needed to build DICOMDIR",  # not known of the series
)


def found_by(path: Path) -> list[str]:
    """Errors and warnings that are not in the list of known ones."""
    ran = subprocess.run(
        [str(VERIFIER), "-new", str(path)], capture_output=True, text=True, errors="replace", check=False
    )
    lines = (ran.stdout + ran.stderr).splitlines()
    assert any(
        line in ("Segmentation", "RTStructureSet", "Comprehensive3DSR", "SCImage") for line in lines
    ), lines
    told = [line for line in lines if line.startswith(("Error", "Warning"))]
    return [line for line in told if line.startswith("Error") or not line.endswith(KNOWN_WARNINGS)]
