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

from vlmbatch.cli import app
from vlmbatch.settings import KEYS

PAGE = Path(__file__).with_name("cli.md")
MARKER = "<!-- What follows is made from the program: edit its options, then run make docs. -->\n"
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
        kind = get_args(parameter.annotation)[0]
        if get_origin(kind) is Literal:
            found[name] = ", ".join(f"`{value}`" for value in get_args(kind))
    return found


def _bounds(option: Any) -> str:
    if option.count:
        return ""
    least, most = option.min, option.max
    if least is None and option.callback is not None and option.metavar == "N":
        # Bounds that the option's own check knows: -1 that is taken stands for none.
        least = next(number for number in (-1, 0, 1) if _accepts(option, number))
        least = None if least == -1 else least
    if most is not None:
        return f"{least} to {most}"
    return "" if least is None else f"at least {least}"


def _accepts(option: Any, number: int) -> bool:
    try:
        option.callback(None, option, number)
    except typer.BadParameter:
        return False
    return True


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
