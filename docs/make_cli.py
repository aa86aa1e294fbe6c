"""Write the reference of all commands and options in docs/cli.md, from the program itself."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
import typer.main

from vlmbatch.bench.config import BenchConfig
from vlmbatch.cli import app
from vlmbatch.commands.config_file import KEYS
from vlmbatch.config.option import opt_fields

PAGE = Path(__file__).with_name("cli.md")
MARKER = "<!-- What follows is made from the program: edit its options, then run make docs. -->\n"
FIELDS = {**{item.name: item for item in opt_fields(BenchConfig)}, **KEYS}
OTHERS = "Other options"  # the panel of options that name none


def page() -> str:
    """What docs/cli.md has to be: its head as it stands, and all commands."""
    head = PAGE.read_text(encoding="utf-8").partition(MARKER)[0]
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    sections = ["\n".join(_command(name, command)) for name, command in commands.items()]
    return head + MARKER + "\n" + "\n\n".join(sections) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    parameters = [parameter for parameter in command.params if parameter.name != "help"]
    arguments = [parameter for parameter in parameters if not parameter.opts[0].startswith("-")]
    options = [parameter for parameter in parameters if parameter not in arguments]
    choices = _choices(name)
    usage = " ".join(["vlmbatch", name, *(argument.metavar for argument in arguments), "[OPTIONS]"])
    yield f"## vlmbatch {name}\n"
    yield f"    {usage}\n"
    yield _text(inspect.cleandoc(command.help))
    for argument in arguments:
        yield f"\n`{argument.metavar}`: {_text(argument.help)}"
    from_elsewhere = any(option.name == "config" for option in options)
    panels: dict[str, list[Any]] = {}
    for option in options:
        panels.setdefault(option.rich_help_panel or OTHERS, []).append(option)
    for panel, members in panels.items():
        yield f"\n### {name}: {panel}\n"
        rows = [
            (
                _flags(option),
                _text(option.help),
                choices.get(option.name) or _bounds(option),
                _default(option),
                _elsewhere(option) if from_elsewhere else "",
            )
            for option in members
        ]
        yield from _table(("option", "", "values", "default", "environment, TOML key"), rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table, without the columns that are empty in all rows."""
    used = [index for index in range(len(head)) if any(row[index] for row in rows)]
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells[index] for index in used)} |"


def _flags(option: Any) -> str:
    metavar = f" {option.metavar}" if option.metavar else ""
    return ", ".join(
        f"`{flag}{metavar if flag.startswith('--') else ''}`"
        for flag in (*option.opts, *option.secondary_opts)
    )


def _choices(command: str) -> dict[str, str]:
    """The values of each parameter that takes one of several, by its name."""
    [function] = [
        registered.callback
        for registered in app.registered_commands
        if registered.callback is not None and registered.callback.__name__ == command
    ]
    found = {}
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        kind, *_ = get_args(parameter.annotation) or (None,)  # Typer's context
        if get_origin(kind) is Literal:
            found[name] = ", ".join(f"`{value}`" for value in get_args(kind))
    return found


def _bounds(option: Any) -> str:
    item = FIELDS.get(option.name)
    if item is None or item.opt.minimum is None:
        return ""
    if item.opt.maximum is not None:
        return f"{item.opt.minimum} to {item.opt.maximum}"
    return f"at least {item.opt.minimum}"


def _default(option: Any) -> str:
    if option.is_flag or option.count or option.default is None:
        return ""
    return f"`{option.default}`"


def _elsewhere(option: Any) -> str:
    variable = f"`VLMBATCH_{option.name.upper()}`"
    return f"{variable}, `{option.name}`" if option.name in KEYS else variable


def _text(text: str) -> str:
    """Help as Markdown: placeholders are no tags, stars are stars, bars are part of their cell."""
    text = re.sub(r"(?<!`)(<\w+>|\{\w+\})", r"`\1`", text)
    return re.sub(r"(?<!`)([*|])", r"\\\1", text)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}", file=sys.stderr)
