"""Options shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

F = TypeVar("F", bound=Callable[..., Any])


def given_by_user(context: click.Context) -> frozenset[str]:
    """Names of the parameters that the user gave, even if with their default values."""
    default = ParameterSource.DEFAULT
    return frozenset(name for name in context.params if context.get_parameter_source(name) is not default)


def models_option(several: str) -> Callable[[F], F]:
    """``-m``: models, by folder or by name; ``several`` explains the meaning of several models."""
    return click.option(
        "-m",
        "--model",
        "models",
        metavar="MODEL",
        multiple=True,
        default=("abdomen-ct",),
        show_default=True,
        help=f"Model folder written by `train`, or name of an included model. {several}",
    )
