"""Every error that a user can meet is caught by one handler and shown as one line."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from zoomseg.core import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_zoomseg_error_that_says_what_it_was_told(kind: type[Exception]) -> None:
    more = {"needed": 7} if kind is errors.MemoryLimitError else {}
    with pytest.raises(errors.ZoomSegError, match=r"^what came; what is allowed$"):
        raise kind("what came; what is allowed", **more)


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_says_when_it_is_raised(kind: type[Exception]) -> None:
    assert kind.__doc__


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("two\nlines\t\x1b[31m", "two lines  [31m"),
        ("Größe 脾 [b]", "Größe 脾 [b]"),
        ("\ud800", " "),
        (Path("a/b"), "a/b"),
    ],
)
def test_what_comes_from_outside_is_quoted_in_one_line(text: object, line: str) -> None:
    assert errors.quoted(text) == line


def test_what_is_long_keeps_its_ends() -> None:
    assert errors.quoted("a" * 500 + "z" * 500, 30) == "a" * 17 + "..." + "z" * 10
    assert errors.quoted("x" * 100) == "x" * 100


def test_an_error_is_one_line_whatever_is_in_it() -> None:
    message = str(errors.ScanError("scan\n" + "x" * 10_000 + ": truncated"))
    assert message.startswith("scan xxx")
    assert message.endswith("x: truncated")
    assert len(message) == errors.MAX_MESSAGE_LENGTH


def test_errors_end_a_command_with_exit_code_2() -> None:
    assert {kind.exit_code for kind in KINDS} == {2}
