"""Rules of the repository: public names are documented, modules tested, shipped recipes load."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest

import zoomseg
from zoomseg.cli.main import COMMANDS, cli
from zoomseg.recipe import load

ROOT = Path(__file__).parents[2]
TESTED_ELSEWHERE: dict[str, str] = {}
"""Module -> the file that tests it, with the reason."""


def untested(modules: Iterable[Path], package: Path, tests: Path, elsewhere: Mapping[str, str]) -> list[str]:
    """Modules without a test file ``tests/<layer>/test_<module>.py``."""
    names = [m.relative_to(package) for m in modules if m.name != "__init__.py"]
    missing = [n for n in names if not (tests / n.parent / f"test_{n.name}").is_file()]
    return [n.as_posix() for n in missing if n.as_posix() not in elsewhere]


def undocumented(module: object) -> list[str]:
    """Public names without a docstring, and public methods of public classes."""
    bare = []
    for name in module.__all__:  # type: ignore[attr-defined]
        thing = getattr(module, name)
        if not inspect.getdoc(thing):
            bare.append(name)
        if inspect.isclass(thing):
            methods = inspect.getmembers(thing, inspect.isfunction)
            bare += [f"{name}.{n}" for n, method in methods if n[0] != "_" and not inspect.getdoc(method)]
    return bare


def test_every_module_has_a_test_file_that_mirrors_it() -> None:
    package = ROOT / "src" / "zoomseg"
    assert untested(sorted(package.rglob("*.py")), package, ROOT / "tests" / "unit", TESTED_ELSEWHERE) == []


def test_exceptions_from_the_mirror_are_real() -> None:
    package, tests = ROOT / "src" / "zoomseg", ROOT / "tests"
    for module, reason in TESTED_ELSEWHERE.items():
        assert (package / module).is_file()
        assert not (tests / "unit" / Path(module).parent / f"test_{Path(module).name}").exists()
        assert (tests / reason.split(":")[0]).exists()


def test_a_module_without_tests_is_noticed(tmp_path: Path) -> None:
    package, tests = tmp_path / "package", tmp_path / "unit"
    for file in ("core/__init__.py", "core/a.py", "core/b.py", "io/a.py"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        (package / file).touch()
    (tests / "core").mkdir(parents=True)
    (tests / "core" / "test_a.py").touch()
    modules = sorted(package.rglob("*.py"))
    assert untested(modules, package, tests, {}) == ["core/b.py", "io/a.py"]
    assert untested(modules, package, tests, {"io/a.py": "reason"}) == ["core/b.py"]


def test_everything_public_says_what_it_does() -> None:
    assert zoomseg.__all__
    assert undocumented(zoomseg) == []


def test_a_bare_function_is_noticed() -> None:
    class Bare:
        """Has a docstring, unlike its method."""

        def act(self) -> None: ...

    def bare() -> None: ...

    assert undocumented(SimpleNamespace(__all__=["bare", "Bare"], bare=bare, Bare=Bare)) == [
        "bare",
        "Bare.act",
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_has_help(command: str) -> None:
    found = cli.get_command(cli.make_context("zoomseg", [], resilient_parsing=True), command)
    assert found is not None
    assert found.help
    options = [p for p in found.params if p.param_type_name == "option"]
    assert [p.name for p in options if not p.help] == []  # type: ignore[attr-defined]


AVOIDED = re.compile(
    r"\b(kept back|told|beside|mend(?:s|ed)?|whoever|answers for|sees the|looks? closer|made up|shows "
    r"itself)\b"
)
"""Words of docs/style.md's left column, and their like."""


def shown_texts() -> Iterator[tuple[str, str]]:
    """Texts for users by their place: help, descriptions of recipes, notebooks, pages but the decisions."""
    context = cli.make_context("zoomseg", [], resilient_parsing=True)
    for name, line in COMMANDS.items():
        command = cli.get_command(context, name)
        assert command is not None
        options = (getattr(option, "help", "") or "" for option in command.params)
        yield f"zoomseg {name}", "\n".join((line, command.help or "", *options))
    for name in load.names():
        yield f"recipe {name}", load.load(name).description
    for file in (*(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").glob("*.ipynb"), ROOT / "README.md"):
        if file.name != "style.md" and file.parent.name != "decisions":
            yield str(file.relative_to(ROOT)), file.read_text(encoding="utf-8")


def test_texts_for_users_are_in_plain_english() -> None:
    texts = dict(shown_texts())
    assert len(texts) > 60
    assert {place: found for place, text in texts.items() if (found := AVOIDED.findall(text))} == {}


@pytest.mark.parametrize(
    ("text", "word"),
    [("Scans kept back.", "kept back"), ("It sees the scan", "sees the"), ("Held-out", None)],
)
def test_a_word_that_is_avoided_is_noticed(text: str, word: str | None) -> None:
    assert AVOIDED.findall(text) == ([] if word is None else [word])


@pytest.mark.parametrize("name", load.names())
def test_every_shipped_recipe_loads_and_names_itself(name: str) -> None:
    recipe = load.load(name)
    assert recipe.name == name
    assert recipe.description
