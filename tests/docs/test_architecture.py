"""The page on the architecture, and the layers in CONTRIBUTING.md, are those of the import contract."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from layers import description, layers

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "zoomseg"
PAGE = ROOT / "docs" / "architecture.md"

SPAN = re.compile(r"`([^`]+)`")
FIRST_FILE = re.compile(r"^\d\. `([\w/]+\.py)`: ", re.MULTILINE)


def defined(module: Path) -> set[str]:
    """Functions, classes, constants and methods (``Class.method``) of a module."""
    names: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def missing_code(text: str) -> list[str]:
    """Missing modules, and names after a module that it does not define."""
    missing: list[str] = []
    for module, name in re.findall(r"`([\w/]+\.py)`(?:\s+`([A-Za-z_][\w.]*)`)?", text):
        path = (ROOT if module.startswith("tests/") else SOURCE) / module
        if not path.is_file():
            missing.append(module)
        elif name and name not in defined(path):
            missing.append(f"{module} {name}")
    return missing


def test_the_contract_has_every_package_once() -> None:
    listed = [name for layer in layers() for name in layer]
    packages = {f"zoomseg.{path.parent.name}" for path in SOURCE.glob("*/__init__.py")}
    assert sorted(listed) == sorted(packages | {"zoomseg.api"})


@pytest.mark.parametrize("init", sorted(SOURCE.rglob("__init__.py")), ids=lambda p: p.parent.name)
def test_a_package_says_what_it_holds_in_one_line_and_imports_nothing(init: Path) -> None:
    if init.parent == SOURCE:
        return  # the public interface
    text = init.read_text(encoding="utf-8")
    (only,) = ast.parse(text).body
    assert isinstance(only, ast.Expr)
    assert len(text.splitlines()) == 1
    assert text.endswith('."""\n')


def test_a_package_without_a_description_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "__init__.py").touch()
    monkeypatch.setattr("layers.SOURCE", tmp_path)
    with pytest.raises(ValueError, match=r"b/__init__\.py: no docstring"):
        description("a.b")


def test_layers_are_read_with_either_separator(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[[tool.importlinter.contracts]]\ntype = "layers"\nlayers = ["p.a | p.b", "p.c : p.d", "p.e"]\n'
    )
    assert layers(tmp_path) == (("p.a", "p.b"), ("p.c", "p.d"), ("p.e",))


def test_the_page_lists_seven_files_to_read_first() -> None:
    text = PAGE.read_text(encoding="utf-8")
    section = text.split("## Read these seven files first")[1].split("\n## ")[0]
    files = FIRST_FILE.findall(section)
    assert len(set(files)) == 7
    assert [file for file in files if not (SOURCE / file).is_file()] == []
    said = int(re.findall(r"about (\d+) lines", section)[0])
    lines = sum(len((SOURCE / file).read_text(encoding="utf-8").splitlines()) for file in files)
    assert lines == pytest.approx(said, rel=0.1)


def test_the_page_names_every_package() -> None:
    named = {
        span.split("/")[0].removesuffix(".py") for span in SPAN.findall(PAGE.read_text(encoding="utf-8"))
    }
    pictured = {name.removeprefix("zoomseg.") for layer in layers() for name in layer}
    assert pictured - named == set()


def test_the_page_names_code_that_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert len(re.findall(r"`[\w/]+\.py`", text)) > 25
    assert missing_code(text) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("`pipeline/roi.py` `find_region` and `core/tiling.py`\n`TileAggregator.add`", []),
        ("`pipeline/gone.py`", ["pipeline/gone.py"]),
        ("`pipeline/roi.py` `find_regions`", ["pipeline/roi.py find_regions"]),
        ("`core/tiling.py` `TileAggregator.sub`", ["core/tiling.py TileAggregator.sub"]),
        ("`tests/unit/pipeline/test_gone.py`", ["tests/unit/pipeline/test_gone.py"]),
    ],
)
def test_code_that_is_gone_is_noticed(text: str, missing: list[str]) -> None:
    assert missing_code(text) == missing
