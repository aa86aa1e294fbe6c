"""``Answerer``: Arrow in, Arrow out, for Ray Data and other frames whose batches are columns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pyarrow as pa

from vlmbatch.config import SamplingParams, SessionConfig
from vlmbatch.config.option import build, opt_fields
from vlmbatch.config.seeds import derive_seed
from vlmbatch.durable.row_keys import row_key
from vlmbatch.errors import ConfigError, UsageError
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.image_column import ImageColumn
from vlmbatch.manifest.rows import RowBuilder
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.types import Row

if TYPE_CHECKING:
    from vlmbatch.api.llm import LLM
    from vlmbatch.api.outputs import RequestOutput

Batch = TypeVar("Batch", pa.Table, pa.RecordBatch)

# What each row gets; its place and id are the frame's own affair.
ANSWER_SCHEMA = pa.schema(
    [field for field in RESULT_SCHEMA if field.name not in ("row_index", "id")]
)


class Answerer:
    """Answers batches of rows with one model on one device, which it loads at the first of them.

    >>> answerer = Answerer("samples/tiny-llava", image_base="samples", image_workers=0)
    >>> answers = answerer(pa.table({
    ...     "prompt": ["USER: <image>\\nWhat number is written? ASSISTANT:"] * 2,
    ...     "image": ["images/1001000001.jpg", "images/missing.jpg"],
    ... }))
    >>> answers["text"].to_pylist(), answers["error_code"].to_pylist()
    (['92', None], [None, 'image_missing'])
    >>> answerer.close()

    A batch is a ``pyarrow`` Table or RecordBatch with the columns of a manifest: prompts or
    messages, images as paths or bytes, and sampling parameters and a resolution of the rows' own.
    All of its columns come back, with those of ``ANSWER_SCHEMA`` behind them: a row that cannot be
    answered has an ``error_code`` and an ``error_message``, and all others are answered.

    ``sampling_params``: of rows that bring none. Where a row is sampled without a ``seed`` of its
    own, its content gives it one, so that answers do not depend on how rows come to be in batches;
    rows that are equal are sampled alike. ``image_base``: where relative image paths start; absent:
    the process's working folder. ``column_prefix``: before the names of the answers' columns.
    ``arguments``: those of ``LLM``. ``image_workers`` should be this engine's share of the cores.

    It can be pickled at any time, and loads the model anew where it is unpickled.

    Raises:
        ConfigError: an argument is invalid; or, at the first batch, as by ``LLM``.
        CheckpointError: at the first batch, as by ``LLM``.
        TypeError: an argument that ``LLM`` does not have.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        sampling_params: SamplingParams | None = None,
        prompt_column: str = "prompt",
        image_column: str = "image",
        column_prefix: str = "",
        image_base: str | os.PathLike[str] | None = None,
        **arguments: Any,
    ) -> None:
        known = {item.argument for item in opt_fields(SessionConfig)}
        if unknown := [name for name in arguments if name not in known]:
            raise TypeError(f"Answerer has no argument {unknown[0]!r}, and neither has LLM")
        self._arguments = {"model": model, **arguments}
        build(SessionConfig, self._arguments, key="argument")
        self._sampling = sampling_params or SamplingParams()
        if self._sampling.n > 1:
            raise ConfigError(
                f"n is {self._sampling.n}, but a row of a batch has one answer: give the batch the "
                "row so often, each with a seed of its own"
            )
        self._columns = Columns(prompt_column, image_column)
        self._prefix = column_prefix
        folder = Path() if image_base is None else Path(image_base)
        self._images = ImageColumn(image_column, folder)
        self._llm: LLM | None = None

    def __call__(self, batch: Batch) -> Batch:
        """The batch with its answers.

        Raises:
            UsageError: it has no prompts, or a column with the name of an answer's.
        """
        self._check(batch.schema)
        outputs = [_values(output) for output in self._answers(batch)] if batch.num_rows else []
        for field in ANSWER_SCHEMA:
            values = pa.array([each[field.name] for each in outputs], field.type)
            batch = batch.append_column(f"{self._prefix}{field.name}", values)
        return batch

    def close(self) -> None:
        """Free the device's memory; the next batch loads the model again."""
        if self._llm is not None:
            self._llm.close()
            self._llm = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_llm": None}

    def _check(self, schema: pa.Schema) -> None:
        names = schema.names
        present = ", ".join(names) or "none"
        if self._columns.prompt not in names and "messages" not in names:
            raise UsageError(
                f'the batch has no column "{self._columns.prompt}" or "messages" (present: '
                f"{present:.200}): name the prompts' with prompt_column"
            )
        for field in ANSWER_SCHEMA:
            if f"{self._prefix}{field.name}" in names:
                raise UsageError(
                    f'the batch has a column "{self._prefix}{field.name}", as the answers have: '
                    "give theirs other names with column_prefix, or rename it"
                )

    def _answers(self, batch: pa.Table | pa.RecordBatch) -> Iterator[RequestOutput]:
        from vlmbatch.api.llm import LLM
        from vlmbatch.api.requests import RowSource

        if self._llm is None:
            self._llm = LLM(**self._arguments)
        inputs = [name for name in batch.schema.names if name in self._columns.inputs]
        builder = RowBuilder(self._columns, self._sampling, self._images)

        def read(index: int, values: Any, sampling: object) -> Row:
            row = builder.build(index, "batch", index + 1, values)
            return row if values.get("seed") is not None else self._seeded(row)

        return self._llm.answer(RowSource(batch.select(inputs).to_pylist(), None, read))

    def _seeded(self, row: Row) -> Row:
        if row.sampling is None or not (row.sampling.temperature or row.sampling.best_of_retries):
            return row
        plain = replace(row, sampling=replace(row.sampling, seed=0))
        number = int.from_bytes(row_key(plain)[:8], "little")
        seed = derive_seed(self._sampling.seed, number)
        return replace(row, sampling=replace(row.sampling, seed=seed))


def _values(output: RequestOutput) -> dict[str, Any]:
    """The columns of one answer."""
    values: dict[str, Any] = dict.fromkeys(ANSWER_SCHEMA.names)
    if output.error is not None:
        error = output.error
        return values | {
            "status": "error",
            "error_code": str(error.code),
            "error_message": error.message,
        }
    answer = output.outputs[0]
    return values | {
        "status": "ok",
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "prompt_tokens": len(output.prompt_token_ids or ()),
        "image_tokens": output.num_image_tokens,
        "completion_tokens": len(answer.token_ids),
    }
