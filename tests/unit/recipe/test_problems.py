"""Every problem of a recipe names the stage, the field, the value and what is allowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from zoomseg.core.errors import RecipeError
from zoomseg.recipe import load
from zoomseg.recipe.problems import MAX_PROBLEMS, short

Data = dict[str, Any]


def message(change: Callable[[Data], object]) -> str:
    data = yaml.safe_load(load.dump(load.load("roth2018-cascade")))
    change(data)
    with pytest.raises(RecipeError) as caught:
        load.from_dict(data)
    text = str(caught.value)
    assert "\n" not in text
    return text.removeprefix("recipe: ")


def put(*path: str | int, to: object) -> Callable[[Data], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = to

    return change


def drop(*path: str | int) -> Callable[[Data], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        del data[path[-1]]

    return change


FINE = ("stages", 1)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            put(*FINE, "roi", "radius_vox", to="three"),
            "stage 'stage2', roi.radius_vox: got 'three', expected a number from 0 to 100",
        ),
        (
            put(*FINE, "roi", "radius_vox", to=-1),
            "stage 'stage2', roi.radius_vox: got -1, expected a number from 0 to 100",
        ),
        (
            put(*FINE, "roi", "radius_vox", to=float("inf")),
            "stage 'stage2', roi.radius_vox: got inf, expected a finite number from 0 to 100",
        ),
        (
            put(*FINE, "roi", "radius_vox", to=float("nan")),
            "stage 'stage2', roi.radius_vox: got nan, expected a finite number from 0 to 100",
        ),
        (
            put(*FINE, "roi", "radius", to=3),
            "stage 'stage2', roi: unknown key 'radius' "
            "(allowed: kind, of, labels, radius_vox, margin_mm, threshold, include_reference)",
        ),
        (
            put(*FINE, "training", "optimiser", "beta", to=3),
            "stage 'stage2', training.optimiser: unknown key 'beta' "
            "(allowed: kind, lr, momentum, nesterov, weight_decay)",
        ),
        (
            put("extra", to=3),
            "unknown key 'extra' (allowed: name, description, source, intensity, stages, train_together, "
            "prior_from, orientation, crop, on_missing, roi_expansion, remove_misplaced, atlas, "
            "largest_component, islands, presence)",
        ),
        (
            put(*FINE, "roi", "kind", to="bodymask"),
            "stage 'stage2', roi.kind: got 'bodymask', "
            "expected one of whole_volume, body_mask, dilated_foreground, box, probability_times_atlas",
        ),
        (
            drop(*FINE, "roi", "kind"),
            "stage 'stage2', roi.kind: is missing, "
            "expected one of whole_volume, body_mask, dilated_foreground, box, probability_times_atlas",
        ),
        (drop(*FINE, "grid", "tile"), "stage 'stage2', grid.tile: is missing"),
        (put(*FINE, "grid", "tile", 1, to=0), "stage 'stage2', grid.tile[1]: got 0, expected a number >= 1"),
        (
            put(*FINE, "grid", "overlap", to=1),
            "stage 'stage2', grid.overlap: got 1, expected a number from 0 to 0.9 or a list",
        ),
        (
            put(*FINE, "grid", to={"kind": "shape", "shape": [8, 8, 0], "tile": [8, 8, 8]}),
            "stage 'stage2', grid.shape[2]: got 0, expected a number >= 1",
        ),
        (
            put(*FINE, "grid", "factor", to=[1, 2, 3, 4]),
            "stage 'stage2', grid.factor: got [1, 2, 3, 4], expected a list of at most 3",
        ),
        (put(*FINE, "labels", to=3), "stage 'stage2', labels: got 3, expected a list or all"),
        (put(*FINE, "labels", to="liver"), "stage 'stage2', labels: got 'liver', expected a list or all"),
        (
            put(*FINE, "inputs", 0, "channel", to="x"),
            "stage 'stage2', inputs[0].channel: got 'x', expected a whole number from 0 to 999 or all",
        ),
        (
            put(*FINE, "training", "batch", to=1.5),
            "stage 'stage2', training.batch: got 1.5, expected a whole number from 1 to 4096",
        ),
        (
            put(*FINE, "training", "mask_loss", to="maybe"),
            "stage 'stage2', training.mask_loss: got 'maybe', expected true or false",
        ),
        (
            put(*FINE, "training", "loss", to=[1]),
            "stage 'stage2', training.loss: got [1], expected a mapping of keys",
        ),
        (
            put(*FINE, "name", to="Fine!"),
            "stage 'Fine!', name: got 'Fine!', expected text that matches ^[a-z][a-z0-9_-]*$",
        ),
        (put(*FINE, to=7), "stages[1]: got 7, expected a mapping of keys"),
        (put("stages", to=[]), "stages: got [], expected a list of at least 1"),
        (put("intensity", "lower", to=900), "intensity: lower (900.0) must be below upper (500.0)"),
        (put("prior_from", to="x"), "prior_from: got 'x', expected live, out_of_fold or predictions"),
        (put("name", to=["x"]), "name: got ['x'], expected text"),
    ],
)
def test_one_problem(change: Callable[[Data], None], line: str) -> None:
    assert message(change) == line


def test_all_problems_come_at_once_up_to_a_bound() -> None:
    def two(data: Data) -> None:
        drop(*FINE, "grid", "tile")(data)
        put("stages", 0, "network", "kind", to="unet")(data)

    assert message(two) == (
        "stage 'stage1', network.kind: got 'unet', expected one of unet3d, resenc_unet, "
        "plain_conv_unet, unet2d, residual_fcn, resunet_aspp; "
        "stage 'stage2', grid.tile: is missing"
    )

    def many(data: Data) -> None:
        data.update({f"key{n}": n for n in range(MAX_PROBLEMS + 3)})

    assert message(many).count("unknown key") == MAX_PROBLEMS
    assert message(many).endswith("; and 3 more")


def test_values_that_explode_when_printed_stay_short() -> None:
    bomb: list[object] = ["lol"]
    for _ in range(40):
        bomb = [bomb] * 10
    assert len(short(bomb)) < 300
    assert short(10**5000) == "a number too long to print"
    text = message(put(*FINE, "roi", "of", to=bomb))
    assert len(text) < 400
    assert text.startswith("stage 'stage2', roi.of: got [[")
