"""A field of a configuration that is an option as well: declared once, where its default is.

The command line, ``VLMBATCH_*`` variables, configuration files, the Python API and the reference of
options all read the ``Opt`` in a field's ``Annotated`` type.
"""

from __future__ import annotations

import collections.abc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import cache, reduce
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from vlmbatch.config import typed
from vlmbatch.config.units import UNITS, UnitName
from vlmbatch.errors import ConfigError, FieldError

C = TypeVar("C")
_KINDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    Path: "a path",
}
_PLURALS = {int: "integers", str: "strings"}


@dataclass(frozen=True, slots=True)
class Opt:
    """How a field is set from outside.

    ``metavar`` stands for the value in the help; a flag has an empty one. ``flag``: the option's
    long name, where it is not the field's; ``flag="--yes/--no"`` has one for each value.
    ``absent``: the message where a value is needed and none is given.
    ``argument``: the field's name in Python, where it is not the option's. ``unit``: the field is
    written as text with a unit. ``minimum`` and ``maximum`` hold wherever the field is set, if
    ``check_bounds`` is called by its class. ``positional``: an argument without a name.
    ``divided``: a repeatable option that, given once on a command line, may hold several values.
    """

    metavar: str
    help: str
    panel: str = field(kw_only=True, default="Options")
    flag: str | None = field(kw_only=True, default=None)
    short: str | None = field(kw_only=True, default=None)
    argument: str | None = field(kw_only=True, default=None)
    unit: UnitName | None = field(kw_only=True, default=None)
    minimum: int | None = field(kw_only=True, default=None)
    maximum: int | None = field(kw_only=True, default=None)
    unsets: bool = field(kw_only=True, default=False)  # a flag that makes its field False
    counts: bool = field(kw_only=True, default=False)  # a flag that may be repeated
    positional: bool = field(kw_only=True, default=False)
    filled: bool = field(kw_only=True, default=False)  # no empty text, as of an unset variable
    absent: str | None = field(kw_only=True, default=None)
    divided: bool = field(kw_only=True, default=False)
    python_only: bool = field(kw_only=True, default=False)  # an argument in Python alone


@dataclass(frozen=True, slots=True)
class OptField:
    """One field with an ``Opt``, found in a configuration or in one that it holds.

    ``path``: the fields that lead to it. ``kind``: its type. ``default``: ``MISSING`` where it has
    none.
    """

    path: tuple[str, ...]
    kind: Any
    default: Any
    opt: Opt

    @property
    def name(self) -> str:
        """The option's name as a Python identifier: the key of files, the stem of variables."""
        if self.opt.flag is None:
            return self.path[-1]
        return self.opt.flag.partition("/")[0].removeprefix("--").replace("-", "_")

    @property
    def flag(self) -> str:
        """The long name, such as ``--max-tokens``."""
        return self.opt.flag or f"--{self.path[-1].replace('_', '-')}"

    @property
    def argument(self) -> str:
        """The name in Python."""
        return self.opt.argument or self.name

    @property
    def plain_kind(self) -> Any:
        """``kind`` without None, and without the mapping that Python may give in place of text."""
        if get_origin(self.kind) not in (Union, UnionType):
            return self.kind
        kinds = [
            kind
            for kind in get_args(self.kind)
            if kind is not NoneType and get_origin(kind) is not collections.abc.Mapping
        ]
        assert len(kinds) == 1, f"{self.name} is of several kinds: {kinds}"
        return kinds[0]

    @property
    def item_kind(self) -> Any:
        """What a repeatable option holds several of; None for others."""
        repeated = get_origin(self.plain_kind) in (tuple, collections.abc.Sequence)
        if repeated and self.opt.unit is None:
            return get_args(self.plain_kind)[0]
        return None

    @property
    def choices(self) -> tuple[str, ...]:
        """The values of a ``Literal``."""
        return get_args(self.plain_kind) if get_origin(self.plain_kind) is Literal else ()

    def out_of_bounds(self, value: int | float) -> str | None:
        """What is wrong with a value, for a message that names it."""
        low, high = self.opt.minimum, self.opt.maximum
        if (low is None or value >= low) and (high is None or value <= high):
            return None
        if high is None:
            return f"must be at least {low}, got {value}"
        return f"must be from {low} to {high}, got {value}"


def opt_fields(config: Callable[..., Any]) -> tuple[OptField, ...]:
    """The options of a configuration class and of those within it, in the order of its fields."""
    return _opt_fields(config)


@cache
def _opt_fields(config: Any) -> tuple[OptField, ...]:
    return tuple(_walk(config, MISSING, ()))


def _walk(config: type, defaults: Any, path: tuple[str, ...]) -> Iterator[OptField]:
    hints = get_type_hints(config, include_extras=True)
    for item in fields(config):
        hint = hints[item.name]
        if defaults is not MISSING:
            default = getattr(defaults, item.name)
        else:
            factory: Any = item.default_factory
            default = item.default if factory is MISSING else factory()
        if is_dataclass(hint):
            assert isinstance(hint, type)
            yield from _walk(hint, default, (*path, item.name))
        elif get_origin(hint) is Annotated:
            kind, *extras = get_args(hint)
            for opt in extras:
                if isinstance(opt, Opt):
                    yield OptField((*path, item.name), kind, default, opt)


def build(config: type[C], values: Mapping[str, Any], key: str = "name") -> C:
    """A configuration from flat values by option name, or with ``key="argument"`` by Python's.

    A value is of its field's kind, or text with a unit, or a list for a repeatable option; what is
    not in ``values`` keeps its default.

    Raises:
        ConfigError: a value of another kind, or out of its class's bounds.
    """
    nested: dict[str, Any] = {}
    for item in opt_fields(config):
        name = getattr(item, key)
        if name not in values:
            continue
        into = nested
        for part in item.path[:-1]:
            into = into.setdefault(part, {})
        value = _value(item, name, values[name])
        into[item.path[-1]] = not value if item.opt.unsets and key == "name" else value
    built: C = _construct(config, nested)
    return built


def option_values(config: Any) -> dict[str, Any]:
    """The options of a configuration by their names in Python, ready for JSON.

    ``build`` with ``key="argument"`` makes of them the configuration again.
    """
    values: dict[str, Any] = {}
    for item in opt_fields(type(config)):
        value = reduce(getattr, item.path, config)
        values[item.argument] = str(value) if isinstance(value, Path) else value
    return values


def _construct(config: Any, values: Mapping[str, Any]) -> Any:
    hints = _type_hints(config)
    ready = {
        name: _construct(hints[name], value) if is_dataclass(hints[name]) else value
        for name, value in values.items()
    }
    return config(**ready)


@cache
def _type_hints(config: Any) -> dict[str, Any]:
    return get_type_hints(config)


def check_bounds(config: Any) -> None:
    """Check the fields of a configuration itself, not of those within it, against their ``Opt``.

    Raises:
        ConfigError: a number below its minimum or above its maximum.
    """
    for item in opt_fields(type(config)):
        if len(item.path) > 1:
            continue
        value = getattr(config, item.path[0])
        if isinstance(value, int | float) and (problem := item.out_of_bounds(value)):
            raise ConfigError(f"{item.path[0]} {problem}")


def _value(item: OptField, name: str, value: Any) -> Any:
    """A value as its field holds it."""
    if value is None:
        if item.item_kind is not None:
            return ()
        if NoneType in get_args(item.kind):
            return None
        if item.opt.absent is not None:
            raise ConfigError(item.opt.absent)
        raise FieldError(name, f"must be {_wanted(item)}, got None")
    if item.opt.unit is not None and item.plain_kind is str and not isinstance(value, str):
        if type(value) is not int:
            wanted = UNITS[item.opt.unit].in_files
            raise ConfigError(f"{name} must be {wanted}, got {typed.shown(value)}")
        value = str(value)  # text that may be a number alone
    if item.opt.unit is not None and isinstance(value, str):
        return _parsed(name, item.opt.unit, value)
    if item.item_kind is not None:
        read = _READERS[item.item_kind]
        items = (value,) if isinstance(value, str) else typed.several(name, value, _wanted(item))
        return tuple(read(f"{name}[{index}]", each) for index, each in enumerate(items))
    if item.choices:
        if value not in item.choices:
            raise FieldError(name, f"is one of {', '.join(item.choices)}; got {typed.shown(value)}")
        return value
    if get_origin(item.plain_kind) is tuple:
        numbers = typed.several(name, value, _wanted(item))
        return _parsed(name, "shape", ",".join(map(str, numbers)))
    read = _READERS[item.plain_kind](name, value)
    if item.opt.filled and not read:
        raise FieldError(name, "must not be empty")
    if isinstance(read, int | float) and (problem := item.out_of_bounds(read)):
        raise FieldError(name, problem)
    return read


def _parsed(name: str, unit: UnitName, text: str) -> Any:
    try:
        return UNITS[unit].parse(text)
    except ConfigError as error:
        raise FieldError(name, str(error)) from error


def _wanted(item: OptField) -> str:
    if item.item_kind is not None:
        return f"a list of {_PLURALS[item.item_kind]}"
    return _KINDS.get(item.plain_kind, "four numbers")


_READERS: dict[Any, Callable[[str, object], Any]] = {
    bool: typed.boolean,
    int: typed.integer,
    float: typed.number,
    str: typed.name_or_path,
    Path: typed.path,
}
