"""The packages in the order of the import contract in ``pyproject.toml``, and what each says of itself.

Read by ``docs/figures.py``, which draws them, and by ``docs/generate_contributing.py``, which lists them.
"""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"

Layers = tuple[tuple[str, ...], ...]


def layers(root: Path = ROOT) -> Layers:
    """Packages (``zoomseg.io``) in layers, the uppermost first: a layer imports only what is below it."""
    settings = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = (c for c in settings["tool"]["importlinter"]["contracts"] if c["type"] == "layers")
    return tuple(tuple(re.split(r"\s*[|:]\s*", layer)) for layer in contract["layers"])


def description(name: str) -> str:
    """The first line of the docstring of a package or module, without markup.

    Raises:
        ValueError: it has none.
    """
    path = SOURCE.joinpath(*name.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not said:
        raise ValueError(f"{path}: no docstring that says what it holds")
    return said.splitlines()[0].replace("``", "")
