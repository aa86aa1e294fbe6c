"""Results as JSONL on a stream, each visible as soon as it is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

from vlmbatch.errors import OutputError
from vlmbatch.manifest.json_text import dump_json
from vlmbatch.manifest.schema import detail_value, result_values
from vlmbatch.types import Result


def result_line(result: Result, prefix: str = "", asked: Sequence[str] = ()) -> dict[str, Any]:
    """The output schema's keys, and those ``asked`` for, behind ``prefix``, nulls included; then
    what passes through."""
    own = result_values(result) | {name: detail_value(result, name) for name in asked}
    values = {f"{prefix}{name}": value for name, value in own.items()}
    extra = {name: value for name, value in result.extra.items() if name not in values}
    return {**values, **extra}


class JsonlResultWriter:
    """One JSON object a result, as ``to_values`` makes it.

    The stream stays open: it is the caller's.

    Raises:
        BrokenPipeError: the reader has gone, as ``head`` does; the caller ends quietly.
        OutputError: the stream cannot be written for another reason.
    """

    def __init__(
        self,
        stream: BinaryIO,
        to_values: Callable[[Result], dict[str, Any]] = result_line,
    ) -> None:
        self._stream = stream
        self._to_values = to_values

    def write(self, result: Result) -> None:
        line = dump_json(self._to_values(result))
        try:
            self._stream.write(line.encode("utf-8", "replace") + b"\n")
            self._stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"standard output cannot be written: {error.strerror}") from error

    def close(self) -> None:
        """Nothing is left to do: every row was flushed."""

    def abort(self) -> None:
        """What is written stays: each line is complete."""
