"""Typer commands whose options are the fields of configurations, declared there and nowhere else.

A parameter of a command's function is a configuration, all of whose options the command then has,
or one option, ``Annotated[kind, Opt(...)]``. ``config_file`` is the path that ``--config`` gives.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, is_dataclass
from pathlib import Path
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from vlmbatch import log
from vlmbatch.commands.config_file import KEYS, load_settings
from vlmbatch.commands.environment import misspelt_variables
from vlmbatch.commands.given_names import fields_as_given
from vlmbatch.commands.reporting import ReportOptions
from vlmbatch.config import typed
from vlmbatch.config.option import Opt, OptField, build, opt_fields
from vlmbatch.config.shipped import find_config
from vlmbatch.config.units import UNITS
from vlmbatch.errors import ConfigError

CONFIG_FILE = "config_file"  # the parameter of a command's function for the file of --config


@dataclass(frozen=True, slots=True)
class Without:
    """Beside a configuration: its options that the command does not have, by name."""

    names: frozenset[str]


def without(*names: str) -> Without:
    """``Annotated[Config, without("name", ...)]``: all options of ``Config`` but these."""
    return Without(frozenset(names))


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """``function`` as Typer takes it: a parameter an option, and ``--config`` for all of them."""
    parameters = inspect.signature(function).parameters
    hints = get_type_hints(function, include_extras=True)
    groups = {
        name: list(_options_of(name, hints[name], parameter.default))
        for name, parameter in parameters.items()
        if name != CONFIG_FILE
    }
    configs = {name: _config_of(function, name) for name in groups}
    options = [item for group in groups.values() for item in group]

    @functools.wraps(function)
    def command(ctx: typer.Context, **given: Any) -> None:
        with fields_as_given(ctx, options):
            call(given)

    def call(given: dict[str, Any]) -> None:
        ready: dict[str, Any] = {}
        # Reporting comes first: what is wrong with the others is reported as it says.
        for name, config in sorted(configs.items(), key=lambda pair: pair[1] is not ReportOptions):
            values = {item.name: given[item.name] for item in groups[name]}
            ready[name] = values[groups[name][0].name] if config is None else build(config, values)
            if config is ReportOptions:
                ready[name].configure_log()
        if CONFIG_FILE in parameters:
            ready[CONFIG_FILE] = given["config"]
        for variable, meant in misspelt_variables(os.environ, {*KEYS, *given}):
            log.logger.warning(
                "%s in the environment sets no option; did you mean %s?", variable, meant
            )
        function(**ready)

    positional = [_parameter(item) for item in options if item.opt.positional]
    named = [_parameter(item) for item in options if not item.opt.positional]
    signature = [_CONTEXT, *positional, *named, _CONFIG_FILE]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in signature}
    return command


def _config_of(function: Callable[..., None], name: str) -> type | None:
    """The class of a parameter that is a configuration."""
    hint = get_type_hints(function)[name]
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _options_of(name: str, hint: Any, default: Any) -> Iterator[OptField]:
    """The options that a parameter of a command brings along."""
    kind, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    for extra in extras:
        if isinstance(extra, Opt):
            default = MISSING if default is inspect.Parameter.empty else default
            yield OptField((name,), kind, default, extra)
            return
    items = [item for item in opt_fields(kind) if not item.opt.python_only]
    left_out = {name for extra in extras if isinstance(extra, Without) for name in extra.names}
    unknown = left_out - {item.name for item in items}
    assert not unknown, f"{kind.__name__} has no option {', '.join(unknown)}"
    yield from (item for item in items if item.name not in left_out)


def _parameter(item: OptField) -> inspect.Parameter:
    """An option as a parameter of a function that Typer reads."""
    opt = item.opt
    shared: dict[str, Any] = {"metavar": opt.metavar, "help": opt.help, "callback": _callback(item)}
    default = None if item.default is MISSING else item.default
    kind: Any
    if opt.positional:
        kind, default = str, inspect.Parameter.empty
        declared = typer.Argument(**shared)
    else:
        names = [item.flag] if opt.short is None else [item.flag, opt.short]
        shared |= {"rich_help_panel": opt.panel, "show_envvar": False}
        kind = item.kind
        if opt.unit is not None:
            kind = str | None
            default = None if default is None else UNITS[opt.unit].show(default)
        elif item.plain_kind is Path:
            kind = str | None  # as a Path, no text would be "."
        elif item.item_kind is not None:
            kind, default = GenericAlias(list, item.item_kind) | None, None
        elif opt.counts:
            shared |= {"count": True, "show_default": False}
        elif opt.unsets:
            default = False
        elif item.plain_kind is bool:
            shared["show_default"] = "/" not in item.flag
        elif default == "":
            shared["show_default"] = False
        elif default is None:
            kind = item.plain_kind | None
        declared = typer.Option(*names, **shared)
    return inspect.Parameter(
        item.name,
        inspect.Parameter.KEYWORD_ONLY if not opt.positional else _POSITIONAL,
        default=default,
        annotation=Annotated[kind, declared],
    )


_CONTEXT = inspect.Parameter(
    "ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context
)
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


def _callback(item: OptField) -> Callable[..., Any] | None:
    """What sees a value while the command line is read."""
    return _divides(item.name) if item.opt.divided else _checks(item)


def _divides(name: str) -> Callable[[typer.Context, Any], Any]:
    """What takes the one text of a command line or variable, but not of a file's list, apart."""

    def divide(ctx: typer.Context, value: Any) -> Any:
        source = ctx.get_parameter_source(name)
        if not value or len(value) > 1 or source is None or source.name == "DEFAULT_MAP":
            return value
        try:
            return list(typed.divided(value[0]))
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error

    return divide


def _checks(item: OptField) -> Callable[[Any], Any] | None:
    """What refuses a value while the command line is read, so that the message names the option."""
    opt = item.opt
    if opt.unit is None and opt.minimum is None and opt.maximum is None:
        return None

    def check(value: Any) -> Any:
        if value is None:
            return value
        try:
            number = UNITS[opt.unit].parse(value) if opt.unit is not None else value
        except ConfigError as error:
            raise typer.BadParameter(str(error)) from error
        if isinstance(number, int | float) and (problem := item.out_of_bounds(number)):
            raise typer.BadParameter(problem)
        return value

    return check


def _apply_config_file(ctx: typer.Context, path: Path | None) -> Path | None:
    if path is not None and not ctx.resilient_parsing:
        ctx.default_map = load_settings(find_config(path))
    return path


_CONFIG_FILE = inspect.Parameter(
    "config",
    inspect.Parameter.KEYWORD_ONLY,
    default=None,
    annotation=Annotated[
        Path | None,
        typer.Option(
            "--config",
            metavar="FILE",
            is_eager=True,
            callback=_apply_config_file,
            help="TOML file of options, such as max_tokens = 64, or the name of one that comes "
            "with vlmbatch, such as llava-1.5-7b.",
            rich_help_panel="Input and output",
            show_envvar=False,
        ),
    ],
)
