"""A row's own settings: sampling parameters and resolution in columns of its values."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

from vlmbatch.config import ImageResolution, SamplingParams
from vlmbatch.config.seeds import derive_seed
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.manifest.arrow_values import shown_with_type
from vlmbatch.manifest.columns import CHOICES_COLUMN, RESOLUTION_COLUMNS


def row_sampling(defaults: SamplingParams, values: dict[str, Any], index: int) -> SamplingParams:
    """The run's parameters with the row's own values over them.

    A row without a ``seed`` takes one derived from the run's seed and its index, so that equal
    prompts in two rows are sampled differently.

    Raises:
        RowError: a value of the wrong type or out of range.
    """
    seed = _integer(values, "seed")
    changes: dict[str, Any] = {
        "max_tokens": _integer(values, "max_tokens"),
        "temperature": _number(values, "temperature"),
        "top_p": _number(values, "top_p"),
        "top_k": _integer(values, "top_k"),
        "min_p": _number(values, "min_p"),
        "repetition_penalty": _number(values, "repetition_penalty"),
        "presence_penalty": _number(values, "presence_penalty"),
        "frequency_penalty": _number(values, "frequency_penalty"),
        "no_repeat_ngram_size": _integer(values, "no_repeat_ngram_size"),
        "min_tokens": _integer(values, "min_tokens"),
        "stop": _strings(values, "stop"),
        "n": _integer(values, "n") if defaults.n > 1 else None,
        "best_of_retries": (
            _integer(values, "best_of_retries") if defaults.best_of_retries else None
        ),
        "seed": derive_seed(defaults.seed, index) if seed is None else seed,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    try:
        return replace(defaults, **changes, **_shape(defaults, values))
    except ConfigError as error:
        raise RowError(ErrorCode.SAMPLING_INVALID, str(error)) from error


def row_resolution(values: dict[str, Any]) -> ImageResolution | None:
    """The resolution that a row asks for itself; None where it does not.

    Raises:
        RowError: a value of the wrong type or out of range.
    """
    code = ErrorCode.RESOLUTION_INVALID
    given = {name: _integer(values, name, code) for name in RESOLUTION_COLUMNS}
    if not any(value is not None for value in given.values()):
        return None
    try:
        return ImageResolution(**given)
    except ConfigError as error:
        raise RowError(code, str(error)) from error


def _integer(
    values: dict[str, Any], name: str, code: ErrorCode = ErrorCode.SAMPLING_INVALID
) -> int | None:
    value = _present(values, name)
    if isinstance(value, float | Decimal) and value % 1 == 0:
        return int(value)  # a column of integers with nulls is often stored as floats
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _wrong_type(name, "an integer", value, code)


def _number(values: dict[str, Any], name: str) -> float | None:
    value = _present(values, name)
    if value is None:
        return None
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise _wrong_type(name, "a number", value) from error
    raise _wrong_type(name, "a number", value)


def _present(values: dict[str, Any], name: str) -> Any:
    """The value; None for NaN, by which some libraries mean that there is none."""
    value = values.get(name)
    return None if isinstance(value, float) and math.isnan(value) else value


def _strings(values: dict[str, Any], name: str) -> tuple[str, ...] | None:
    value = values.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise _wrong_type(name, "a string or a list of strings", value)


def _shape(defaults: SamplingParams, values: dict[str, Any]) -> dict[str, Any]:
    """What shape the row's answer is to have; one of its own replaces the run's, of any kind."""
    own = {
        "choices": _choices(values) if defaults.choices else None,
        "json_schema": _schema(values),
        "regex": _text(values, "regex"),
    }
    if all(value is None for value in own.values()):
        return {}
    return own


def _schema(values: dict[str, Any]) -> str | dict[str, Any] | None:
    value = _present(values, "json_schema")
    if value is None or isinstance(value, str | dict):
        return value
    raise _wrong_type("json_schema", "a JSON schema, as an object or as text", value)


def _text(values: dict[str, Any], name: str) -> str | None:
    value = _present(values, name)
    if value is None or isinstance(value, str):
        return value
    raise _wrong_type(name, "a string", value)


def _choices(values: dict[str, Any]) -> str | tuple[str, ...] | None:
    if isinstance(text := values.get(CHOICES_COLUMN), str):
        return text  # which may hold several
    choices = _strings(values, CHOICES_COLUMN)
    if choices == ():  # which would be a row without classes, whose answer is generated
        raise RowError(
            ErrorCode.SAMPLING_INVALID,
            "choices is an empty list: a row whose choices are those of the run has null",
        )
    return choices


def _wrong_type(
    name: str, expected: str, value: Any, code: ErrorCode = ErrorCode.SAMPLING_INVALID
) -> RowError:
    return RowError(code, f"{name} must be {expected}, got {shown_with_type(value)}")
