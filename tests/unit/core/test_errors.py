"""Every error that a user can meet is caught by one handler and shown as one line."""

from __future__ import annotations

import inspect

import pytest

from zoomseg.core import errors

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_is_a_zoomseg_error_that_says_what_it_was_told(kind: type[Exception]) -> None:
    with pytest.raises(errors.ZoomSegError, match=r"^what came; what is allowed$"):
        raise kind("what came; what is allowed")


@pytest.mark.parametrize("kind", KINDS)
def test_every_error_says_when_it_is_raised(kind: type[Exception]) -> None:
    assert kind.__doc__


def test_errors_end_a_command_with_exit_code_2() -> None:
    assert {kind.exit_code for kind in KINDS} == {2}
