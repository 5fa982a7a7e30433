"""Problems of a recipe, in one line on which a user can act: where, the value, what is allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

MAX_PROBLEMS = 8

Path = tuple[str | int, ...]

_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxdict, _repr.maxstring, _repr.maxother = 2, 4, 60, 60


def short(value: object) -> str:
    """A bounded ``repr``: a hostile value (huge, deep, full of aliases) becomes one short line."""
    try:
        return _repr.repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return "a number too long to print"


def describe(error: ValidationError, root: type[BaseModel], data: Mapping[Any, Any]) -> str:
    """All problems of ``data`` as one line, at most ``MAX_PROBLEMS`` of them."""
    by_path: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        path = _path(detail["loc"], data, lacks_last=detail["type"] == "missing")
        by_path.setdefault(path, []).append(detail)
    for path in [p for p, details in by_path.items() if details[0]["type"] == "too_short"]:
        # A list whose members are all invalid counts as empty; the members' own problems are reported.
        if any(other[: len(path)] == path for other in by_path if other != path):
            del by_path[path]
    lines = [_line(path, details, root, data) for path, details in by_path.items()]
    more = f"; and {len(lines) - MAX_PROBLEMS} more" if len(lines) > MAX_PROBLEMS else ""
    return "; ".join(lines[:MAX_PROBLEMS]) + more


def _path(location: Sequence[str | int], data: object, lacks_last: bool) -> Path:
    """Pydantic's location without the names of union members, which are not keys of the file.

    The first step into a mapping with a ``kind`` is that kind.

    Args:
        lacks_last: whether the last step is a key that the file lacks.
    """
    path: list[str | int] = []
    tagged = False
    for n, step in enumerate(location):
        if isinstance(data, dict):
            if not tagged and step == data.get("kind"):
                tagged = True
                continue
            if step in data:
                data = data[step]
            elif not (lacks_last and n == len(location) - 1):
                continue
            path.append(step)
        elif isinstance(data, list) and isinstance(step, int):
            path.append(step)
            data = data[step] if step < len(data) else None
        tagged = False
    return tuple(path)


def _line(path: Path, details: Sequence[ErrorDetails], root: type[BaseModel], data: Mapping[Any, Any]) -> str:
    first = details[0]
    kind, context = first["type"], first.get("ctx", {})
    match kind:
        case "extra_forbidden":
            allowed = ", ".join(_model_at(path[:-1], root, data).model_fields)
            return f"{_where(path[:-1], data)}unknown key {short(path[-1])} (allowed: {allowed})"
        case "missing":
            return f"{_where(path, data)}is missing"
        case "union_tag_invalid":
            tags = context["expected_tags"].replace("'", "")
            return f"{_where((*path, 'kind'), data)}got {short(context['tag'])}, expected one of {tags}"
        case "union_tag_not_found":
            models = _models(_annotation_at(path, root, data))
            tags = ", ".join(str(model.model_fields["kind"].default) for model in models)
            return f"{_where((*path, 'kind'), data)}is missing, expected one of {tags}"
        case "value_error":
            return f"{_where(path, data)}{context['error']}"
        case _:  # one member of a union each: any of them is allowed
            expected = dict.fromkeys(_expected(detail, path, root, data) for detail in details)
            return f"{_where(path, data)}got {short(first['input'])}, expected {' or '.join(expected)}"


def _where(path: Path, data: Mapping[Any, Any]) -> str:
    """``stage 'fine', roi.radius_vox: ``, or the plain path if no named stage is involved."""
    prefix = ""
    if len(path) >= 2 and path[0] == "stages" and isinstance(path[1], int):
        stage = data["stages"][path[1]]
        if isinstance(stage, dict) and isinstance(stage.get("name"), str) and len(path) > 2:
            prefix, path = f"stage {short(stage['name'])}", path[2:]
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    joined = ", ".join(part for part in (prefix, text) if part)
    return f"{joined}: " if joined else ""


def _expected(detail: ErrorDetails, path: Path, root: type[BaseModel], data: Mapping[Any, Any]) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    match kind:
        case "float_type" | "float_parsing":
            return "a number" + _bounds(path, root, data)
        case "finite_number":
            return "a finite number" + _bounds(path, root, data)
        case "int_type" | "int_parsing" | "int_from_float":
            return "a whole number" + _bounds(path, root, data)
        case "greater_than_equal" | "greater_than" | "less_than_equal" | "less_than":
            return "a number" + (_bounds(path, root, data) or _bound_of(context))
        case "literal_error" | "enum":
            return str(context["expected"]).replace("'", "")
        case "bool_type" | "bool_parsing":
            return "true or false"
        case "string_type":
            return "text"
        case "string_pattern_mismatch":
            return f"text that matches {context['pattern']}"
        case "tuple_type" | "list_type":
            return "a list"
        case "too_long":
            return f"a list of at most {context['max_length']}"
        case "too_short":
            return f"a list of at least {context['min_length']}"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "a mapping of keys"
        case _:
            return detail["msg"].removeprefix("Input should be ")


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def _bound_of(limits: Mapping[str, Any]) -> str:
    """`` from 0 to 1`` or `` > 0 and <= 1``: limits of a number, from pydantic's names."""
    if limits.keys() >= {"ge", "le"}:
        return f" from {limits['ge']:g} to {limits['le']:g}"
    return " and".join(f" {sign} {limits[key]:g}" for key, sign in _SIGNS.items() if key in limits)


def _bounds(path: Path, root: type[BaseModel], data: Mapping[Any, Any]) -> str:
    """The limits of the field at ``path``, also if it is a union with a number; empty for members of
    lists."""
    if not path or not isinstance(path[-1], str):
        return ""
    field = _model_at(path[:-1], root, data).model_fields[path[-1]]
    members = (part for union in get_args(field.annotation) for part in getattr(union, "__metadata__", ()))
    items = (*field.metadata, *(item for member in members for item in member.metadata))
    return _bound_of({key: getattr(item, key) for item in items for key in _SIGNS if hasattr(item, key)})


def _annotation_at(path: Path, root: type[BaseModel], data: object) -> Any:
    annotation: Any = root
    for step in path:
        if get_origin(annotation) is dict:
            annotation = get_args(annotation)[1]
        elif isinstance(step, str):
            annotation = _choose(_models(annotation), data).model_fields[step].annotation
        data = data[step]  # type: ignore[index]
    return annotation


def _model_at(path: Path, root: type[BaseModel], data: Any) -> type[BaseModel]:
    """The model that describes the mapping at ``path``."""
    annotation = _annotation_at(path, root, data)
    for step in path:
        data = data[step]
    return _choose(_models(annotation), data)


def _models(annotation: Any) -> list[type[BaseModel]]:
    """Every model named anywhere in a type."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def _choose(models: Sequence[type[BaseModel]], data: object) -> type[BaseModel]:
    """The model of these that a mapping is meant for: by its kind, or else by most of its keys."""
    kind = data.get("kind") if isinstance(data, dict) else None
    for model in models:
        if "kind" in model.model_fields and model.model_fields["kind"].default == kind:
            return model
    given = data.keys() if isinstance(data, dict) else set()
    return max(models, key=lambda model: len(model.model_fields.keys() & given))
