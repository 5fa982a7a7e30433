"""The node's benchmark on small studies: kills lose and duplicate nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from helpers.nodes import series
from helpers.untrained_models import untrained_bundle
from zoomseg.io import bundle

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import node  # noqa: E402


@pytest.mark.slow
def test_a_node_that_is_killed_again_and_again_loses_no_study_and_doubles_none(
    tmp_path: Path,
) -> None:
    bundle.save(untrained_bundle(), tmp_path / "tiny")
    found = node.many(series(), 3, 2, str(tmp_path / "tiny"), tmp_path)
    assert (found["lost"], found["with_other_uids"]) == (0, 0)
    assert found["jobs"] == {"finished": 3}
