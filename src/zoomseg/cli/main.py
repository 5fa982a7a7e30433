"""The ``zoomseg`` command: a group that imports a command's module only when that command runs."""

from __future__ import annotations

import difflib
import importlib
import keyword
import sys
from typing import NoReturn

import click

from zoomseg.core.errors import INTERRUPTED, ZoomSegError
from zoomseg.core.extras import explained
from zoomseg.core.interrupts import handling_interrupts

COMMANDS = {
    "demo": "Train, predict and evaluate on synthetic scans, in minutes.",
    "check": "Audit a data set before training; --fix writes a repaired copy.",
    "recipes": "List the recipes, print one, or plan one for a data set.",
    "ceiling": "Compute the best Dice that a recipe permits, per organ.",
    "train": "Train a recipe on labelled scans.",
    "stitch": "Join a scan acquired in overlapping stations (whole-body MR).",
    "import": "Convert models of nnU-Net or TotalSegmentator.",
    "accelerate": "Make a model faster: learn from unlabelled scans where its organs are.",
    "predict": "Segment scans with a trained model.",
    "gather": "Summarise what several jobs predicted into one folder.",
    "evaluate": "Score predictions against references: Dice, NSD, HD95, ASSD, volumes.",
    "compare": "Compare evaluations of the same cases: differences, intervals, paired tests.",
    "view": "Show a scan and its label map in the browser.",
    "node": "Run a DICOM node: receive series, segment them by rules, send the results back.",
    "serve": "Segment in the browser: drop a scan, inspect its organs, download the results.",
    "export": "Export a model as a zip that runs without ZoomSeg or PyTorch.",
    "study": "Rerun a paper's ablation on your data.",
}
"""Command name -> one line of help. The command is ``command`` in ``zoomseg.cli.<name>``, or ``<name>_`` if
the name is reserved in Python."""


OTHER_NAMES = {
    "infer": "predict",
    "inference": "predict",
    "score": "evaluate",
    "segment": "predict",
    "test": "predict",
}
"""Name of a command in other programs -> ours, which is suggested."""


class LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = f"{cmd_name}_" if keyword.iskeyword(cmd_name) else cmd_name
        module = importlib.import_module(f"zoomseg.cli.{name}")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            known = OTHER_NAMES.get(args[0])
            alike = [known] if known else difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not alike:
                raise
            raise click.UsageError(f"{error.message} Did you mean '{alike[0]}'?", ctx) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="zoomseg")
def cli() -> None:
    """Coarse-to-fine organ segmentation of CT and MR. Research software, not for diagnosis.

    Exit codes: 0 success; 1 some cases failed (each is reported, the others are written); 2 wrong usage or
    unreadable input; 130 interrupted. Ctrl-C or SIGTERM stops and keeps finished results; a second one stops
    immediately.
    """


def main(arguments: list[str] | None = None) -> None:
    try:
        with handling_interrupts():
            code = cli.main(args=arguments, standalone_mode=False)
    except ModuleNotFoundError as error:
        command = next((a for a in (sys.argv[1:] if arguments is None else arguments) if a in COMMANDS), "")
        missing = explained(error, f"zoomseg {command}".strip())
        if missing is None:
            raise
        _end(missing)
    except ZoomSegError as error:
        _end(error)
    except OSError as error:  # of a path that no check foresaw: without permission, with too long a name
        _end(ZoomSegError(f"{error.filename or 'input or output'}: {error.strerror or error}"))
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("zoomseg: interrupted", err=True)
        sys.exit(INTERRUPTED)
    sys.exit(code if isinstance(code, int) else 0)


def _end(error: ZoomSegError) -> NoReturn:
    click.echo(f"zoomseg: {error}", err=True)
    sys.exit(error.exit_code)
