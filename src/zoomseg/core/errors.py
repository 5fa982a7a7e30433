"""Errors a user can act on: what came, what was allowed, what to do next."""

from __future__ import annotations

INTERRUPTED = 130
"""Exit code of a command that was asked to stop, as shells have it after Ctrl-C."""


class ZoomSegError(Exception):
    """Base of every error that is shown to the user as one line."""

    exit_code = 2
    """What the command ends with."""


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
