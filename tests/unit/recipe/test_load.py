"""Content of files is hostile until checked; every problem is one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from zoomseg.core.errors import RecipeError
from zoomseg.recipe import load
from zoomseg.recipe.spec import PlannedRecipe, Recipe


@pytest.mark.parametrize("name", load.names())
def test_shipped_recipes_load_under_their_own_name_and_survive_a_round_trip(
    name: str, tmp_path: Path
) -> None:
    recipe = load.load(name)
    assert recipe.name == name
    assert recipe.description
    file = tmp_path / "copy.yaml"
    file.write_text(load.dump(recipe), encoding="utf-8")
    assert load.load(file) == recipe
    assert load.load(str(file)) == recipe


def test_the_shipped_recipes() -> None:
    assert load.names() == (
        "default",
        "flare22-whole-volume",
        "roth2018-cascade",
        "roth2018-pyramid",
        "valindria2018-small-organs",
        "zhou2016-2d-vote",
    )
    assert isinstance(load.load("default"), PlannedRecipe)
    assert isinstance(load.load("roth2018-cascade"), Recipe)


@pytest.mark.parametrize("name", [name for name in load.names() if name != "default"])
def test_no_published_method_expands_a_region_or_removes_misplaced_parts(name: str) -> None:
    recipe = load.load(name)
    assert isinstance(recipe, Recipe)
    assert not recipe.roi_expansion
    assert not recipe.remove_misplaced


@pytest.mark.parametrize("key", ["roi_expansion", "remove_misplaced"])
def test_a_recipe_of_before_the_key_has_the_step(key: str) -> None:
    """As every saved model did then."""
    recipe = load.load("roth2018-cascade")
    assert getattr(Recipe.model_validate(recipe.model_dump(exclude={key})), key)


def test_dump_fills_defaults_in_and_starts_mappings_with_their_kind() -> None:
    data = yaml.safe_load(load.dump(load.load("roth2018-cascade")))
    assert data["stages"][0]["inputs"] == [{"kind": "image", "channel": "all"}]
    assert data["stages"][0]["training"]["augmentation"]["brightness"] == 0
    assert next(iter(data["stages"][0]["grid"])) == "kind"


def test_the_graph_is_checked_on_loading() -> None:
    data = yaml.safe_load(load.dump(load.load("roth2018-cascade")))
    data["stages"][1]["roi"]["of"] = "stage3"
    with pytest.raises(
        RecipeError, match=r"^mine: stage 'stage2', roi\.of: 'stage3' is not an earlier stage"
    ):
        load.from_dict(data, "mine")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            "roth2018-casc",
            "no recipe 'roth2018-casc'; did you mean 'roth2018-cascade'. Included: default, flare22",
        ),
        ("Default", "no recipe 'Default'; did you mean 'default'"),
        (
            "qqq",
            "no recipe 'qqq'; included: default, flare22-whole-volume, .*zhou2016-2d-vote; or give the path",
        ),
        ("nowhere/mine.yaml", "no file 'nowhere/mine.yaml'; included"),
        ("x" * 300, "no recipe 'xxx"),
        ("", "no recipe ''"),
        ("..", "no recipe '..'"),
        ("../recipes/default", "no file"),
    ],
)
def test_what_does_not_exist_is_named_with_what_does(given: str, line: str) -> None:
    with pytest.raises(RecipeError, match=line):
        load.load(given)


def laughs(doubled: str) -> bytes:
    """Forty aliases, each containing the previous one twice: 2^40 values when resolved."""
    return "".join(f"a{n + 1}: &a{n + 1} {doubled.format(n)}\n" for n in range(40)).encode()


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"name: a\nname: b\n", r"key 'name' is duplicated \(line 2\)"),
        (b"a: {b: 1, 'b': 2}", r"key 'b' is duplicated \(line 1\)"),
        (b"? [a, b]\n: 1\n", r"not valid YAML: found unhashable key \(line 1, column 3\)"),
        (b"name: [1, 2\n", r"not valid YAML: .*\(line 2, column 1\)"),
        (b"\xff\xfe\x00", "not UTF-8"),
        (
            b"a: !!python/object/apply:os.system [true]",
            r"the tag '!!python/object/apply:os.system' is not allowed",
        ),
        (b"a: 2020-13-45", "not valid YAML: month must be"),
        (b"[" * 50_000, "not valid YAML: maximum recursion"),
        (b"a: &a [*a]", r"its aliases stand for more than 50,000 values \(line 1, column 4\)"),
        (b"a: !!bool x", r"the tag '!!bool' is not allowed; write the plain value \(line 1, column 4\)"),
        (b"a: !!timestamp x", "the tag '!!timestamp' is not allowed"),
        (b"a: !!int ''", "the tag '!!int' is not allowed"),
        (b"a: !!float 1.2.3", "the tag '!!float' is not allowed"),
        (b"a: !!binary 'x'", "the tag '!!binary' is not allowed"),
        (b"a: !!set {b}", "the tag '!!set' is not allowed"),
        (b"a: !mine 1", "the tag '!mine' is not allowed"),
        (b"a: " + b"1" + b":59" * 400 + b".5", "not valid YAML: int too large"),
        (b"a: " + b"9" * 5000, "not valid YAML: Exceeds the limit"),
        (b"seed: 0x" + b"f" * 5000, "unknown key 'seed'"),
        (
            b"a0: &a0 {k: 1}\n" + laughs("{{<<: [*a{0}, *a{0}]}}"),
            "its aliases stand for more than 50,000 values",
        ),
        (b"a0: &a0 [1]\n" + laughs("[*a{0}, *a{0}]"), "its aliases stand for more than 50,000 values"),
        (b"#" * (load.MAX_FILE_BYTES + 1), "larger than 200 kB"),
        (b"", "a recipe is a mapping of keys, got None"),
        (b"- 1", r"a recipe is a mapping of keys, got \[1\]"),
        (b"a: \x00", "not valid YAML"),
    ],
)
def test_hostile_files_get_one_line(content: bytes, line: str, tmp_path: Path) -> None:
    file = tmp_path / "hostile.yaml"
    file.write_bytes(content)
    with pytest.raises(RecipeError, match=line) as caught:
        load.load(file)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(file))


def test_anchors_and_merges_may_be_used_and_overridden(tmp_path: Path) -> None:
    file = tmp_path / "merge.yaml"
    text = load.dump(load.load("default")).replace("iterations: 20000", "<<: {iterations: 5, batch: 7}")
    file.write_text(text, encoding="utf-8")
    recipe = load.load(file)
    assert isinstance(recipe, PlannedRecipe)
    assert (recipe.iterations, recipe.batch) == (5, 2)


def test_numbers_written_as_yaml_text_are_numbers(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-2 (no dot) as text."""
    file = tmp_path / "e.yaml"
    text = load.dump(load.load("default")).replace("learning_rate: 0.01", "learning_rate: 1e-2")
    assert "1e-2" in text
    file.write_text(text, encoding="utf-8")
    recipe = load.load(file)
    assert isinstance(recipe, PlannedRecipe)
    assert recipe.learning_rate == 0.01


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "locked.yaml"
    file.write_text("name: x", encoding="utf-8")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RecipeError, match=r"cannot read recipe .*locked\.yaml: Permission denied"):
        load.load(file)
