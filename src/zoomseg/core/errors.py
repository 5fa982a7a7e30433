"""Errors on which a user can act: what was given, what is allowed, what to do."""

from __future__ import annotations

import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

INTERRUPTED = 130
"""Exit code of an interrupted command, as in shells after Ctrl-C."""


MAX_MESSAGE_LENGTH = 2000
"""Maximum number of characters of an error message; the middle of longer ones is omitted."""

NAMED_AT_MOST = 5


def quoted(text: object, longest: int = 100) -> str:
    """External text for an error message: in one line, without control characters, and with the middle
    omitted if it is longer than ``longest`` characters."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    if len(line) <= longest:
        return line
    end = longest // 3
    return f"{line[: longest - end - 3]}...{line[-end:]}"


def listed(names: Sequence[str]) -> str:
    """The first of these names, and the number of the others."""
    more = len(names) - NAMED_AT_MOST
    return ", ".join(names[:NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def without_message(error: Exception) -> str:
    """Place and type of an unexpected exception. Its message may contain a patient's name."""
    return "".join(traceback.format_tb(error.__traceback__)) + type(error).__name__


class ZoomSegError(Exception):
    """Base class of the errors that are shown to the user as a single line."""

    exit_code = 2
    """Exit code of the command."""

    def __init__(self, message: str) -> None:
        super().__init__(quoted(message, MAX_MESSAGE_LENGTH))


class RecipeError(ZoomSegError):
    """A recipe is malformed or cannot be carried out on this data."""


class ScanError(ZoomSegError):
    """A scan or label map cannot be used: unreadable, or of an impossible shape or geometry."""


class DatasetError(ZoomSegError):
    """A data set folder has an unexpected layout, or its contents are contradictory."""


class ModelError(ZoomSegError):
    """A model folder is incomplete or damaged, or the model is for other data."""


class GeometryError(ZoomSegError):
    """Two grids differ that must be equal, or a grid is invalid."""


class LabelError(ZoomSegError):
    """A label name or value is not in the schema."""


class OutputError(ZoomSegError):
    """A result cannot be written (permissions, full disk)."""


class TrainingError(ZoomSegError):
    """Training cannot start or continue."""


class MemoryLimitError(ZoomSegError):
    """Something exceeds the memory limit or the available memory; ``needed`` is the required number of
    bytes."""

    def __init__(self, message: str, needed: int) -> None:
        super().__init__(message)
        self.needed = needed
