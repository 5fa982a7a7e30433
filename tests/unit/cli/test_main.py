"""The command group: its list of commands, and the exit code of every outcome."""

from __future__ import annotations

import importlib.metadata
from types import SimpleNamespace

import click
import pytest

from zoomseg.cli import main as module
from zoomseg.cli.main import COMMANDS, cli, main
from zoomseg.core.errors import ScanError


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def act(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Replaces the command ``check`` by ``act.does``."""
    stand_in = SimpleNamespace(does=lambda: 0)

    @click.command()
    @click.option("--number", type=int)
    def command(number: int | None) -> object:
        return stand_in.does()

    monkeypatch.setattr(module.importlib, "import_module", lambda name: SimpleNamespace(command=command))
    return stand_in


def fail(error: BaseException) -> object:
    raise error


def test_help_lists_every_command_with_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    for name, line in COMMANDS.items():
        assert f"{name} " in out
        assert line.split(":")[0].split(".")[0] in out


def test_short_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("-h") == 0
    assert "Usage: " in capsys.readouterr().out
    assert run("--version") == 0
    assert importlib.metadata.version("zoomseg") in capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_exists_under_its_name(name: str) -> None:
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    assert command.callback is not None
    assert command.callback.__module__.removesuffix("_") == f"zoomseg.cli.{name}"


def test_unknown_command_is_one_error_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("frobnicate") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "No such command 'frobnicate'.\n" in captured.err


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("predct", "predict"),
        ("evalute", "evaluate"),
        ("Train", "train"),
        ("segment", "predict"),
        ("infer", "predict"),
        ("score", "evaluate"),
    ],
)
def test_a_command_that_is_misspelled_gets_a_suggestion(
    capsys: pytest.CaptureFixture[str], given: str, meant: str
) -> None:
    assert run(given) == 2
    assert f"No such command '{given}'. Did you mean '{meant}'?" in capsys.readouterr().err


@pytest.mark.parametrize(("returned", "code"), [(0, 0), (1, 1), (None, 0)])
def test_what_a_command_returns_is_the_exit_code(act: SimpleNamespace, returned: object, code: int) -> None:
    act.does = lambda: returned
    assert run("check") == code


def test_our_errors_are_one_line_and_exit_code_2(
    act: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    act.does = lambda: fail(ScanError("a.nii.gz: voxels missing; copy it again"))
    assert run("check") == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "zoomseg: a.nii.gz: voxels missing; copy it again\n"


def test_wrong_options_are_exit_code_2(act: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", "--number", "many") == 2
    assert "'many' is not a valid integer" in capsys.readouterr().err


def test_ctrl_c_is_not_a_traceback(act: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    act.does = lambda: fail(KeyboardInterrupt())
    assert run("check") == 130
    assert capsys.readouterr().err.strip() == "zoomseg: interrupted"


def test_a_bug_keeps_its_traceback(act: SimpleNamespace) -> None:
    act.does = lambda: fail(ZeroDivisionError("division by zero"))
    with pytest.raises(ZeroDivisionError):
        main(["check"])


def test_an_error_of_the_system_is_one_line(act: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    act.does = lambda: fail(PermissionError(13, "Permission denied", "/scans/recipe.yaml"))
    assert run("check") == 2
    assert capsys.readouterr().err == "zoomseg: /scans/recipe.yaml: Permission denied\n"
