"""The pages on the papers assign a line of the recipe and code to every sentence. These tests check that the
recipe has that line, and that the code exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from torch import nn

from zoomseg.recipe import load
from zoomseg.recipe.spec import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted(p for p in (ROOT / "docs" / "papers").glob("*.md") if p.name != "index.md")
SOURCE = ROOT / "src" / "zoomseg"

HEADER = "| The paper says | Recipe | Code |"
SPAN = re.compile(r"`([^`\n]+)`")
NAME = re.compile(r"[A-Za-z_][\w.]*$")


def rows(text: str) -> Iterator[tuple[str, str]]:
    """Recipe and Code of every row of the tables on a paper."""
    inside = False
    for line in text.splitlines():
        inside = line == HEADER or (inside and line.startswith("|"))
        if inside and line != HEADER and not line.startswith("|---"):
            _, recipe, code = line.strip("|").split("|")
            yield recipe, code


def defined(module: Path) -> set[str]:
    """Functions, classes and constants of a module, and members of its classes as ``Class.member``."""

    def names(body: list[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                yield node.name, node
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))

    found: set[str] = set()
    for name, node in names(ast.parse(module.read_text(encoding="utf-8")).body):
        found.add(name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{name}.{member}" for member, _ in names(node.body)}
            stored = (n for n in ast.walk(node) if isinstance(n, ast.Attribute))
            found |= {f"{name}.{n.attr}" for n in stored if ast.unparse(n.value) == "self"}
    return found


def missing_code(text: str) -> list[str]:
    """Missing modules, functions and classes of the Code column. A name belongs to a module of its row or, if
    the row has none, of the row before; ``nn.`` is torch's."""
    missing: list[str] = []
    known: set[str] = set()
    for _, code in rows(text):
        spans = SPAN.findall(code)
        modules = [span for span in spans if span.endswith(".py")]
        paths = {name: (ROOT if name.startswith("tests/") else SOURCE) / name for name in modules}
        missing += [name for name, path in paths.items() if not path.is_file()]
        if modules:
            known = set().union(*(defined(path) for path in paths.values() if path.is_file()))
        names = [span for span in spans if span not in modules and not span.endswith((".json", ".csv"))]
        missing += [name for name in names if not _exists(name, known)]
    return missing


def _exists(name: str, known: set[str]) -> bool:
    if name.startswith("nn."):
        return hasattr(nn, name.removeprefix("nn."))
    return NAME.match(name) is not None and name in known


def lines_of(recipe: Recipe) -> list[tuple[str, object]]:
    """Every key of a recipe as a dotted path with its value; items of lists under their ``name``, if any."""

    def walk(value: object, path: str) -> Iterator[tuple[str, object]]:
        yield path, value
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{path}.{key}")
        elif isinstance(value, list):
            for inner in value:
                named = isinstance(inner, dict) and "name" in inner
                yield from walk(inner, f"{path}.{inner['name']}" if named else path)

    return list(walk(recipe.model_dump(mode="json"), ""))


def missing_lines(text: str, recipe: Recipe) -> list[str]:
    """``key``, or ``key: value``, of the Recipe column that the recipe does not have; the key may be given
    by the end of its path, and the value by some of its keys."""
    lines = lines_of(recipe)
    spans = [span for row, _ in rows(text) for span in SPAN.findall(row)]
    return [span for span in spans if not any(_says(path, value, span) for path, value in lines)]


def _says(path: str, value: object, span: str) -> bool:
    key, colon, wanted = span.partition(": ")
    if not path.endswith(f".{key}"):
        return False
    expected = yaml.safe_load(wanted) if colon else value
    if isinstance(expected, dict) and isinstance(value, dict):
        return expected.items() <= value.items()
    return bool(expected == value)


def missing_files(text: str) -> list[str]:
    """Missing files of the repository that a page names by their whole path."""
    named = [span for span in SPAN.findall(text) if re.match(r"(src|tests|docs|benchmarks)/[\w./-]+$", span)]
    return [name for name in named if not (ROOT / name).exists()]


def recipe_of(page: Path) -> Recipe:
    recipe = load.load(page.stem)
    assert isinstance(recipe, Recipe)
    return recipe


def test_every_published_recipe_has_a_page_and_every_page_a_recipe() -> None:
    assert [page.stem for page in PAGES] == [name for name in load.names() if name != "default"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_names_code_that_is_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(list(rows(text))) > 5
    assert missing_code(text) == []
    assert missing_files(text) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_quotes_its_recipe(page: Path) -> None:
    assert missing_lines(page.read_text(encoding="utf-8"), recipe_of(page)) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_difference_that_is_marked_can_be_explained(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert r"**\***" in text
    assert "\n## What is different, and why\n" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_says_how_long_its_training_is(page: Path) -> None:
    (length,) = re.findall(r"^\*\*Length:\*\* (.+?)\n\n", page.read_text(encoding="utf-8"), re.M | re.S)
    steps = {f"{stage.training.iterations:,}" for stage in recipe_of(page).stages}
    assert [number for number in steps if number not in length] == []


@pytest.mark.parametrize(
    ("code", "missing"),
    [
        ("`pipeline/roi.py` `body_mask`", []),
        ("`networks/unet.py` `UNet.forward`, `nn.MaxPool3d`", []),
        ("`networks/unet.py` `UNet.margins`", []),
        ("`pipeline/sliding_window.py` `StageRecord.region_share`, in `run.json`", []),
        ("`stage/gone.py`", ["stage/gone.py"]),
        ("`pipeline/roi.py` `body_musk`", ["body_musk"]),
        ("`pipeline/roi.py` `UNet`", ["UNet"]),
        ("`networks/unet.py` `UNet.backward`, `nn.MaxPool7d`", ["UNet.backward", "nn.MaxPool7d"]),
        ("`tests/recipes/test_gone.py`", ["tests/recipes/test_gone.py"]),
    ],
)
def test_code_that_is_gone_is_noticed(code: str, missing: list[str]) -> None:
    assert missing_code(f"{HEADER}\n|---|---|---|\n| a |  | {code} |\n\n| other | table | `x` |") == missing


def test_a_name_belongs_to_the_module_last_named() -> None:
    head = f"{HEADER}\n|---|---|---|\n| a |  | `pipeline/roi.py` |\n"
    assert missing_code(f"{head}| b |  | `body_mask` |") == []
    assert missing_code(f"{head}| b |  | `networks/unet.py` |\n| c |  | `body_mask` |") == ["body_mask"]


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("`roi.kind: body_mask`", []),
        ("`stage2.grid.overlap: [0.5, 0.5, 0]`, `rotation_deg: [5, 5, 5]`, `lr`", []),
        ("`stage1.grid.overlap: [0.5, 0.5, 0]`", ["stage1.grid.overlap: [0.5, 0.5, 0]"]),
        ("`inputs: {kind: image}`", []),
        ("`inputs: {kind: prior}`", ["inputs: {kind: prior}"]),
        ("`kernel_size`", ["kernel_size"]),
        ("`radius_vox: 4`", ["radius_vox: 4"]),
    ],
)
def test_a_line_that_is_gone_is_noticed(line: str, missing: list[str]) -> None:
    recipe = load.load("roth2018-cascade")
    assert isinstance(recipe, Recipe)
    assert missing_lines(f"{HEADER}\n|---|---|---|\n| a | {line} | `pipeline/roi.py` |", recipe) == missing


def test_a_file_that_is_gone_is_noticed() -> None:
    assert missing_files("`src/zoomseg/api.py` and `tests/gone.py`, `grid.tile`") == ["tests/gone.py"]
