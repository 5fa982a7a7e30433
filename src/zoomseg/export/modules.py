"""What a module of ZoomSeg needs to run, found from its imports: other modules of ZoomSeg, and libraries.

Only what modules import when they are loaded counts. What functions import when they are called serves what a
package does not do: training, GPUs, DICOM, atlases.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).parents[2]
"""The folder that holds the folder ``zoomseg``."""


@dataclass(frozen=True)
class Needed:
    modules: dict[str, Path]
    """Dotted name -> file, in the order of the names; packages included."""
    libraries: tuple[str, ...]
    """Names that modules import, of what does not come with Python."""


def needed_by(entry: str, source: Path = SOURCE) -> Needed:
    """What is loaded when the module ``entry`` (``zoomseg.export.run``) is imported, itself included."""
    found: dict[str, Path] = {}
    libraries: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        file = _file(name, source)
        if name in found or file is None:  # None: not a module, but something that is in one
            continue
        found[name] = file
        for imported in _imports(file):
            top = imported.partition(".")[0]
            if top == "zoomseg":
                waiting += _with_parents(imported)
            elif top not in sys.stdlib_module_names:
                libraries.add(top)
        waiting += _with_parents(name)
    return Needed(dict(sorted(found.items())), tuple(sorted(libraries)))


def _with_parents(name: str) -> Iterator[str]:
    """``a.b.c`` -> ``a``, ``a.b``, ``a.b.c``: all are loaded with the last."""
    parts = name.split(".")
    return (".".join(parts[:count]) for count in range(1, len(parts) + 1))


def _file(name: str, source: Path) -> Path | None:
    path = source.joinpath(*name.split("."))
    files = (path / "__init__.py", path.with_name(f"{path.name}.py"))
    return next((file for file in files if file.is_file()), None)


def _imports(file: Path) -> Iterator[str]:
    """What a file imports when it is loaded. ``from a import b`` may mean the module ``a.b``, or what is in
    ``a``: both are named."""
    for node in _loaded(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _loaded(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is loaded; in branches, too, but for type checkers' own."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from _loaded((*node.body, *node.orelse))


def distributions(libraries: Iterable[str]) -> dict[str, str]:
    """The name that pip knows each of these installed libraries by: ``yaml`` -> ``pyyaml``."""
    known = importlib.metadata.packages_distributions()
    return {name: re.sub(r"[-_.]+", "-", known[name][0]).lower() for name in libraries}
