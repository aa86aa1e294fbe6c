"""Results on standard output, as they come."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Self

from vlmbatch.output.jsonl_writer import JsonlResultWriter, result_line
from vlmbatch.output.openai_lines import BatchLines
from vlmbatch.output.parquet_writer import ResultWriter
from vlmbatch.types import Result, Row


class StreamOutput:
    """JSONL on standard output: nothing to resume, each line stands as soon as it is written.

    ``lines``: those of OpenAI's batch output in place of our own, whose keys have
    ``column_prefix``, those that are ``asked`` for beyond the usual ones among them.
    """

    folder = None
    journal = None
    num_known = 0

    def __init__(
        self,
        lines: BatchLines | None = None,
        column_prefix: str = "",
        asked: Sequence[str] = (),
    ) -> None:
        own = partial(result_line, prefix=column_prefix, asked=asked)
        values = own if lines is None else lines.line
        self.writer: ResultWriter = JsonlResultWriter(sys.stdout.buffer, values)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Nothing is held."""

    def watch(self, rows: Iterator[Row]) -> Iterator[Row]:
        return rows

    def known(self, row: Row) -> Result | None:
        return None

    def commit(self) -> None:
        self.writer.close()
