"""The ablation's rows: recipes that can be trained, and that lack the part in their name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from zoomseg.backends.device import Device
from zoomseg.core.labels import LabelSchema
from zoomseg.planning.fingerprint import Fingerprint
from zoomseg.planning.plan import plan
from zoomseg.recipe import load
from zoomseg.recipe.spec import Augmentation, PlannedRecipe, Recipe, UNet3D

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import ablation


@pytest.fixture(scope="module")
def cascade() -> Recipe:
    scans = Fingerprint((0.8, 0.8, 2.0), (512, 512, 200), (512, 512, 300), True, (-110.2, 240.4), 30, 30)
    template = load.load("default")
    assert isinstance(template, PlannedRecipe)
    organs = LabelSchema.consecutive(["liver", "spleen"])
    made = plan(template, scans, organs, Device("cpu")).recipe
    assert made.train_together == (("coarse", "fine"),)
    return made


@pytest.mark.parametrize(
    "row", [row for row in ablation.ROWS if row not in ("default", "contrast as for CT")]
)
def test_every_row_is_another_recipe_that_can_be_trained(cascade: Recipe, row: str, tmp_path: Path) -> None:
    made = ablation.changed(cascade, ablation.ROWS[row])
    assert made is not None
    file = tmp_path / "row.yaml"
    file.write_text(load.dump(made), encoding="utf-8")
    assert load.load(str(file)) == made != cascade


@pytest.mark.parametrize("row", ["default", "contrast as for CT"])
def test_a_row_that_changes_nothing_is_left_out(cascade: Recipe, row: str) -> None:
    assert ablation.changed(cascade, ablation.ROWS[row]) is None


def test_rows_lack_what_they_are_named_after(cascade: Recipe) -> None:
    apart = ablation.changed(cascade, ablation.ROWS["no prior for the fine stage"])
    assert apart is not None
    assert [given.kind for stage in apart.stages for given in stage.inputs] == ["image", "image"]
    assert apart.train_together == ()
    plain = ablation.changed(cascade, ablation.ROWS["no augmentation"])
    assert plain is not None
    assert {stage.training.augmentation for stage in plain.stages} == {Augmentation()}
    assert plain.train_together == cascade.train_together
    published = ablation.changed(cascade, ablation.ROWS["the papers' U-Net"])
    assert published is not None
    assert [stage.network for stage in published.stages] == [
        UNet3D(channels=stage.network.channels[:4]) for stage in cascade.stages
    ]
