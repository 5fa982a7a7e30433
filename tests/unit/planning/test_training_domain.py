"""Common properties of training cases."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.block_scans import CT, GRID, SCHEMA, scan, trained
from helpers.tiny_dataset import tiny_dataset
from zoomseg.core.volume import LabelMap
from zoomseg.io.training_domain import MAX_CASES
from zoomseg.planning import training_domain
from zoomseg.planning.fingerprint import spread


def test_what_training_shows_by_hand() -> None:
    known = trained()
    assert known.modality == "CT"
    assert known.darkest == (-125.0, -125.0)
    # 44 x 30 voxels of 25 mm2.
    assert known.cross_section_cm2 == pytest.approx((330.0, 330.0), rel=0.01)
    assert len(known.intensities) == 5
    assert all(list(row) == sorted(row) for row in known.intensities)
    assert known.intensities[0][-1] == pytest.approx(75, abs=5)


def test_organs_that_were_not_drawn_are_not_learned() -> None:
    labels = np.zeros(GRID.shape, dtype=np.uint8)
    labels[20:30, 20:30, 10:20] = 1
    case = replace(scan(0), labels=LabelMap(labels, GRID, SCHEMA))
    assert training_domain.sample(case).organs["liver"].volume_ml == pytest.approx(125.0)
    assert training_domain.sample(replace(case, annotated=frozenset())).organs == {}
    known = training_domain.describe([training_domain.sample(case)] * 5, CT, ["CT"], SCHEMA.names)
    assert known.organs["liver"].volume_ml == pytest.approx((125.0, 125.0))


def test_many_cases_are_thinned_out() -> None:
    ids = [f"{n}" for n in range(1000)]
    some = spread(ids, MAX_CASES)
    assert len(some) <= MAX_CASES
    assert some[0] == "0"
    assert int(some[-1]) > 900


def test_of_a_data_set(tmp_path: Path) -> None:
    data = tiny_dataset(tmp_path / "data", 3)
    found = training_domain.samples(data, data.ids[:2])
    assert [sorted(sample.organs) for sample in found] == [["left kidney", "right kidney"]] * 2
