"""The Jinja environment of chat templates: transformers' additions, and bounds on what they do."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from types import GeneratorType
from typing import Any

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from vlmbatch.models.template_limits import (
    Meter,
    Metering,
    call_cost,
    check_product,
    check_time_format,
    filter_cost,
    growth,
    size_of,
)

# What filters return that make their items one by one.
_LAZY: tuple[type, ...] = (GeneratorType, reversed, type(reversed([])), type(reversed({})))
_FRAME_VARIABLES = ("_loop_vars", "_block_vars")  # which compiled templates add to their calls


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

    def __repr__(self) -> str:
        return "<Namespace>"  # Jinja's shows the values, of whatever size


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox as transformers sets it up, with bounds on time and size.

    Templates run within ``metered`` only. Thread-safe.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        del self.globals["lipsum"]  # text without bound
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = _strftime_now
        self.globals["namespace"] = _Namespace
        self._thread = threading.local()
        # Calls filters as Jinja does, with the context or whatever else they ask for.
        self._plain = ImmutableSandboxedEnvironment()
        self._plain.filters = self.filters
        self.filters = {name: self._metered_filter(name) for name in self.filters}
        self.finalize = self._printed

    @contextmanager
    def metered(self) -> Iterator[None]:
        """Start a rendering's account; whatever passes its limits raises SecurityError."""
        self._thread.meter = Meter()
        try:
            yield
        finally:
            del self._thread.meter

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        Metering().visit(source)
        source.set_environment(self)
        return super()._generate(source, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            self._thread.meter.charge(size_of(left) + size_of(right))
            return left + right
        if operator == "*":
            check_product(left, right)
        elif operator == "**":
            if max(abs(left), abs(right)) > 1000:
                raise SecurityError(f"the power {left!r:.80} ** {right!r:.80} is too large")
        elif isinstance(left, str | bytes):
            self._thread.meter.charge(growth(left, [right], is_format=True))
        result = super().call_binop(context, operator, left, right)
        self._thread.meter.charge(size_of(result))
        return result

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = self._thread.meter
        args = tuple(map(self._at_hand, args))
        given = [*args, *(v for name, v in kwargs.items() if name not in _FRAME_VARIABLES)]
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        meter.charge(call_cost(method, given))
        result = super().call(context, obj, *args, **kwargs)
        meter.charge(size_of(result))
        return result

    def counted(self, items: Any, cost: int) -> Iterator[Any]:
        """The items of a loop, whose body has ``cost`` characters of text."""
        meter: Meter = self._thread.meter
        return meter.count(items, cost)

    def concatenated(self, *values: Any) -> str:
        """What ``~`` makes of ``values``, which ``call`` has measured."""
        return "".join(map(str, values))

    def made(self, value: Any) -> Any:
        """A list, tuple or dict as the template writes it, which ``call`` has measured."""
        return value

    @pass_context
    def _printed(self, context: Context, value: Any) -> Any:
        self._thread.meter.charge(size_of(value))
        return value

    def _metered_filter(self, name: str) -> Callable[..., Any]:
        # Those that take a context are not run when the template is compiled.
        @pass_context
        def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
            meter = self._thread.meter
            value = self._at_hand(value)
            meter.charge(filter_cost(name, value, [*args, *kwargs.values()]))
            result = self._plain.call_filter(name, value, args, kwargs, context)
            meter.charge(size_of(result))
            return result

        return run

    def _at_hand(self, value: Any) -> Any:
        """``value``, or the items of one that makes them while it is read (as ``map`` does)."""
        return list(self._thread.meter.count(value, 1)) if isinstance(value, _LAZY) else value


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
    check_time_format(form)
    return datetime.now().strftime(form)
