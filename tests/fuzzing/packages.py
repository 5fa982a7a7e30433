"""The command of an exported package, run from the source tree instead of the zip."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zoomseg.export.run import main as run


def main(arguments: Sequence[str]) -> int:
    """Run ``FILE.zip SCAN -o LABELS``, the arguments that follow ``python``."""
    archive, *others = arguments
    return run(Path(archive), others)
