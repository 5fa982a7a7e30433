"""The command of an exported package: the modules that are in its zip, run from here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoomseg.export.run import main as run


def main(arguments: Sequence[str]) -> int:
    """``FILE.zip SCAN -o LABELS``, as behind ``python``."""
    archive, *others = arguments
    return run(Path(archive), others)
