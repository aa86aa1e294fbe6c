"""How the tokens of a row are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated

from vlmbatch.config import typed
from vlmbatch.config.option import Opt
from vlmbatch.errors import ConfigError

_opt = partial(Opt, panel="Sampling (a row's own columns win)")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one row are chosen.

    ``temperature`` 0 is greedy. ``top_k`` 0 keeps the whole vocabulary. The stream of random
    numbers depends on ``seed`` and the token's position alone, so a row's text does not depend on
    what it is batched with. Text is cut before the first of the ``stop`` strings. ``None`` stands
    for the default, but in ``max_tokens`` for as many as the context has room for, as in vLLM.

    Raises:
        ConfigError: a value of the wrong type or out of range.
    """

    max_tokens: Annotated[int, _opt("N", "Generate at most N tokens.")] = 256
    temperature: Annotated[float, _opt("T", "0 is greedy.")] = 0.0
    top_p: Annotated[
        float, _opt("P", "Sample from the likeliest tokens of total probability P.")
    ] = 1.0
    top_k: Annotated[int, _opt("K", "Sample from the K likeliest tokens; 0 is all.")] = 0
    seed: Annotated[int, _opt("N", "Seed of each row's random choices.")] = 0
    stop: Annotated[  # one string or several; kept as a tuple
        Sequence[str], _opt("TEXT", "End before this text. Repeatable.")
    ] = ()
    stop_token_ids: Annotated[  # kept as a tuple
        Sequence[int], _opt("ID", "End at this token. Repeatable.", flag="--stop-token-id")
    ] = ()
    ignore_eos: Annotated[bool, _opt("", "Continue past the end-of-sequence token.")] = False

    def __post_init__(self) -> None:
        for name, read in _SAMPLING_READERS.items():
            given: object = getattr(self, name)
            value = _STANDS_FOR_NONE[name] if given is None else read(name, given)
            object.__setattr__(self, name, value)
        if self.max_tokens < 1:
            raise ConfigError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be finite and at least 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.top_k < 2**31:
            raise ConfigError(
                f"top_k must be from 0 (which keeps all tokens) to 2**31 - 1, got {self.top_k}"
            )
        if not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed must be from 0 to 2**63 - 1, got {self.seed}")
        if any(not text for text in self.stop):
            raise ConfigError("a stop string must not be empty")


def _stop_strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    items = typed.several(name, value, "a string or a list of strings")
    return tuple(typed.text(f"{name}[{index}]", item) for index, item in enumerate(items))


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    items = typed.several(name, value, "a list of integers")
    return tuple(typed.integer(f"{name}[{index}]", item) for index, item in enumerate(items))


_SAMPLING_READERS: dict[str, Callable[[str, object], object]] = {
    "max_tokens": typed.integer,
    "temperature": typed.number,
    "top_p": typed.number,
    "top_k": typed.integer,
    "seed": typed.integer,
    "stop": _stop_strings,
    "stop_token_ids": _token_ids,
    "ignore_eos": typed.boolean,
}
_STANDS_FOR_NONE: dict[str, object] = {
    **{field.name: field.default for field in fields(SamplingParams)},
    "max_tokens": 2**31 - 1,
}
