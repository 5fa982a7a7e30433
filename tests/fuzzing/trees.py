"""JSON and YAML documents with errors in structure, types, numbers and spelling."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import yaml

from fuzzing.mutation import FLOATS, INTEGERS, TEXTS, Mutation, damaged, shown

Tree: TypeAlias = Any
"""Any JSON value."""

DEPTH = 100_000

JSON_ONLY = (
    *("NaN", "-Infinity", "1e400", "-0", "9" * 5_000, "1" + "0" * 400 + ".5", '"\\ud800"', '"a\\u0000b"'),
    *('{"a": 1, "a": 2}', "[" * DEPTH + "]" * DEPTH, '{"a":' * DEPTH + "1" + "}" * DEPTH, "'a'", "tru"),
)
"""Texts that ``json`` would write differently, or not at all."""

YAML_ONLY = (
    *(
        "!!bool x",
        "!!timestamp x",
        "!!int x",
        "!!float x",
        "!!binary x",
        "!!null x",
        "!!set [a]",
        "!!str [a]",
    ),
    *("!!omap [a]", "!!pairs [a]", "!!python/object/apply:os.getcwd []", "!unknown x", "&a [*a]", "*missing"),
    *(
        "{<<: 1}",
        "{<<: [1]}",
        "{[1]: 2}",
        "{{a: 1}: 2}",
        "{a: 1, a: 2}",
        "2001-99-99",
        "1:60:60",
        "0x_",
        "08",
    ),
    *(
        ".nan",
        ".inf",
        "1e999",
        "9" * 5_000,
        "[" * 5_000,
        "[" * 500 + "]" * 500,
        "'\x07'",
        "- a",
        "%a",
        "@",
        "`",
    ),
    "[&a [x, x], &b [*a, *a, *a, *a, *a, *a, *a, *a], &c [*b, *b, *b, *b, *b, *b, *b, *b], *c]",
)

JSON_DOCUMENTS = (
    *(b"", b"null", b"[]", b"3", b'"a"', b"{}", b"{", b"\xef\xbb\xbf{}", b"\xff\xfe{\0}\0", b"{}{}", b"\0"),
    b"[" * DEPTH,
)
YAML_DOCUMENTS = (
    *(
        b"",
        b"null",
        b"[]",
        b"3",
        b"a",
        b"{}",
        b"{",
        b"\xef\xbb\xbf{}",
        b"\xff\xfe{\0}\0",
        b"---\n---\n",
        b"\0",
    ),
    *(b"[" * 5_000, b"a: b: c", b"\t- a", b"%YAML 9.9\n---\n{}", b"name: !!bool x", b"<<: 1", b"? [a]\n: b"),
)


@dataclass(eq=False)
class _Draft:
    """A document under construction; ``raw`` contains texts that replace marks in the written document."""

    m: Mutation
    tree: Tree
    alone: tuple[str, ...]
    """Texts specific to this format."""
    raw: dict[str, str] = field(default_factory=dict)

    def mark(self, text: str) -> str:
        mark = f"MARK{len(self.raw)}MARK"
        self.raw[mark] = text
        return mark


def json_changed(m: Mutation, tree: Tree) -> bytes:
    """``tree`` as JSON, with one to four errors."""
    if m.chance(0.05):
        document = m.pick(JSON_DOCUMENTS)
        m.note(f"whole document {shown(document)}")
        return document
    draft = _changed(m, tree, JSON_ONLY)
    text = json.dumps(draft.tree, indent=1)
    for mark, raw in draft.raw.items():
        text = text.replace(f'"{mark}"', raw)
    return _perhaps_damaged(m, text)


def yaml_changed(m: Mutation, tree: Tree) -> bytes:
    """``tree`` as YAML, with one to four errors."""
    if m.chance(0.05):
        document = m.pick(YAML_DOCUMENTS)
        m.note(f"whole document {shown(document)}")
        return document
    draft = _changed(m, tree, YAML_ONLY)
    text = yaml.safe_dump(draft.tree, sort_keys=False, width=1_000_000)
    for mark, raw in draft.raw.items():
        text = text.replace(mark, raw)
    return _perhaps_damaged(m, text)


def _perhaps_damaged(m: Mutation, text: str) -> bytes:
    data = text.encode("utf-8", "surrogatepass")
    return damaged(m, data) if m.chance(0.1) else data


def _changed(m: Mutation, tree: Tree, alone: tuple[str, ...]) -> _Draft:
    draft = _Draft(m, deepcopy(tree), alone)
    for _ in m.times(4):
        places = list(_places(draft.tree))
        if places:
            path, holder, key = m.pick(places)
            m.pick(_CHANGES)(draft, path, holder, key)
    return draft


def _places(tree: Tree, path: str = "") -> list[tuple[str, Tree, Any]]:
    """Every value in a tree: its path, its container, and its key or index there."""
    if isinstance(tree, dict):
        items: list[tuple[Any, Tree]] = list(tree.items())
    elif isinstance(tree, list):
        items = list(enumerate(tree))
    else:
        return []
    found = []
    for key, value in items:
        found.append((f"{path}.{key}", tree, key))
        found += _places(value, f"{path}.{key}")
    return found


def _replaced(draft: _Draft, path: str, holder: Tree, key: Any) -> None:
    """A value of any type."""
    m = draft.m
    kinds: tuple[tuple[Any, ...], ...] = (
        INTEGERS,
        FLOATS,
        TEXTS,
        draft.alone,
        (None, True, False, [], {}, [[]], [None], {"": None}),
    )
    kind = m.pick(kinds)
    value = m.pick(kind)
    m.note(f"{path} = {shown(value)}")
    holder[key] = draft.mark(value) if kind is draft.alone else value


def _near(draft: _Draft, path: str, holder: Tree, key: Any) -> None:
    """A value of the original type."""
    m, old = draft.m, holder[key]
    new: Tree
    if isinstance(old, bool):
        new = not old
    elif isinstance(old, int):
        new = m.pick((old - 1, old + 1, -old, old * 1_000, *INTEGERS))
    elif isinstance(old, float):
        new = m.pick((-old, old * 1e6, old * 1e-6, math.nextafter(old, math.inf), *FLOATS))
    elif isinstance(old, str):
        new = m.pick((old.upper(), old + " ", old[:-1], old * 2, *TEXTS))
    elif isinstance(old, list):
        new = m.pick(([], old[:-1], old + old, old[::-1], old * 200, [old]))
    elif isinstance(old, dict):
        new = m.pick(({}, dict(list(old.items())[:-1]), {**old, "": 1}, dict.fromkeys(old), [old]))
    else:
        new = m.pick((0, "", [], {}))
    m.note(f"{path} = {shown(new)}")
    holder[key] = new


def _without(draft: _Draft, path: str, holder: Tree, key: Any) -> None:
    draft.m.note(f"{path} removed")
    del holder[key]


def _twice(draft: _Draft, path: str, holder: Tree, key: Any) -> None:
    """Repeat an item; in an object, under another name."""
    if isinstance(holder, list):
        holder.insert(key, deepcopy(holder[key]))
        draft.m.note(f"{path} twice")
        return
    name = draft.m.pick(TEXTS)
    holder[name] = deepcopy(holder[key])
    draft.m.note(f"{path} also as {shown(name)}")


def _renamed(draft: _Draft, path: str, holder: Tree, key: Any) -> None:
    if isinstance(holder, dict):
        name = draft.m.pick((str(key).upper(), f"{key} ", *TEXTS))
        holder[name] = holder.pop(key)
        draft.m.note(f"{path} renamed to {shown(name)}")
    else:
        _near(draft, path, holder, key)


def _reordered(draft: _Draft, path: str, holder: Tree, key: Any) -> None:
    """Reorder the names of an object, which does not change its meaning; lists are not reordered."""
    unordered = holder if isinstance(holder, dict) else draft.tree
    if isinstance(unordered, dict):
        items = list(unordered.items())
        draft.m.rng.shuffle(items)
        unordered.clear()
        unordered.update(items)
        draft.m.note(f"what holds {path if unordered is holder else 'all'} in another order")


_CHANGES: tuple[Callable[[_Draft, str, Tree, Any], None], ...] = (
    *(_replaced, _replaced, _replaced, _near, _near, _near, _near),
    *(_without, _twice, _renamed, _reordered, _reordered, _reordered),
)
