"""What made a folder of predictions, by the ``run.json`` that lies in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zoomseg.core.errors import RecipeError
from zoomseg.io.files import parse_json, read_file
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
"""Keys of ``run.json``, and what a report calls them."""


@dataclass(frozen=True)
class Origin:
    """Nothing where nothing is known."""

    about: Mapping[str, object] = field(default_factory=dict)
    """For readers, by what it is called."""
    recipe: str = ""
    """In full, as YAML."""


def read_origin(predictions: Path) -> Origin:
    """What ``run.json`` says. Predictions of other programs have none; one that is damaged says nothing."""
    path = predictions / "run.json"
    try:
        run = parse_json(read_file(path))
    except (OSError, ValueError):
        return Origin()
    if not isinstance(run, dict):
        return Origin()
    about = {name: run[key] for key, name in SHOWN.items() if run.get(key)}
    return Origin(about, _yaml(run.get("recipe_in_full")))


def _yaml(data: object) -> str:
    try:
        recipe = from_dict(data)
    except (RecipeError, RecursionError):
        return ""
    return dump(recipe) if isinstance(recipe, Recipe) else ""
