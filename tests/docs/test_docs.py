"""Everything named in the documentation exists: commands, options, Python calls, links, pages. Examples
load."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest
import yaml

import zoomseg
from zoomseg.cli.main import COMMANDS, cli
from zoomseg.core.errors import RecipeError
from zoomseg.io import bundle
from zoomseg.recipe import load, spec

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY", "examples/README")),
    *sorted(DOCS.rglob("*.md")),
]
CONTEXT = click.Context(cli, info_name="zoomseg")

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def blocks(text: str, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(text) if language in languages]


def invocations(text: str) -> Iterator[str]:
    """Every ``zoomseg ...`` in a code block or code span, one a line, comments cut off."""
    code = [*blocks(text, "bash", "sh", "console", ""), *SPAN.findall(FENCE.sub("", text))]
    for line in "\n".join(code).replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;|\|", line.partition(" #")[0]):
            found = re.match(r"\s*(?:\$ )?(?:uv run )?zoomseg\s+(.*)", part)
            if found:
                yield found[1]


def wrong_with(invocation: str) -> list[str]:
    """Commands and options that do not exist."""
    words = shlex.split(invocation.replace("[", " ").replace("]", " "))
    name, rest = words[0], words[1:]
    if name.startswith("-"):
        return [] if name in ("-h", "--help", "--version") else [f"zoomseg {name}"]
    if not re.fullmatch(r"[a-z]+", name):
        return []  # "zoomseg ..."
    command = cli.get_command(CONTEXT, name)
    if command is None:
        return [f"zoomseg {name}"]
    known = {opt for p in command.get_params(click.Context(command)) for opt in (*p.opts, *p.secondary_opts)}
    known |= {"-h", "--help"}
    options = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
    return [f"zoomseg {name} {option}" for option in options if option not in known]


def unknown_calls(code: str) -> list[str]:
    """Calls of ``zoomseg.<name>`` that do not exist or do not take these arguments."""
    wrong = []
    for node in ast.walk(ast.parse(code)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).startswith("zoomseg.")):
            continue
        name = ast.unparse(node.func).removeprefix("zoomseg.")
        function = getattr(zoomseg, name, None)
        try:
            keywords = {keyword.arg or "": None for keyword in node.keywords}
            inspect.signature(function).bind(*node.args, **keywords)  # type: ignore[arg-type]
        except TypeError as error:
            wrong.append(f"zoomseg.{name}: {error}")
    return wrong


def broken_links(page: Path) -> list[str]:
    links = LINK.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    return [link for link in local if not (page.parent / link).exists()]


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_reference", DOCS / "generate_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_command_reference_is_what_the_commands_say() -> None:
    made = generator()
    assert made.PAGE.read_text(encoding="utf-8") == made.reference(), "run: python docs/generate_reference.py"


def test_the_command_reference_names_every_command_and_option() -> None:
    page = generator().reference()
    for name in COMMANDS:
        command = cli.get_command(CONTEXT, name)
        assert command is not None
        assert f"## zoomseg {name}\n" in page
        for option in (p for p in command.params if isinstance(p, click.Option)):
            assert f"`{option.opts[-1]}" in page


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_and_options_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [wrong for line in invocations(text) for wrong in wrong_with(line)] == []


def test_the_readme_begins_with_the_demo_and_the_tests() -> None:
    """Two commands of a clone that set up and run everything."""
    first, second, *_ = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "bash")
    assert first == "pip install uv && uv run zoomseg demo\n"
    assert second == "uv run pytest\n"


REGISTRY = re.compile(r"\binstall (?:-\S+ )*[\"']?zoomseg\b(?!-)")
"""An installation from a package registry, which has no ZoomSeg."""
TOOLS = re.compile(r"^(?:srun .*)?(?:torchrun|dask) ", re.MULTILINE)
"""Programs that ``uv tool install`` does not put on the path."""


def test_nothing_installs_zoomseg_from_a_registry() -> None:
    release = (ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8")
    assert "Nothing is published to a registry" in release
    files = [*PAGES, *(file for part in ("src", "extras", "examples") for file in (ROOT / part).rglob("*.*"))]
    texts = {file: file.read_text("utf-8") for file in files if file.suffix in (".md", ".py", ".ipynb")}
    assert [str(file) for file, text in texts.items() if REGISTRY.search(text)] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("pip install zoomseg", True),
        ('pip install "zoomseg[train]"', True),
        ("uv tool install --force 'zoomseg'", True),
        ("pip install '.[train]' in a clone of ZoomSeg", False),
    ],
)
def test_an_installation_from_a_registry_is_noticed(text: str, wrong: bool) -> None:
    assert bool(REGISTRY.search(text)) == wrong


def test_pages_that_start_torchrun_or_dask_say_how_to_install_them() -> None:
    starting = [page for page in PAGES if any(map(TOOLS.search, blocks(page.read_text("utf-8"), "bash")))]
    assert {page.stem for page in starting} == {"cluster", "several-gpus"}
    link = "(install.md#python-notebooks-torchrun-and-dask)"
    assert [page.stem for page in starting if link not in page.read_text("utf-8")] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```bash\nzoomseg trian data -o out\n```", ["zoomseg trian"]),
        ("```bash\nuv run zoomseg train data \\\n  --output out\n```", ["zoomseg train --output"]),
        ("Use `zoomseg predict x -o y -m z --organ liver` there", ["zoomseg predict --organ"]),
        ("`pip install uv && uv run zoomseg demos`", ["zoomseg demos"]),
        ("`zoomseg --hlep`", ["zoomseg --hlep"]),
        ("`zoomseg train DATASET -o MODEL [--seed N]`", []),
        ("```bash\nzoomseg check data # --not-an-option\n```", []),
        ("`zoomseg ...`", []),
    ],
)
def test_a_wrong_command_is_noticed(text: str, wrong: list[str]) -> None:
    assert [w for line in invocations(text) for w in wrong_with(line)] == wrong


def test_the_readme_states_one_peak_of_memory() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (headline,), (table,) = (
        re.findall(around, text)
        for around in (r"peak of ([\d.]+) GB", r"\| ([\d.]+) GB for a CT of 512.512.300")
    )
    assert headline == table


def of_a_former_model(text: str) -> list[str]:
    """Paragraphs with the included model's name and dates of measurements of which none is as late as the
    model, and which do not state which model they mean."""
    model = bundle.INCLUDED_MODELS / bundle.ABDOMEN_CT / "model.json"
    made = json.loads(model.read_text(encoding="utf-8"))["provenance"]["date"]
    measured = {file.name[:10] for file in (ROOT / "benchmarks" / "results").iterdir()}
    found = []
    for part in re.split(r"\n\s*\n", text):
        dates = measured & set(re.findall(r"\d{4}-\d\d-\d\d", part))
        named = re.search(r"former|`abdomen-ct`\s+of\s", part)
        if "abdomen-ct" in part and dates and max(dates) < made and not named:
            found.append(part)
    return found


def test_figures_of_a_former_model_are_named_as_such() -> None:
    pages = [ROOT / "README.md", *(page for page in PAGES if DOCS in page.parents)]
    current = [page for page in pages if page.parent.name != "decisions"]  # records of their time
    assert [part for page in current for part in of_a_former_model(page.read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("`abdomen-ct` takes 7.5 s (2026-11-29).", True),
        ("The `abdomen-ct` of 2026-11-21 takes 7.5 s (2026-11-29).", False),
        ("`abdomen-ct` takes 14.1 s (2026-11-30), or 8.6 s (2026-12-01).", False),
        ("`abdomen-ct`.\n\nMeasured 2026-11-29.", False),
    ],
)
def test_a_figure_of_a_former_model_is_noticed(text: str, wrong: bool) -> None:
    assert (of_a_former_model(text) != []) == wrong


def test_the_agreement_with_nnunet_is_not_better_than_measured() -> None:
    page = (DOCS / "how-to" / "nnunet.md").read_text(encoding="utf-8")
    results = ROOT / "benchmarks" / "results" / "2026-11-29-nnunet-agreement.md"
    sentence = r"Logits of a patch differ by at most (\de-\d) in the (\w+) models compared"
    ((stated, models),) = re.findall(sentence, page)
    measured = [float(number) for number in re.findall(r"\d\.\de-\d", results.read_text(encoding="utf-8"))]
    assert models == {9: "nine", 10: "ten", 11: "eleven", 12: "twelve", 13: "thirteen"}[len(measured)]
    assert max(measured) <= float(stated)


def without_length(text: str) -> list[str]:
    """Commands to copy that start a training of a length that the page does not show."""
    code = "\n".join(f"```bash\n{block}```" for block in blocks(text, "bash", "sh"))
    training = [line for line in invocations(code) if line.startswith("train ")]
    shown = (
        "--time-budget",
        "--epochs",
        "--resume",
        "[OPTIONS]",
        *(["-r "] if "iterations:" in text else []),
    )
    return [line for line in training if not any(option in line for option in shown)]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_trainings_to_copy_have_a_length(page: Path) -> None:
    assert without_length(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("```bash\nzoomseg train data -o model\n```", 1),
        ("```bash\nzoomseg train data -o model --time-budget 1h\n```", 0),
        ("```bash\nzoomseg train data -o model -r mine.yaml\n```", 1),
        ("```bash\nzoomseg train data -o model -r mine.yaml\n```\n```yaml\niterations: 9\n```", 0),
    ],
)
def test_a_training_without_a_length_is_noticed(text: str, wrong: int) -> None:
    assert len(without_length(text)) == wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_examples_call_what_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert [wrong for code in blocks(text, "python") for wrong in unknown_calls(code)] == []


@pytest.mark.parametrize(
    "code", ["zoomseg.fit('data')", "zoomseg.train('data', 'model', hours=1)", "zoomseg.load()"]
)
def test_a_wrong_call_is_noticed(code: str) -> None:
    assert len(unknown_calls(code)) == 1


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](page.md#part) [b](gone.md) [c](https://example.org/x)")
    assert broken_links(page) == ["gone.md"]


def test_recipes_in_the_documentation_load() -> None:
    examples = [b for page in PAGES for b in blocks(page.read_text(encoding="utf-8"), "yaml")]
    recipes = [yaml.safe_load(example) for example in examples if "stages:" in example]
    assert recipes
    for recipe in recipes:
        load.from_dict(recipe)


def test_a_wrong_recipe_is_noticed() -> None:
    with pytest.raises(RecipeError):
        load.from_dict({"name": "a", "stages": []})


def test_json_in_the_documentation_is_json() -> None:
    examples = [b for page in PAGES for b in blocks(page.read_text(encoding="utf-8"), "json")]
    assert examples
    for example in examples:
        json.loads(example)


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))

    def pages(item: object) -> Iterator[str]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, list):
            for part in item:
                yield from pages(part)
        elif isinstance(item, dict):
            for part in item.values():
                yield from pages(part)

    written = [page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")]
    assert sorted(pages(settings["nav"])) == sorted(written)


def test_every_shipped_recipe_is_in_the_reference() -> None:
    text = (DOCS / "reference" / "recipes.md").read_text(encoding="utf-8")
    assert [name for name in load.names() if f"| `{name}` |" not in text] == []


def test_every_kind_and_choice_of_a_recipe_is_explained() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "concepts").glob("*.md"))
    source = (ROOT / "src" / "zoomseg" / "recipe" / "spec.py").read_text(encoding="utf-8")
    choices = "".join(re.findall(r"Literal\[(.*?)\]", source))
    words = set(re.findall(r'"(\w{2,})"', choices)) - {"all", "cascade"}
    assert len(words) > 20
    assert sorted(word for word in words if f"`{word}`" not in text) == []


def test_tables_of_the_concepts_name_no_choice_that_is_gone() -> None:
    schemas = [model.model_json_schema() for model in (spec.Recipe, spec.PlannedRecipe)]
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "concepts").glob("*.md"))
    named = re.findall(r"^\| `(\w+)`", text, re.MULTILINE)
    assert len(named) > 10
    # Or a flag of summary.csv.
    flags = "".join(
        (ROOT / "src" / "zoomseg" / f"{module}.py").read_text(encoding="utf-8")
        for module in ("inference/summary", "anatomy/plausibility")
    )
    assert [word for word in named if f'"{word}"' not in json.dumps(schemas) + flags] == []
