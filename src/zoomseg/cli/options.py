"""Options that several commands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def models_option(several: str) -> Callable[[F], F]:
    """``-m``: models, of folders or by name; ``several`` says what more than one are for."""
    return click.option(
        "-m",
        "--model",
        "models",
        metavar="MODEL",
        multiple=True,
        default=("abdomen-ct",),
        show_default=True,
        help=f"Folder that `train` wrote, or a model that comes with ZoomSeg. {several}",
    )
