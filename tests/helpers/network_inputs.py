"""What the network of a stage reads."""

from __future__ import annotations

from collections.abc import Mapping

from zoomseg.core.arrays import Array
from zoomseg.core.case import StagePrediction
from zoomseg.core.geometry import Box
from zoomseg.pipeline.stage_input import InputReader, PreparedScan, StageView


def network_input(
    view: StageView, scan: PreparedScan, priors: Mapping[str, StagePrediction], box: Box
) -> Array:
    """The input ``[C, *box.shape]`` of a box of the stage's grid."""
    return InputReader(view, scan, priors, box).read(box)
