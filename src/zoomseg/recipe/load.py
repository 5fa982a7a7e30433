"""Read recipes from YAML, and write them. A file is checked as a whole, and all its problems are reported
together."""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from zoomseg.core.errors import RecipeError
from zoomseg.recipe import graph
from zoomseg.recipe.problems import describe, short
from zoomseg.recipe.spec import PlannedRecipe, Recipe, is_planned

RECIPES = Path(__file__).parent / "recipes"

MAX_FILE_BYTES = 200_000
"""A recipe of a dozen stages has about 20 kB."""

MAX_VALUES = 50_000
"""After resolving all aliases; a recipe of a dozen stages has about a thousand."""


def names() -> tuple[str, ...]:
    """The recipes that come with the package."""
    return tuple(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def load(name_or_path: str | Path) -> Recipe | PlannedRecipe:
    """A shipped recipe by name, or a recipe file by path.

    Raises:
        RecipeError: there is no such recipe or file, or it is malformed.
    """
    if name_or_path in names():
        return _read(RECIPES / f"{name_or_path}.yaml")
    path = Path(name_or_path)
    if os.path.isfile(path):
        return _read(path)
    looks_like_path = path.suffix in (".yaml", ".yml") or os.sep in str(name_or_path)
    what = f"no file '{path}'" if looks_like_path else f"no recipe '{name_or_path}'"
    close = difflib.get_close_matches(path.stem, names(), n=1, cutoff=0.4)
    meant = f"; did you mean '{close[0]}'? Included" if close else "; included"
    raise RecipeError(f"{what}{meant}: {', '.join(names())}; or give the path of a YAML file")


def from_dict(data: object, source: str = "recipe") -> Recipe | PlannedRecipe:
    """Validate a recipe given as plain values, including its graph.

    Raises:
        RecipeError: one line with every problem: where, the value, what is allowed.
    """
    if not isinstance(data, dict):
        raise RecipeError(f"{source}: a recipe is a mapping of keys, got {short(data)}")
    model: type[Recipe] | type[PlannedRecipe] = PlannedRecipe if is_planned(data) else Recipe
    try:
        recipe = model.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"{source}: {describe(error, model, data)}") from None
    if isinstance(recipe, Recipe):
        try:
            graph.validate(recipe)
        except RecipeError as error:
            raise RecipeError(f"{source}: {error}") from error
    return recipe


def dump(recipe: Recipe | PlannedRecipe) -> str:
    """YAML with all defaults; ``load`` returns an equal recipe from it."""
    data = _kind_first(recipe.model_dump(mode="json"))
    return yaml.safe_dump(data, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)


def _kind_first(data: Any) -> Any:
    """Mappings with ``kind`` as their first key, where readers expect it."""
    if isinstance(data, list):
        return [_kind_first(item) for item in data]
    if isinstance(data, dict):
        return {key: _kind_first(data[key]) for key in sorted(data, key=lambda key: key != "kind")}
    return data


class _Loader(yaml.SafeLoader):
    """Loads plain values only. It refuses a key that occurs twice in a mapping (the last one would win),
    explicit tags (``!!binary``), which no recipe needs and the library does not check, and aliases that would
    fill the memory when resolved (``<<`` resolves them)."""

    def compose_document(self) -> yaml.Node | None:
        root = super().compose_document()
        if root is not None:
            _written_out(root, {})
        return root

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        tag = getattr(event, "tag", None)
        if tag is not None and tag != "!":
            name = tag.replace("tag:yaml.org,2002:", "!!")
            raise yaml.MarkedYAMLError(
                problem=f"the tag {short(name)} is not allowed; write the plain value",
                problem_mark=event.start_mark,
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                where = key.start_mark.line + 1
                raise yaml.MarkedYAMLError(problem=f"key {short(key.value)} is duplicated (line {where})")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values of a node after every alias in it is resolved.

    Raises:
        YAMLError: more than ``MAX_VALUES``, or infinitely many.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    found = known.get(id(node))
    if found is None:
        known[id(node)] = MAX_VALUES  # set during the count: an alias of a node that contains it is infinite
        parts = itertools.chain(*node.value) if isinstance(node, yaml.MappingNode) else node.value
        found = 1 + sum(_written_out(part, known) for part in parts)
        known[id(node)] = found
    if found > MAX_VALUES:
        raise yaml.MarkedYAMLError(
            problem=f"its aliases stand for more than {MAX_VALUES:,} values", problem_mark=node.start_mark
        )
    return found


def parse_yaml(text: str) -> object:
    """The plain values of a YAML text; a key that occurs twice in a mapping is refused.

    Raises:
        YAMLError, ValueError, ArithmeticError, RecursionError: it is not valid.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


def _read(path: Path) -> Recipe | PlannedRecipe:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"cannot read recipe {path}: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise RecipeError(f"{path} is not a recipe: larger than {MAX_FILE_BYTES // 1000} kB")
    return from_dict(_parse(content, path), str(path))


def _parse(content: bytes, path: Path) -> object:
    try:
        return parse_yaml(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not a recipe: not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise RecipeError(f"{path} is not valid YAML: {error.problem}{where}") from None
    except (yaml.YAMLError, ValueError, ArithmeticError, RecursionError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise RecipeError(f"{path} is not valid YAML: {first}") from None
