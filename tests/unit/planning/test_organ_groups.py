"""Groups of organs: which are neighbours, and when a box around each is better than one region."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from helpers.tiny_dataset import CPU, small_plan
from zoomseg.core.case import Case
from zoomseg.core.geometry import Grid
from zoomseg.core.labels import LabelSchema
from zoomseg.core.volume import LabelMap, Volume
from zoomseg.datasets.layouts import Dataset, open_dataset
from zoomseg.inference.predictor import Predictor
from zoomseg.io.files import write_json_atomic
from zoomseg.io.scans import write_image, write_labels
from zoomseg.planning.fingerprint import Fingerprint, OrganStatistics
from zoomseg.planning.organ_groups import groups_of, why_not
from zoomseg.recipe.spec import BoxAround, FixedSpacing, Recipe
from zoomseg.training import loop, training_run
from zoomseg.training.log import NullObserver
from zoomseg.training.requested_recipe import TrainingRequest


def organ(
    name: str, centre: tuple[float, float, float], extent_mm: float = 20.0, ml: float = 4.0
) -> OrganStatistics:
    return OrganStatistics(name, 8, 8, ml, (extent_mm, extent_mm, extent_mm), centre, (0.0, 90.0), 1.0)


def data(*organs: OrganStatistics) -> Fingerprint:
    """A scan of 400 x 400 x 400 mm."""
    return Fingerprint((1.0, 1.0, 1.0), (400, 400, 400), (400, 400, 400), True, (0.0, 1.0), 8, 8, 1, organs)


EYE, OTHER_EYE = organ("right eye", (0.4, 0.9, 0.9)), organ("left eye", (0.6, 0.9, 0.9))
BLADDER = organ("bladder", (0.5, 0.5, 0.1))
SCHEMA = LabelSchema.consecutive(["right eye", "bladder", "left eye"])


def test_organs_whose_boxes_meet_are_a_group() -> None:
    # The eyes' boxes end 80 - 20 mm from each other: a margin of 30 mm on both sides closes that.
    found = data(EYE, BLADDER, OTHER_EYE)
    assert [g.organs for g in groups_of(found, 29.0)] == [("right eye",), ("bladder",), ("left eye",)]
    eyes, bladder = groups_of(found, 31.0)
    assert (eyes.organs, bladder.organs) == (("right eye", "left eye"), ("bladder",))
    assert (eyes.start_mm, eyes.stop_mm) == (pytest.approx((119, 319, 319)), pytest.approx((281, 400, 400)))
    assert bladder.extent_mm == pytest.approx((82, 82, 81))


def test_a_group_grows_until_it_meets_no_other() -> None:
    # The long organ's box contains both others, although these are far from each other.
    long = replace(organ("long", (0.5, 0.9, 0.9)), extent_mm=(300.0, 4.0, 4.0))
    (all_,) = groups_of(data(EYE, OTHER_EYE, long), 1.0)
    assert all_.organs == ("right eye", "left eye", "long")


def test_boxes_are_for_small_organs_far_apart_on_a_grid_that_can_be_finer() -> None:
    far = data(EYE, BLADDER, OTHER_EYE)
    groups = groups_of(far, 16.0)
    coarse, own = (4.0, 4.0, 4.0), (1.0, 1.0, 1.0)
    assert why_not(groups, far, SCHEMA, coarse) is None
    assert why_not(groups, far, SCHEMA, own) is not None
    large = data(*(replace(o, volume_ml=100.0) for o in far.organs))
    assert "has 1,000 voxels and more" in (why_not(groups, large, SCHEMA, coarse) or "")
    tiny = data(*(replace(o, volume_ml=0.5) for o in far.organs))
    assert "as fine as the data already" in (why_not(groups, tiny, SCHEMA, own) or "")
    near = data(EYE, replace(BLADDER, centre=(0.4, 0.9, 0.8)), OTHER_EYE)
    assert why_not(groups_of(near, 60.0), near, SCHEMA, coarse) == "no organ lies far from all others"
    wide = data(*(replace(o, extent_mm=(230.0, 230.0, 230.0)) for o in far.organs))
    assert "would hold" in (why_not(groups_of(wide, 16.0)[:2], wide, SCHEMA, coarse) or "")
    unseen = LabelSchema.consecutive([*SCHEMA.names, "spleen"])
    assert "not found" in (why_not(groups, far, unseen, coarse) or "")


@pytest.mark.parametrize(("number", "boxes"), [(6, True), (7, False)])
def test_no_more_groups_than_networks_can_be_trained(number: int, boxes: bool) -> None:
    places = [(x, y, 0.5) for x in (0.1, 0.35, 0.65, 0.9) for y in (0.2, 0.8)][:number]
    organs = [organ(f"o{n}", place) for n, place in enumerate(places)]
    groups = groups_of(data(*organs), 16.0)
    assert len(groups) == number
    why = why_not(groups, data(*organs), LabelSchema.consecutive([o.name for o in organs]), (4.0, 4.0, 4.0))
    assert why == (
        None
        if boxes
        else "7 groups of organs lie apart, and at most 6 get a network each: more "
        "would be trained too briefly"
    )


def far_apart(root: Path) -> Dataset:
    """Two balls of 10 mm at both ends of a long box of noise, with names for them."""
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True)
    grid = Grid((64, 24, 24), np.diag([2.0, 2.0, 2.0, 1.0]))
    schema = LabelSchema.consecutive(["head", "tail"])
    for n in range(4):
        at = np.indices(grid.shape).transpose(1, 2, 3, 0)
        labels = np.zeros(grid.shape, dtype=np.uint8)
        for value, centre in ((1, (8 + n, 12, 12)), (2, (55 - n, 12, 12))):
            labels[((at - centre) ** 2).sum(axis=-1) <= 9] = value
        noise = np.random.default_rng(n).normal(0, 10, grid.shape)
        image = (noise + 200 * (labels > 0)).astype(np.float32)
        write_image(root / "imagesTr" / f"case_{n}_0000.nii.gz", Volume(image[None], grid))
        write_labels(root / "labelsTr" / f"case_{n}.nii.gz", LabelMap(labels, grid, schema))
    about = {
        "channel_names": {"0": "MR"},
        "labels": {"background": 0, "head": 1, "tail": 2},
        "numTraining": 4,
        "file_ending": ".nii.gz",
    }
    write_json_atomic(root / "dataset.json", about)
    return open_dataset(root)


def boxes_of(recipe: Recipe) -> list[tuple[str, object, object]]:
    fine = recipe.stages[1:]
    assert all(isinstance(stage.roi, BoxAround) for stage in fine)
    return [
        (stage.name, stage.labels, stage.roi.labels) for stage in fine if isinstance(stage.roi, BoxAround)
    ]


@pytest.mark.slow
def test_a_plan_with_boxes_trains_and_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "convert", lambda *_: None)
    made = far_apart(tmp_path / "data")
    plan = small_plan(tmp_path / "p.yaml", coarse_voxels=1000, region_margin_mm=4.0, iterations=3)
    model = training_run.start(made, tmp_path / "model", TrainingRequest(plan), CPU, NullObserver())
    recipe = model.recipe
    assert [stage.name for stage in recipe.stages] == ["coarse", "fine-1", "fine-2"]
    assert boxes_of(recipe) == [("fine-1", ("head",), ("head",)), ("fine-2", ("tail",), ("tail",))]
    assert recipe.train_together == ()
    fine = recipe.stages[1].grid
    assert isinstance(fine, FixedSpacing)
    assert fine.mm == (2.0, 2.0, 2.0)  # one region around both would have had 3000 voxels of 2.9 mm
    told = (tmp_path / "model" / "training" / "plan.md").read_text(encoding="utf-8")
    assert "| regions | 2 boxes, one by group of organs |" in told
    case = made.load(made.cases[0])
    result = Predictor(model, CPU).predict(Case("a", case.image))
    assert tuple(result.labels.data.shape) == (64, 24, 24)
    assert [record.stage for record in result.records] == ["coarse", "fine-1", "fine-2"]
