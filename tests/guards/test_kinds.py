"""A kind of a recipe that was declared and then forgotten is reported.

mypy (``exhaustive-match``) reports a ``match`` without it, ``tests/docs`` documentation without it. These
tests check the rest: no ``match`` hides it in a wildcard, and a test names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from generate_contributing import KEYS, ROOT, Key, of_key, places


def hidden(key: Key, source: Path | None = None) -> list[str]:
    """Functions whose ``match`` on this key's kinds has a wildcard case."""
    found = of_key(key, places() if source is None else places(source))
    return [p.function for p in found if p.match and p.wildcard]


def untested(kinds: Mapping[str, str], text: str) -> list[str]:
    """Kinds of which a test file names neither the class nor the word."""
    return [kind for kind, name in kinds.items() if not re.search(rf"\b{name or kind}\b|\"{kind}\"", text)]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_no_match_on_kinds_has_a_wildcard(key: Key) -> None:
    assert hidden(key) == []


@pytest.mark.parametrize("rest", ["case _:", "case other:"])
def test_a_wildcard_is_noticed(tmp_path: Path, rest: str) -> None:
    (tmp_path / "a.py").write_text(
        f"def look(roi):\n    match roi:\n        case BodyMask():\n            pass\n"
        f"        {rest}\n            pass\n"
        "def find(roi):\n    match roi:\n        case BodyMask() | BoxAround():\n            pass\n"
    )
    (key,) = (key for key in KEYS if key.name == "roi")
    assert hidden(key, tmp_path) == ["look"]


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_kind_is_in_the_test_of_its_module(key: Key) -> None:
    assert untested(key.kinds, (ROOT / key.test).read_text(encoding="utf-8")) == []


def test_a_kind_without_a_test_is_noticed() -> None:
    kinds = {"box": "BoxAround", "body_mask": "BodyMask", "paste": ""}
    assert untested(kinds, "BodyMasks, a box, and a pasted one") == ["box", "body_mask", "paste"]
    assert untested(kinds, 'BodyMask(), {"kind": "box"}, fuse("paste")') == []
