"""The fields of a request that say how its tokens are chosen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ConfigError
from vlmbatch.openai.errors import bad_request
from vlmbatch.openai.fields import Json, boolean, integer, number, wrong_type
from vlmbatch.openai.response_format import SHAPE_FIELDS, read_shape

# Of both endpoints; not all are of OpenAI's API, but vLLM's servers know them too, all but
# no_repeat_ngram_size.
SAMPLING_FIELDS = frozenset(
    {"max_tokens", "temperature", "top_p", "seed", "stop"}
    | {"presence_penalty", "frequency_penalty"}
    | {"top_k", "ignore_eos", "stop_token_ids", "min_p", "repetition_penalty"}
    | {"n", "min_tokens", "no_repeat_ngram_size"}
    | {*SHAPE_FIELDS}
)

_PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_MAX_STOPS = 4
_MAX_N = 16
_MAX_TEMPERATURE = 2.0  # OpenAI's


def read_sampling(body: Json, defaults: SamplingParams) -> SamplingParams:
    """The request's parameters over ``defaults``, which hold for what is absent or null.

    ``max_completion_tokens`` goes before ``max_tokens``, of which it is the later name; ``top_k``
    -1 keeps the whole vocabulary, as 0 does.

    Raises:
        ApiError: 400; ``param`` names the field.
    """
    names = ("max_completion_tokens", "max_tokens")
    max_name = next((name for name in names if body.get(name) is not None), "max_tokens")
    top_k = integer(body, "top_k")
    seed = integer(body, "seed")
    changes: dict[str, tuple[str, Any]] = {
        "max_tokens": (max_name, integer(body, max_name)),
        "temperature": ("temperature", _temperature(body)),
        "top_p": ("top_p", number(body, "top_p")),
        "top_k": ("top_k", 0 if top_k == -1 else top_k),
        "min_p": ("min_p", number(body, "min_p")),
        **{name: (name, number(body, name)) for name in _PENALTIES},
        "no_repeat_ngram_size": ("no_repeat_ngram_size", integer(body, "no_repeat_ngram_size")),
        "seed": ("seed", None if seed is None else seed % 2**63),  # OpenAI's may be negative
        "stop": ("stop", _stop(body.get("stop"))),
        "min_tokens": ("min_tokens", integer(body, "min_tokens")),
        "n": ("n", _n(body)),
        "stop_token_ids": ("stop_token_ids", _token_ids(body.get("stop_token_ids"))),
    }
    ignore_eos = boolean(body, "ignore_eos") if body.get("ignore_eos") is not None else None
    changes["ignore_eos"] = ("ignore_eos", ignore_eos)
    shape_name, shape = read_shape(body)
    sampling = defaults
    for field, (param, value) in changes.items():
        if value is None:
            continue
        try:
            sampling = replace(sampling, **{field: value})
        except ConfigError as error:
            raise bad_request(str(error).replace(field, param, 1), param) from error
    try:
        return replace(sampling, **shape)
    except ConfigError as error:
        raise bad_request(f"'{shape_name}': {error}", shape_name) from error


def _n(body: Json) -> int | None:
    n = integer(body, "n")
    if n is not None and not 1 <= n <= _MAX_N:
        raise bad_request(f"'n' must be from 1 to {_MAX_N}, got {n}", "n")
    return n


def _temperature(body: Json) -> float | None:
    value = number(body, "temperature")
    if value is not None and value > _MAX_TEMPERATURE:
        raise bad_request(
            f"temperature must be at most {_MAX_TEMPERATURE:g}, got {value:g}", "temperature"
        )
    return value


def _stop(value: object) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        return (value,)
    if not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise wrong_type("stop", "a string or an array of strings", value)
    if len(value) > _MAX_STOPS:
        raise bad_request(
            f"'stop' has {len(value)} strings, at most {_MAX_STOPS} are allowed", "stop"
        )
    return tuple(value)


def _token_ids(value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise wrong_type("stop_token_ids", "an array of integers", value)
    for item in value:
        if not isinstance(item, int) or isinstance(item, bool):
            raise wrong_type("stop_token_ids", "an array of integers", item)
    return tuple(value)
