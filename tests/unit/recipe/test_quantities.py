"""Every number of a recipe has a range, which contains the published values."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest

from helpers.tiny_dataset import tiny_recipe
from zoomseg.core.errors import RecipeError
from zoomseg.recipe import load

Data = dict[str, Any]
Path = tuple[str | int, ...]


def plain(name: str) -> Data:
    recipe = tiny_recipe(together=True) if name == "tiny" else load.load(name)
    data: Data = json.loads(recipe.model_dump_json())
    return data


def numbers(data: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of the numbers of a recipe."""
    if isinstance(data, dict | list):
        for key, value in data.items() if isinstance(data, dict) else enumerate(data):
            yield from numbers(value, (*path, key))
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield path


def put(data: Data, path: Path, value: object) -> Data:
    changed = copy.deepcopy(data)
    inside: Any = changed
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return changed


@pytest.mark.parametrize("name", [*load.names(), "tiny"])
def test_no_number_of_any_recipe_may_be_absurd(name: str) -> None:
    data = plain(name)
    for path in numbers(data):
        for absurd in (10**24, 1e308, -(10**24), -1e308, float("nan"), float("inf")):
            with pytest.raises(RecipeError) as refusal:
                load.from_dict(put(data, path, absurd))
            assert "\n" not in str(refusal.value), path


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        (("network", "channels", 0), 8000, r"network.channels\[0\]: got 8000, expected a number <= 4096"),
        (("network", "channels"), [8] * 13, "network.channels: got .* expected a list of at most 12"),
        (("network", "strides", 1, 0), 1000, r"strides\[1\]\[0\]: got 1000, expected a number <= 8"),
        (("network", "kernels", 1, 0), 99, r"kernels\[1\]\[0\]: got 99, expected a number <= 31"),
        (("network", "blocks", 0), 10**6, r"blocks\[0\]: got 1000000, expected a number <= 64"),
        (("grid", "mm", 0), 1e-12, r"grid.mm\[0\]: got 1e-12, expected a number >= 0.0001"),
        (("grid", "mm", 0), 1e6, r"grid.mm\[0\]: got 1000000.0, expected a number <= 1000"),
        (("grid", "tile", 0), 5000, r"grid.tile\[0\]: got 5000, expected a number <= 4096"),
        (
            ("grid", "overlap"),
            0.999999,
            "grid.overlap: got 0.999999, expected a number from 0 to 0.9 or a list",
        ),
        (
            ("roi", "radius_vox"),
            2**63,
            "roi.radius_vox: got 9223372036854775808, expected a number from 0 to 100",
        ),
        (("training", "patch", 0), 10**9, r"training.patch\[0\]: got 1000000000, expected a number <= 4096"),
        (
            ("training", "batch"),
            10**24,
            "training.batch: got 1000000000000000000000000, expected a number from 1",
        ),
        (
            ("training", "augmentation", "scale"),
            [2, 1],
            r"the first \(2\) must not be above the second \(1\)",
        ),
        (("training", "augmentation", "elastic_grid_vox"), 1e-12, "expected a number from 1 to 4096"),
        (("training", "optimiser", "betas"), [0.9, 1], r"betas\[1\]: got 1, expected a number < 1"),
        (
            ("inputs", 0, "channel"),
            "x",
            r"inputs\[0\].channel: got 'x', expected a whole number from 0 to 999 or all",
        ),
        (
            ("inputs", 0, "channel"),
            -1,
            r"inputs\[0\].channel: got -1, expected a number from 0 to 999 or all|>= 0",
        ),
        (("inputs",), [], "inputs: got .* expected a list of at least 1"),
        (("name",), "a" * 201, "name: got .*"),
    ],
)
def test_what_is_out_of_range_is_named_with_the_range(path: Path, value: object, line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        load.from_dict(put(plain("tiny"), ("stages", 1, *path), value))


def test_an_orientation_names_every_axis_once() -> None:
    for name in ("canonical", "stored", "RAS", "LPS", "SAL"):
        assert load.from_dict(plain("tiny") | {"orientation": name}).orientation == name  # type: ignore[union-attr]
    for wrong in ("LRS", "las", "RASS", "RA", "closest"):
        with pytest.raises(RecipeError, match=r"orientation: .*one each of R or L, A or P, and S or I"):
            load.from_dict(plain("tiny") | {"orientation": wrong})


@pytest.mark.parametrize(
    ("window", "line"),
    [
        ({"output": [0, 1e308]}, "output"),
        ({"output": [1, 1]}, r"output \(\[1.0, 1.0\]\) must ascend"),
        ({"output": [0, 1e-300]}, "must ascend"),
        ({"lower": 0, "upper": 1e-300}, "must be below upper"),
        ({"lower": 5e8, "upper": 5e8 + 1}, "must be below upper"),
        ({"inner": [-100, -100 + 1e-12]}, "must be a part"),
        ({"kind": "zscore", "clip_percentiles": [0.5, 0.5]}, "must ascend"),
        ({"kind": "zscore", "within": "nonzero"}, "within: nonzero needs clip_percentiles: null"),
    ],
)
def test_a_normalisation_that_cannot_be_computed_is_refused(window: Data, line: str) -> None:
    data = plain("tiny")
    intensity = (
        window if window.get("kind") == "zscore" else {"kind": "window", "lower": -150, "upper": 200} | window
    )
    with pytest.raises(RecipeError, match=line):
        load.from_dict(data | {"intensity": intensity})


def test_acceleration_needs_a_momentum() -> None:
    data = put(
        plain("tiny"),
        ("stages", 0, "training", "optimiser"),
        {"kind": "sgd", "nesterov": True, "momentum": 0},
    )
    with pytest.raises(RecipeError, match="nesterov needs a momentum above 0"):
        load.from_dict(data)
