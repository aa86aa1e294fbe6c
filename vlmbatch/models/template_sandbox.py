"""The Jinja environment of chat templates: transformers' additions, and bounds on what they do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

MAX_CHARACTERS = 2**24


class _Generation(Extension):
    """``{% generation %}`` marks the assistant's tokens for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - what Jinja declares

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Macro) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's namespace, closed to names that reach into Python."""

    def __init__(*args: Any, **values: Any) -> None:
        # Positional as in Jinja, so that a template may have a value called "self".
        _check_names(dict(*args[1:], **values))
        Namespace.__init__(*args, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_names({name: value})
        super().__setitem__(name, value)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox as transformers sets it up, with bounded multiplication."""

    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        del self.globals["lipsum"]  # text without bound
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and max(abs(left), abs(right)) > 1000:
            raise SecurityError(f"the power {left!r} ** {right!r} is too large")
        for value, times in ((left, right), (right, left)):
            sized = isinstance(value, str | bytes | list | tuple)
            if sized and isinstance(times, int) and len(value) * times > MAX_CHARACTERS:
                raise SecurityError(f"repeating a value {times} times makes it too large")
        return super().call_binop(context, operator, left, right)


def _check_names(values: Mapping[str, Any]) -> None:
    for name in values:
        if name.startswith("_"):
            raise SecurityError(f"a namespace cannot hold {name!r}: it starts with an underscore")


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)
