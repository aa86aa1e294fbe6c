"""What shapes an answer may be given: JSON schemas and regular expressions, as llguidance has them.

They are compiled here without a tokenizer, to refuse what cannot be followed before a model is
loaded. Imports llguidance where a shape is asked for, and not before.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from vlmbatch.errors import ConfigError, FieldError

if TYPE_CHECKING:
    from llguidance import LLParserLimits

T = TypeVar("T")

ANY_OBJECT = '{"type": "object"}'
_MAX_BYTES = 2**20  # of a schema or an expression
_MAX_REASON = 300  # characters; an expression may be part of it

# Definitions that lead to each other are compiled by recursion: the longest chain of them that
# _MAX_BYTES hold takes less than this. Memory is taken as it is touched.
_STACK_BYTES = 2**28


def read_schema_file(text: str) -> str:
    """The schema itself where ``text`` is one, else what the file of that name holds.

    Raises:
        ConfigError: there is no such file, or it cannot be read as text.
    """
    if text.lstrip().startswith("{"):
        return text
    try:
        path = Path(text).expanduser()
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        return content.decode("utf-8-sig")
    except (OSError, ValueError, RuntimeError) as error:  # no name of a file, no UTF-8, no home
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"must be a file with a JSON schema: {text:.200}: {reason}") from error


def schema_text(name: str, value: object) -> str:
    """A schema given as a mapping, or as JSON text, in one spelling: that of ASCII.

    Raises:
        ConfigError: it is neither.
    """
    return _from_text(name, value) if isinstance(value, str) else _to_text(name, value)


@lru_cache(maxsize=256)  # most rows have the same
def _from_text(name: str, text: str) -> str:
    if len(text) > _MAX_BYTES:
        raise FieldError(name, f"has {len(text)} characters, at most {_MAX_BYTES} can be compiled")
    try:
        return _to_text(name, json.loads(text))
    except (ValueError, RecursionError) as error:
        raise FieldError(name, f"is not JSON: {error}") from error


def _to_text(name: str, value: object) -> str:
    if not isinstance(value, Mapping):
        raise FieldError(name, f"must be a JSON schema, an object; got {value!r:.80}")
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FieldError(name, f"is no JSON schema: {error}") from error


def grammar_of(json_schema: str | None, regex: str | None) -> str | None:
    """The grammar of one of both, as llguidance writes it; None without either."""
    if json_schema is None and regex is None:
        return None
    return _grammar(json_schema, regex)


@lru_cache(maxsize=256)
def _grammar(json_schema: str | None, regex: str | None) -> str:
    from llguidance import LLMatcher

    if json_schema is not None:
        # Between tokens of JSON at most one space, as models like to write it: small ones would
        # fall into white space without end.
        return LLMatcher.grammar_from_json_schema(
            json_schema,
            overrides={
                "whitespace_flexible": False,
                "item_separator": ", ?",
                "key_separator": ": ?",
            },
        )
    assert regex is not None
    return LLMatcher.grammar_from_regex(regex)


@lru_cache(maxsize=256)
def grammar_problem(json_schema: str | None, regex: str | None) -> str | None:
    """Why no answer can follow the one that is given, as far as it can be told, for a message that
    names it; None: it may."""
    text = regex if json_schema is None else json_schema
    assert text is not None
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        return f"must be Unicode text: {error}"
    if size > _MAX_BYTES:
        return f"has {size} bytes, at most {_MAX_BYTES} can be compiled"
    if regex is not None and (len(regex) - len(regex.rstrip("\\"))) % 2:  # llguidance drops it
        return "cannot be used: it ends with a backslash that escapes nothing"
    from llguidance import LLMatcher

    def validated() -> str:
        return LLMatcher.validate_grammar(_grammar(json_schema, regex), limits=grammar_limits())

    try:
        reason = on_deep_stack(validated).result()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001  a panic in Rust is no narrower
        reason = str(error) or type(error).__name__
    return f"cannot be used: {short_reason(reason)}" if reason else None


def grammar_limits() -> LLParserLimits:
    """What bounds time and memory of a grammar: llguidance's own, of some tenths of a second."""
    from llguidance import LLParserLimits

    return LLParserLimits(max_lexer_states=50_000, verbose_errors=False)


def short_reason(text: str) -> str:
    """What llguidance says, without the listings around it."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return [*told, *lines][0][:_MAX_REASON]


def on_deep_stack(work: Callable[[], T]) -> Future[T]:
    """Run ``work`` on the thread that compiles grammars."""
    with _lock:
        usual = threading.stack_size(_STACK_BYTES)
        try:
            return _thread().submit(work)  # which starts the thread, the first time
        finally:
            threading.stack_size(usual)


_lock = threading.Lock()


@cache
def _thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix="grammar")


if hasattr(os, "register_at_fork"):  # a child that is forked has none of its parent's threads
    os.register_at_fork(after_in_child=_thread.cache_clear)
