"""Write the generated parts of ``CONTRIBUTING.md``: ``python docs/generate_contributing.py``.

They are the layers, from the import contract, and the places where the kinds of a recipe are told apart, from
the source. A test compares the committed page with what this gives.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Annotated, get_args, get_origin

from layers import ROOT, description, layers
from zoomseg.recipe import spec

PAGE = ROOT / "CONTRIBUTING.md"
SOURCE = ROOT / "src" / "zoomseg"


@dataclass(frozen=True)
class Key:
    """A key of a recipe that has kinds: where they are declared, computed, explained."""

    name: str
    union: str
    """In ``recipe/spec.py``."""
    module: str
    """With a function for each kind, beside the ``match`` on them."""
    section: str
    """Heading in ``docs/concepts/stages.md``."""

    @property
    def test(self) -> str:
        """The file that mirrors the module."""
        folder, _, name = self.module.rpartition("/")
        return f"tests/unit/{folder}/test_{name}"

    @property
    def kinds(self) -> dict[str, str]:
        """Kind to the name of its class; to nothing where a kind is only a word."""
        declared = getattr(spec, self.union)
        members = get_args(declared)
        if get_origin(declared) is Annotated:
            classes = get_args(members[0]) if isinstance(members[0], UnionType) else members[:1]
            return {one.model_fields["kind"].default: one.__name__ for one in classes}
        return dict.fromkeys(members, "")


KEYS = (
    Key("intensity", "IntensitySpec", "pipeline/inputs.py", "inputs: what the network receives"),
    Key("roi", "RoiSpec", "pipeline/roi.py", "roi: where to look"),
    Key("grid", "GridSpec", "pipeline/grid.py", "grid: how it is sampled"),
    Key("inputs", "InputSpec", "pipeline/inputs.py", "inputs: what the network receives"),
    Key("network", "NetworkSpec", "networks/build.py", "network: which one"),
    Key("training.sampler", "SamplerSpec", "training/data/sampler.py", "training: how it learns"),
    Key("training.loss", "LossSpec", "training/loss.py", "training: how it learns"),
    Key("training.optimiser", "OptimiserSpec", "training/stage_group.py", "training: how it learns"),
    Key("training.schedule", "ScheduleSpec", "training/schedule.py", "training: how it learns"),
    Key("fusion", "FusionKind", "pipeline/fusion.py", "fusion: how predictions are combined"),
    Key("atlas.fusion", "AtlasFusionSpec", "atlas/fuse.py", "atlas: where organs usually are"),
)


@dataclass(frozen=True)
class Place:
    """A function that tells kinds of a recipe apart."""

    module: str
    function: str
    names: frozenset[str]
    """Classes and kinds that it names."""
    match: bool
    """In a ``match``, where mypy misses a kind; else it compares, and nothing does."""
    wildcard: bool = False
    """Whether the match has a case for all the rest."""


# --- where kinds are told apart -------------------------------------------------------------------


@functools.cache
def places(source: Path = SOURCE) -> tuple[Place, ...]:
    """Every place in the package that tells kinds of anything apart."""
    modules = (path for path in sorted(source.rglob("*.py")) if path != source / "recipe" / "spec.py")
    return tuple(
        place for path in modules for place in _in_module(path.relative_to(source), path.read_text("utf-8"))
    )


def _in_module(path: Path, text: str) -> Iterator[Place]:
    def walk(node: ast.AST, function: str) -> Iterator[Place]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        found = _told_apart(node)
        if found:
            match = isinstance(node, ast.Match)
            wildcard = isinstance(node, ast.Match) and any(_catches_all(case) for case in node.cases)
            yield Place(path.as_posix(), function, found, match, wildcard)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(ast.parse(text), "")


def _told_apart(node: ast.AST) -> frozenset[str]:
    """Classes and words that a ``match``, an ``isinstance`` or a comparison of a kind tells apart."""
    if isinstance(node, ast.Match):
        return _named(*(case.pattern for case in node.cases))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
        return _named(node.args[1])
    if isinstance(node, ast.Compare) and re.search(r"\b(kind|fusion)\b", ast.unparse(node.left)):
        return _named(*node.comparators)
    return frozenset()


def _named(*nodes: ast.AST) -> frozenset[str]:
    """Last parts of names, and words, in these nodes."""
    names: set[str] = set()
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names.add(node.value)
    return frozenset(names)


def _catches_all(case: ast.match_case) -> bool:
    return isinstance(case.pattern, ast.MatchAs) and case.pattern.pattern is None and case.guard is None


def of_key(key: Key, found: tuple[Place, ...]) -> tuple[Place, ...]:
    """Those that tell this key's kinds apart. Words count only where all of them are of the key, as ``none``
    and ``box`` may mean something else elsewhere."""
    classes, words = set(key.kinds.values()) - {""}, set(key.kinds)
    return tuple(p for p in found if p.names & classes or (p.names & words and p.names <= words | classes))


# --- the page -------------------------------------------------------------------------------------


def layer_lines() -> Iterator[str]:
    """A layer a line; what shares one is joined as in the contract."""
    yield "```"
    for layer in layers():
        for name in layer:
            beside = "" if name == layer[0] else "  "
            yield f"{beside + name.removeprefix('zoomseg.'):<14}{description(name)}"
    yield "```"


def kind_lines() -> Iterator[str]:
    """A paragraph for each key."""
    for key in KEYS:
        found = of_key(key, places())
        lines = {
            "declare": f"`recipe/spec.py`, in `{key.union}`",
            "compute": f"`{key.module}`",
            "mypy points at": _listed(place for place in found if place.match),
            "look at": _listed(place for place in found if not place.match),
            "explain": f"`docs/concepts/stages.md`, *{key.section}*",
            "test": f"`{key.test}`",
        }
        yield f"**`{key.name}`**: {', '.join(f'`{kind}`' for kind in key.kinds)}"
        yield ""
        yield from (f"- {what}: {where}" for what, where in lines.items() if where)
        yield ""


def _listed(found: Iterator[Place]) -> str:
    by_module: dict[str, list[str]] = {}
    for place in found:
        by_module.setdefault(place.module, []).append(f"`{place.function}`")
    return "; ".join(f"`{module}` {', '.join(dict.fromkeys(names))}" for module, names in by_module.items())


def page(text: str) -> str:
    """The page with its generated parts as they must be."""
    for name, lines in (("layers", layer_lines()), ("kinds", kind_lines())):
        begin, end = (
            f"<!-- {name}: begin, written by docs/generate_contributing.py -->",
            f"<!-- {name}: end -->",
        )
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        body = "\n".join(lines).rstrip()
        text = f"{before}{begin}\n\n{body}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
