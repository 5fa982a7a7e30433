"""Errors a user can act on: what came, what was allowed, what to do next."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code of a command that was asked to stop, as shells have it after Ctrl-C."""


LONGEST = 2000
"""Characters of an error's line; of longer ones the middle goes."""

NAMED_AT_MOST = 5


def quoted(text: object, longest: int = 100) -> str:
    """Something that came from outside as an error names it: in one line, without control characters, and
    no longer than ``longest`` characters, which cost the middle."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 3]}...{line[-end:]}"


def listed(names: Sequence[str]) -> str:
    """The first of these names, and how many more there are."""
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


class ZoomSegError(Exception):
    """Base of every error that is shown to the user as one line, whatever names from files are in it."""

    exit_code = 2
    """What the command ends with."""

    def __init__(self, message: str) -> None:
        super().__init__(quoted(message, LONGEST))


class RecipeError(ZoomSegError):
    """A recipe is malformed or cannot be carried out on this data."""


class ScanError(ZoomSegError):
    """A scan or label map cannot be used: unreadable, or of an impossible shape or geometry."""


class DatasetError(ZoomSegError):
    """A data set folder is not laid out as expected, or its contents contradict each other."""


class ModelError(ZoomSegError):
    """A model folder is incomplete, damaged or made for other data."""


class GeometryError(ZoomSegError):
    """Two grids that must agree do not, or a grid cannot exist."""


class LabelError(ZoomSegError):
    """A label name or value is not in the schema."""


class OutputError(ZoomSegError):
    """A result cannot be written (permissions, full disk)."""


class TrainingError(ZoomSegError):
    """Training cannot start or go on."""


class MemoryLimitError(ZoomSegError):
    """Something does not fit into the memory that the user allows, or that there is; ``needed`` bytes would
    have to be allowed."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed
