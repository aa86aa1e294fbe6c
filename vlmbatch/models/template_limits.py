"""What rendering a chat template may cost: time, and the size of all that it makes.

A template runs in this process, so nothing can stop one operation once it has begun. Instead no
value may grow large (``MAX_CHARACTERS``), which bounds what one operation takes, and between
operations the clock is looked at. It counts the thread's own CPU time: a busy machine changes no
answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer

MAX_CHARACTERS = 2**22
MAX_SECONDS = 5.0
_MAX_TOTAL = 2**26  # characters, over a whole rendering
_MAX_DEPTH = 100
_MAX_INTEGER_BITS = 2**16

_ITEM = 16  # what an item of a list or dict counts, in characters
_OPERATION = 2**14  # what an operation counts towards the next look at the clock
_LOOK_EVERY = 2**20

# Methods and filters whose result can be as large as their arguments multiplied.
_GROWING = ("center", "format", "join", "replace")
_GROWING_METHODS = frozenset({*_GROWING, "format_map", "ljust", "rjust", "zfill"}) | {
    *("decode", "encode", "expandtabs", "to_bytes", "translate")
}
_GROWING_FILTERS = frozenset(
    (*_GROWING, "batch", "indent", "round", "slice", "tojson", "urlize", "wordwrap")
)
# Those that compare each character of a text with each of their argument.
_COMPARING = frozenset(
    ("lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip", "strip", "trim")
)
_COMPARISONS = 2**8  # that take as long as an operation's other work on a character
# Filters that make an item of each character of a text.
_ITEMIZING = frozenset({"batch", "groupby", "list", "max", "min", "slice", "sort", "sum"}) | {
    *("map", "reject", "rejectattr", "select", "selectattr", "unique")
}
# Others (punycode, idna) take time that grows with the square of the text.
_CODECS = frozenset(("ascii", "latin1", "utf8", "ignore", "replace", "strict"))
_MAX_TIME_FORMAT = 1000  # characters
_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))
_CONTAINERS = (list, dict, tuple, range, *_VIEWS)
_TEXTS = (str, bytes)
_FORMATTERS = frozenset(("format", "format_map"))


class Meter:
    """The account of one rendering.

    Raises:
        SecurityError: by every method, when a limit is passed.
    """

    def __init__(self) -> None:
        self._end: float | None = None  # from the first look at the clock, which is a system call
        self._left = _MAX_TOTAL
        self._until_look = _LOOK_EVERY

    def charge(self, size: int) -> None:
        """One operation that makes or reads ``size`` characters."""
        self._left -= size
        if size > MAX_CHARACTERS or self._left < 0:
            limit, scope = (_MAX_TOTAL, " in all") if self._left < 0 else (MAX_CHARACTERS, "")
            raise SecurityError(f"it makes more than {limit} characters{scope}")
        self._until_look -= size + _OPERATION
        if self._until_look < 0:
            self._until_look = _LOOK_EVERY
            now = time.thread_time()
            if self._end is None:
                self._end = now + MAX_SECONDS
            elif now > self._end:
                raise SecurityError(f"it takes longer than {MAX_SECONDS:g} seconds")

    def count(self, items: Iterable[Any], cost: int) -> Iterator[Any]:
        """Pass ``items`` on, each charged ``cost``."""
        for item in items:
            self.charge(cost)
            yield item


def size_of(value: Any) -> int:
    """Characters that ``value`` takes when printed, or a little more than ``MAX_CHARACTERS``.

    A value that is held in several places counts in each of them, as it is printed in each.

    Raises:
        SecurityError: nested too deeply, or a number that is too large to be computed with.
    """
    if isinstance(value, str):
        return len(value)
    if isinstance(value, _CONTAINERS):
        return _tree_size(value)
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, int):
        bits = value.bit_length()
        if bits > _MAX_INTEGER_BITS:
            raise SecurityError(f"a number of more than {_MAX_INTEGER_BITS} bits")
        return bits // 3
    return _ITEM


def _tree_size(value: Any) -> int:
    total = depth = 0
    level: list[Any] = [value]
    while level and total <= MAX_CHARACTERS:
        depth += 1
        if depth > _MAX_DEPTH:
            raise SecurityError(f"a value nested more than {_MAX_DEPTH} levels deep")
        below: list[Any] = []
        for item in level:
            if isinstance(item, range):
                total += _ITEM * len(item)
                continue
            total += (_ITEM + depth) * len(item)
            if total > MAX_CHARACTERS:
                break
            parts = [*item, *item.values()] if isinstance(item, dict) else item
            for part in parts:
                if isinstance(part, _TEXTS):  # a union would be made anew for each of many
                    total += len(part)
                elif isinstance(part, _CONTAINERS):
                    below.append(part)
        level = below
    return total


def growth(value: Any, arguments: Collection[Any], *, is_format: bool = False) -> int:
    """A bound for what comes of ``value`` when each of its parts takes in all the arguments.

    Integers among them count as a number of characters: they are widths.
    """
    size = size_of(value) + 1
    if is_format and isinstance(value, str | bytes):
        text = value if isinstance(value, str) else value.decode("latin-1")
        size += sum(min(int(width[:12]), MAX_CHARACTERS) for width in re.findall(r"\d+", text))
    return size * (1 + sum(map(_width, arguments)))


def _width(value: Any) -> int:
    if isinstance(value, list | tuple):  # the arguments of "%"
        return size_of(value) + sum(map(_width, value[:1000]))
    return abs(value) if isinstance(value, int) else size_of(value)


def filter_cost(name: str, value: Any, arguments: Collection[Any]) -> int:
    """What a filter counts, in characters. Not all are as quick as their result is short."""
    size = size_of(value)
    if name in _GROWING_FILTERS:
        cost = growth(value, arguments, is_format=name in _FORMATTERS)
    else:
        cost = size + sum(map(size_of, arguments))
    if name in _COMPARING:
        cost += _comparisons(size, arguments)
    elif name == "urlize" or (name in _ITEMIZING and isinstance(value, str | bytes)):
        cost = max(cost, _ITEM * size)
    elif name == "wordwrap":  # a long word is copied for each line
        cost = max(cost, size * size // 2**12)
    if name == "sum" and any(isinstance(start, list | tuple) for start in arguments):
        # Each item makes a copy of the list so far.
        cost = max(cost, size // _ITEM * (size + sum(map(size_of, arguments))) // 2**12)
    return cost


def call_cost(method: Any, arguments: Collection[Any]) -> int:
    """What calling a method of a value, a macro or a function counts, in characters.

    Raises:
        SecurityError: there is no saying what it takes.
    """
    owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
    if not isinstance(owner, str | bytes | int):
        return sum(map(size_of, arguments))
    if name in ("decode", "encode"):
        for text in arguments:
            if not isinstance(text, str) or re.sub("[-_ ]", "", text.lower()) not in _CODECS:
                raise SecurityError(f"the encoding {text!r:.80}")
    if name in _COMPARING:
        size = size_of(owner)
        return size + sum(map(size_of, arguments)) + _comparisons(size, arguments)
    if name in _GROWING_METHODS:
        return growth(owner, arguments, is_format=name in _FORMATTERS)
    return sum(map(size_of, arguments))


def _comparisons(size: int, arguments: Collection[Any]) -> int:
    lengths = (len(each) for each in arguments if isinstance(each, str | bytes))
    return size * sum(lengths) // _COMPARISONS


def check_time_format(form: str) -> None:
    """Refuse a long format: Python makes room for 256 times its length."""
    if len(form) > _MAX_TIME_FORMAT:
        raise SecurityError(f"a format of more than {_MAX_TIME_FORMAT} characters for a time")


def check_product(left: Any, right: Any) -> None:
    """Refuse ``left * right`` when it is too large to be computed."""
    if isinstance(left, int) and isinstance(right, int):
        if left.bit_length() + right.bit_length() > _MAX_INTEGER_BITS:
            raise SecurityError(f"a number of more than {_MAX_INTEGER_BITS} bits")
        return
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and size_of(value) * times > MAX_CHARACTERS:
            raise SecurityError(f"repeating a value {times} times makes it too large")


class Metering(NodeTransformer):
    """Has a template call its environment where Jinja's sandbox does not: for each item of a loop
    (``counted``), on ``~`` (``concatenated``), and for lists and dicts as written (``made``)."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node, nodes.For):
            text = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
            node.iter = _call("counted", [node.iter, nodes.Const(1 + text)], node)
        elif isinstance(node, nodes.Concat):
            return _call("concatenated", node.nodes, node)
        elif isinstance(node, nodes.List | nodes.Dict | nodes.Tuple) and _is_made(node):
            return _call("made", [node], node)
        return node


def _is_made(node: nodes.List | nodes.Dict | nodes.Tuple) -> bool:
    """Whether the node makes a value out of others: it is neither constant nor assigned to."""
    if isinstance(node, nodes.Dict):
        return True
    if isinstance(node, nodes.Tuple) and node.ctx != "load":
        return False
    return not all(isinstance(item, nodes.Const) for item in node.items)


def _call(name: str, arguments: list[Any], place: nodes.Node) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(name), arguments, [], None, None)
    call.set_lineno(place.lineno)
    return call
