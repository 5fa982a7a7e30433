"""Dependencies of a module of ZoomSeg, found from its imports: other modules of ZoomSeg, and libraries.

Only imports at load time count. Imports inside functions serve features that a package does not have:
training, GPUs, DICOM, atlases.
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
"""The folder that contains the folder ``zoomseg``."""


@dataclass(frozen=True)
class Needed:
    modules: dict[str, Path]
    """Dotted name -> file, in the order of the names; including packages."""
    libraries: tuple[str, ...]
    """Imported names that are not part of Python."""


def needed_by(entry: str, source: Path = SOURCE) -> Needed:
    """Everything loaded when the module ``entry`` (``zoomseg.export.run``) is imported, including itself."""
    found: dict[str, Path] = {}
    libraries: set[str] = set()
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        file = _file(name, source)
        if name in found or file is None:  # None: not a module, but a name in one
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
    """The imports of a file at load time. ``from a import b`` may mean the module ``a.b``, or a name in
    ``a``: both are included."""
    for node in _loaded(ast.parse(file.read_text(encoding="utf-8")).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _loaded(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run when a module is loaded, including those in branches, but without those for type
    checkers."""
    for node in body:
        yield node
        if isinstance(node, ast.If) and ast.unparse(node.test) != "TYPE_CHECKING":
            yield from _loaded((*node.body, *node.orelse))


def distributions(libraries: Iterable[str]) -> dict[str, str]:
    """The name that pip uses for each of these installed libraries: ``yaml`` -> ``pyyaml``."""
    known = importlib.metadata.packages_distributions()
    return {name: re.sub(r"[-_.]+", "-", known[name][0]).lower() for name in libraries}
