"""Write ``docs/reference/commands.md`` from the commands themselves: ``python docs/generate_reference.py``.

A test compares the committed page with what this gives, so that it is never typed and never stale.
"""

from __future__ import annotations

import html
import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from zoomseg.cli.main import COMMANDS, cli

PAGE = Path(__file__).parent / "reference" / "commands.md"


def reference() -> str:
    """The whole page."""
    context = click.Context(cli, info_name="zoomseg")
    lines = [
        "# Commands",
        "",
        "<!-- Written by docs/generate_reference.py; change the commands, not this page. -->",
        "",
        *_paragraphs(cli),
        "| command | purpose |",
        "|---|---|",
        *(f"| [`zoomseg {name}`](#zoomseg-{name}) | {purpose} |" for name, purpose in COMMANDS.items()),
        "",
    ]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        assert command is not None
        lines += _section(name, command)
    return "\n".join(lines).rstrip() + "\n"


def _section(name: str, command: click.Command) -> Iterator[str]:
    arguments = [p for p in command.params if isinstance(p, click.Argument)]
    options = [p for p in command.params if isinstance(p, click.Option)]
    yield from (f"## zoomseg {name}", "", "```bash", _usage(name, arguments, options), "```", "")
    yield from _paragraphs(command)
    if options:
        yield from ("| option | meaning |", "|---|---|")
        yield from (f"| {_names(option)} | {_meaning(option)} |" for option in options)
        yield ""


def _usage(name: str, arguments: list[click.Argument], options: list[click.Option]) -> str:
    words = [f"zoomseg {name}"]
    for argument in arguments:
        word = (argument.name or "").upper() + ("..." if argument.nargs == -1 else "")
        words.append(word if argument.required else f"[{word}]")
    words += [f"{option.opts[0]} {_value(option)}" for option in options if option.required]
    if any(not option.required for option in options):
        words.append("[OPTIONS]")
    return " ".join(words)


def _paragraphs(command: click.Command) -> Iterator[str]:
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        yield from (html.escape(paragraph.replace("\n", " "), quote=False), "")


def _names(option: click.Option) -> str:
    value = "" if option.is_flag else f" {_value(option)}"
    return (
        ", ".join(f"`{name}`" for name in option.opts[:-1])
        + (", " if option.opts[1:] else "")
        + (f"`{option.opts[-1]}{value}`")
    )


def _value(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "|".join(map(str, option.type.choices))
    kinds = {click.types.IntParamType: "NUMBER", click.types.FloatParamType: "NUMBER", click.Path: "PATH"}
    kind = next((word for base, word in kinds.items() if isinstance(option.type, base)), "TEXT")
    return option.metavar or kind


def _meaning(option: click.Option) -> str:
    text = (option.help or "").replace("|", "\\|")
    if option.required:
        return f"{text} Required."
    shown = option.show_default and not option.is_flag and option.default is not None
    default = ", ".join(option.default) if isinstance(option.default, tuple) else option.default
    return f"{text} Default: `{default}`." if shown else text


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(reference(), encoding="utf-8")
