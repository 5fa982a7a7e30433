"""Generated parts of CONTRIBUTING.md are up to date, and complete."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, get_origin

import generate_contributing as made
from zoomseg.recipe import spec

STAGES = made.ROOT / "docs" / "concepts" / "stages.md"


def test_the_generated_parts_are_up_to_date() -> None:
    text = made.PAGE.read_text(encoding="utf-8")
    assert made.page(text) == text, "run: python docs/generate_contributing.py"


def test_a_part_that_is_not_up_to_date_is_noticed() -> None:
    text = made.PAGE.read_text(encoding="utf-8")
    for old, new in (
        ("\ncore  ", "\nkernel"),
        ("`pipeline/roi.py` `find_region`", "`pipeline/roi.py` `look`"),
    ):
        stale = text.replace(old, new)
        assert stale != text
        assert made.page(stale) == text


def test_every_union_of_kinds_has_a_key() -> None:
    unions = {
        name for name, value in vars(spec).items() if get_origin(value) is Annotated and name.endswith("Spec")
    }
    assert {key.union for key in made.KEYS} == unions | {"FusionKind"}


def test_every_module_test_and_section_is_there() -> None:
    headings = set(re.findall(r"^## (.*)", STAGES.read_text(encoding="utf-8"), re.MULTILINE))
    for key in made.KEYS:
        assert (made.SOURCE / key.module).is_file(), key
        assert (made.ROOT / key.test).is_file(), key
        assert key.section in headings, key


def test_every_key_is_computed_where_the_page_says() -> None:
    for key in made.KEYS:
        assert key.module in {place.module for place in made.of_key(key, made.places())}, key


def test_places_are_found_by_class_and_by_word(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(
        "def one(roi):\n    match roi:\n        case spec.BodyMask() | BoxAround(of=of):\n            pass\n"
        "def two(roi):\n    return isinstance(roi, BoxAround)\n"
        "def three(stage):\n    return stage.roi.kind != 'whole_volume'\n"
        "def four(kind):\n    return kind in ('box', 'circle')\n"
        "def five(text):\n    return text == 'whole_volume'\n"
    )
    (key,) = (key for key in made.KEYS if key.name == "roi")
    found = made.of_key(key, made.places(tmp_path))
    assert [(place.function, place.match) for place in found] == [
        ("one", True),
        ("two", False),
        ("three", False),
    ]
