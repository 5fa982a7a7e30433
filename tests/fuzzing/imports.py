"""The command ``zoomseg import`` without the networks' ONNX graphs, which take seconds to export."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

from zoomseg.backends import onnx_graph
from zoomseg.cli.main import main as run


def main(arguments: Sequence[str]) -> None:
    """Run ``import nnunet SOURCE -o MODEL``, the arguments that follow ``zoomseg``."""
    with patch.object(onnx_graph, "write_graphs"):
        run(list(arguments))
