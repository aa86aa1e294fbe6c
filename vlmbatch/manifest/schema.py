"""The columns of the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from vlmbatch.config import SamplingParams
from vlmbatch.types import Result

RESULT_SCHEMA = pa.schema(
    [
        ("row_index", pa.int64()),
        ("id", pa.string()),
        ("status", pa.string()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("image_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
    ]
)

_LOGPROB = [("token_id", pa.int32()), ("token", pa.string()), ("logprob", pa.float32())]

# Columns that are there where a run asks for them, in this order behind the others.
_DETAILS = {
    "logprobs": pa.list_(pa.struct([*_LOGPROB, ("top_logprobs", pa.list_(pa.struct(_LOGPROB)))])),
    "choice": pa.string(),
    "confidence": pa.float32(),
    "choices": pa.list_(
        pa.struct(
            [("choice", pa.string()), ("probability", pa.float32()), ("logprob", pa.float32())]
        )
    ),
    "texts": pa.list_(pa.string()),
    "finish_reasons": pa.list_(pa.string()),
    "retries": pa.int32(),
    "loops": pa.bool_(),
    "json_error": pa.string(),
}
_DETAIL_KEY = b"vlmbatch.detail"  # marks them in the schema

RESERVED_COLUMNS = frozenset(RESULT_SCHEMA.names)

# Marks a pass-through column whose values had no common type: its strings are JSON text.
JSON_TEXT = {b"vlmbatch.encoding": b"json"}


# In the metadata of an output whose own columns have a prefix.
COLUMN_PREFIX_KEY = b"vlmbatch.column_prefix"


def asked_columns(params: SamplingParams, parse_json: bool = False) -> tuple[str, ...]:
    """The columns beyond those of every output that a run's parameters ask for."""
    asked = {
        ("logprobs",): params.logprobs is not None,
        ("choice", "confidence", "choices"): bool(params.choices),
        ("texts", "finish_reasons"): params.n > 1,
        ("retries", "loops"): params.best_of_retries > 0,
        ("json_error",): parse_json,
    }
    return tuple(name for names, wanted in asked.items() if wanted for name in names)


def output_schema(extra: pa.Schema, prefix: str = "", asked: Sequence[str] = ()) -> pa.Schema:
    """The result columns and those that are ``asked`` for, their names behind ``prefix``, then the
    manifest's ``extra`` columns in its order. It has the metadata of ``extra``, and the prefix."""
    details = [
        pa.field(name, kind, metadata={_DETAIL_KEY: name})
        for name, kind in _DETAILS.items()
        if name in asked
    ]
    own = [field.with_name(f"{prefix}{field.name}") for field in (*RESULT_SCHEMA, *details)]
    metadata = dict(extra.metadata or {})
    if prefix:
        metadata[COLUMN_PREFIX_KEY] = prefix.encode()
    return pa.schema([*own, *extra], metadata or None)


def column_prefix(metadata: Mapping[bytes, bytes] | None) -> str:
    """The prefix of an output's own columns, by its metadata."""
    return (metadata or {}).get(COLUMN_PREFIX_KEY, b"").decode()


def result_values(result: Result) -> dict[str, Any]:
    """A result's own columns, without those that pass through."""
    return {
        "row_index": result.index,
        "id": result.id,
        "status": result.status,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "image_tokens": result.image_tokens,
        "completion_tokens": result.completion_tokens,
        "error_code": result.error_code,
        "error_message": result.error_message,
    }


def detail_value(result: Result, name: str) -> Any:
    """A result's value in a column that is asked for; of a row with one answer the list is of it.

    None where the row has none.
    """
    if result.text is not None and name not in result.details:
        if name == "texts":
            return [result.text]
        if name == "finish_reasons":
            return [result.finish_reason]
    return result.details.get(name)


def detail_name(field: pa.Field) -> str | None:
    """What a column of ``Result.details`` is called there; None for another column."""
    name: bytes | None = (field.metadata or {}).get(_DETAIL_KEY)
    return None if name is None else name.decode()


def is_json_text(field: pa.Field) -> bool:
    """Whether the column holds JSON text in place of values."""
    return (field.metadata or {}).items() >= JSON_TEXT.items()
