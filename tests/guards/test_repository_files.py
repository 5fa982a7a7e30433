"""Files that other programs read: workflows, forms, hooks, the citation, packaged files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from zoomseg.recipe import load

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
FORMS = [
    path for path in sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")) if path.name != "config.yml"
]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

REFERENCE_TYPES = {"article", "conference-paper"}


def parsed(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def missing_in_citation(data: dict[str, Any]) -> list[str]:
    """Keys that the Citation File Format 1.2.0 requires, of the file and of its references."""
    missing = [key for key in ("cff-version", "message", "title", "authors") if not data.get(key)]
    for reference in data.get("references", ()):
        keys = ("type", "title", "authors", "year")
        missing += [f"{reference.get('title')}: {key}" for key in keys if not reference.get(key)]
    people = [data, *data.get("references", ())]
    named = [author for one in people for author in one.get("authors") or ()]
    missing += [str(author) for author in named if not {"name", "family-names"} & set(author)]
    return missing


def broken_form(form: dict[str, Any]) -> list[str]:
    """What GitHub would refuse in an issue form: parts without required fields, duplicate ids."""
    wrong = [key for key in ("name", "description", "body") if not form.get(key)]
    kinds = {
        "markdown": "value",
        "textarea": "label",
        "input": "label",
        "dropdown": "options",
        "checkboxes": "options",
    }
    for number, part in enumerate(form.get("body") or ()):
        needed = kinds.get(part.get("type", ""))
        if needed is None or not part.get("attributes", {}).get(needed):
            wrong.append(f"body[{number}]")
    ids = [part["id"] for part in form.get("body") or () if "id" in part]
    return wrong + sorted({name for name in ids if ids.count(name) > 1})


def test_the_citation_has_what_is_required() -> None:
    data = parsed(ROOT / "CITATION.cff")
    assert missing_in_citation(data) == []
    assert data["version"] == SETTINGS["project"]["version"]
    assert data["license"] == SETTINGS["project"]["license"]
    assert {reference["type"] for reference in data["references"]} <= REFERENCE_TYPES


def test_a_citation_without_authors_is_noticed() -> None:
    whole = parsed(ROOT / "CITATION.cff")
    assert missing_in_citation({**whole, "authors": []}) == ["authors"]
    assert missing_in_citation({**whole, "authors": [{"email": "a@example.org"}]}) == [
        "{'email': 'a@example.org'}"
    ]
    bare = {"type": "article", "title": "On cascades", "authors": [{"name": "A"}]}
    assert missing_in_citation({**whole, "references": [bare]}) == ["On cascades: year"]


def test_every_published_recipe_is_cited_as_on_its_page() -> None:
    by_recipe = {r["notes"].removeprefix("Recipe "): r for r in parsed(ROOT / "CITATION.cff")["references"]}
    assert set(by_recipe) == {name for name in load.names() if name != "default"}
    for name, reference in by_recipe.items():
        page = (ROOT / "docs" / "papers" / f"{name}.md").read_text(encoding="utf-8")
        assert f"*{reference['title']}.*" in page
        authors = ", ".join(f"{a['given-names']} {a['family-names']}" for a in reference["authors"])
        assert authors in " ".join(page.split())
        assert str(reference["year"]) in page
        if "start" in reference:
            assert f"{reference['start']}-{reference['end']}" in page


@pytest.mark.parametrize("path", FORMS, ids=lambda p: p.name)
def test_issue_forms_are_whole_and_ask_for_no_patient_data(path: Path) -> None:
    assert broken_form(parsed(path)) == []
    assert "patient data" in path.read_text(encoding="utf-8")


def test_a_broken_form_is_noticed() -> None:
    body = [{"type": "input", "id": "a", "attributes": {"label": "A"}}, {"type": "text", "attributes": {}}]
    assert broken_form({"name": "N", "description": "D", "body": body}) == ["body[1]"]
    assert broken_form({"name": "N", "body": [body[0], body[0]]}) == ["description", "a"]


def test_the_form_for_scans_asks_for_the_audit_and_the_header() -> None:
    (form,) = (parsed(path) for path in FORMS if path.name == "scan.yml")
    required = {part["id"] for part in form["body"] if part.get("validations", {}).get("required")}
    assert {"check", "header", "version"} <= required
    assert "zoomseg check" in str(form)


def test_workflows_may_only_write_what_they_must() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "release"]
    for path in WORKFLOWS:
        flow = parsed(path)
        assert flow["permissions"] == {"contents": "read"}
        assert all(job["timeout-minutes"] for job in flow["jobs"].values())
    assert parsed(WORKFLOWS[1])["jobs"]["release"]["permissions"] == {"contents": "write"}


def test_ci_is_the_one_command_that_everybody_has() -> None:
    steps = parsed(WORKFLOWS[0])["jobs"]["test"]["steps"]
    assert [step["run"] for step in steps if "run" in step] == [".ci/run"]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_ci_runs_the_oldest_python_that_is_supported() -> None:
    versions = parsed(WORKFLOWS[0])["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert SETTINGS["project"]["requires-python"] == f">={versions[0]}"


def test_a_release_is_built_with_uv_and_published_to_no_registry() -> None:
    text = WORKFLOWS[1].read_text(encoding="utf-8")
    assert "uv build" in text
    assert "gh release create" in text
    assert re.findall(r"uv publish|twine|pypa/", text) == []


def test_hooks_run_in_the_projects_own_environment() -> None:
    repositories = parsed(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repository["repo"] for repository in repositories] == ["local"]
    hooks = repositories[0]["hooks"]
    assert {"ruff-format", "ruff-check", "mypy", "import-layers"} <= {hook["id"] for hook in hooks}
    assert [
        hook["id"] for hook in hooks if "uv run " not in hook["entry"] or hook["language"] != "system"
    ] == []


def test_the_wheel_holds_the_package_alone() -> None:
    """And the files that the hook copies from another package (``hatch_build.py``)."""
    expected = {"packages": ["src/zoomseg"], "hooks": {"custom": {}}}
    assert SETTINGS["tool"]["hatch"]["build"]["targets"]["wheel"] == expected
