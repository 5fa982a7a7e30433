"""Provenance of a folder of predictions, from its ``run.json``."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoomseg.core.errors import RecipeError
from zoomseg.inference.efficiency import MEASURES
from zoomseg.io.files import MAX_RESULTS_BYTES, RUN_JSON, parse_json, read_file
from zoomseg.recipe.load import dump, from_dict
from zoomseg.recipe.spec import Recipe

SHOWN = {
    "zoomseg": "predicted with ZoomSeg",
    "started": "predicted on",
    "device": "predicted by",
    "precision": "precision",
    "models": "model",
    "trained": "training",
    "recipe": "recipe",
}
"""Keys of ``run.json``, and their names in a report."""


@dataclass(frozen=True)
class Origin:
    """The origin of predictions; empty if unknown."""

    about: Mapping[str, object] = field(default_factory=dict)
    """For readers, by name."""
    recipe: str = ""
    """Complete, as YAML."""


def read_origin(predictions: Path) -> Origin:
    """The content of ``run.json``. Predictions of other programs have none; a damaged one is ignored."""
    run = _run_of(predictions)
    about = {name: run[key] for key, name in SHOWN.items() if run.get(key)}
    return Origin(about, _yaml(run.get("recipe_in_full")) if run else "")


def read_measures(predictions: Path) -> dict[str, dict[str, float]]:
    """Resource usage of each case from ``run.json``: the recorded ones of ``MEASURES``."""
    cases = _run_of(predictions).get("cases")
    found = {case: _measures(own) for case, own in cases.items()} if isinstance(cases, dict) else {}
    return {case: own for case, own in found.items() if own}


def read_scans(predictions: Path) -> dict[str, tuple[Path, ...]]:
    """The files from which each case was predicted, from ``run.json``, if all of them still exist."""
    cases = _run_of(predictions).get("cases")
    named = {case: _paths(own, predictions) for case, own in cases.items()} if isinstance(cases, dict) else {}
    return {case: paths for case, paths in named.items() if paths and all(map(os.path.exists, paths))}


def _paths(case: object, predictions: Path) -> tuple[Path, ...]:
    names = case.get("scan") if isinstance(case, dict) else None
    if not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        return ()
    return tuple(predictions / name for name in names)


def _measures(case: object) -> dict[str, float]:
    if not isinstance(case, dict):
        return {}
    steps = case.get("seconds")
    named = {**case, "seconds": steps.get("total") if isinstance(steps, dict) else None}
    return {name: float(named[name]) for name in MEASURES if _is_number(named.get(name))}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _run_of(predictions: Path) -> dict[str, Any]:
    try:
        run = parse_json(read_file(predictions / RUN_JSON, MAX_RESULTS_BYTES))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


def _yaml(data: object) -> str:
    try:
        recipe = from_dict(data)
    except (RecipeError, RecursionError):
        return ""
    return dump(recipe) if isinstance(recipe, Recipe) else ""
