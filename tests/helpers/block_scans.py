"""Scans made of blocks of fat and muscle in air, and the training domain of a model trained on them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from zoomseg.core.case import Case
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import Volume
from zoomseg.io.training_domain import TrainingDomain
from zoomseg.planning import training_domain
from zoomseg.recipe.spec import IntensitySpec, Window, ZScore

CT = Window(kind="window", lower=-125, upper=275)
MR = ZScore(kind="zscore")
GRID = Grid.from_spacing((60, 50, 40), (5.0, 5.0, 5.0))
SCHEMA = LabelSchema.consecutive(["liver"])


def scan(seed: int = 0, fat: int = 6, wide: int = 44) -> Case:
    """Air, ``fat`` voxels of fat around muscle, ``wide`` voxels across and 30 deep; HU."""
    rng = np.random.default_rng(seed)
    data = np.full(GRID.shape, -1000.0)
    edge = (60 - wide) // 2
    data[edge : edge + wide, 10:40] = -70
    data[edge + fat : edge + wide - fat, 10 + fat : 40 - fat] = 55
    data += rng.normal(0, 12, GRID.shape)
    return Case(f"scan_{seed}", Volume(data[None].astype(np.float32), GRID))


def changed(case: Case, data: np.ndarray) -> Case:
    return replace(case, image=Volume(data, case.image.grid))


def trained(intensity: IntensitySpec = CT, channel: str = "CT") -> TrainingDomain:
    cases = [scan(seed, fat=4 + seed) for seed in range(5)]
    if isinstance(intensity, ZScore):
        cases = [changed(case, case.image.data + 1100) for case in cases]
    return training_domain.describe(
        [training_domain.sample(case) for case in cases], intensity, [channel], SCHEMA.names
    )
