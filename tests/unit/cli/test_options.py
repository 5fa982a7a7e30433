"""Options common to several commands."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from zoomseg.cli.main import main
from zoomseg.cli.options import models_option


@click.command()
@models_option("Several form an ensemble.")
def told(models: tuple[str, ...]) -> None:
    click.echo(" and ".join(models))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [((), "abdomen-ct"), (("-m", "a"), "a"), (("-m", "b", "--model", "a"), "b and a")],
)
def test_models_in_the_order_given(arguments: tuple[str, ...], expected: str) -> None:
    assert CliRunner().invoke(told, arguments).output == f"{expected}\n"


@pytest.mark.parametrize(
    ("command", "several"),
    [("predict", "Several models form an ensemble"), ("serve", "With several models, users choose one")],
)
def test_commands_say_what_several_models_are_for(
    command: str, several: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert f"or name of an included model. {several}" in shown
