"""How the tokens of a row are chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Annotated, Any, cast

from vlmbatch.config import typed
from vlmbatch.config.grammar import grammar_of, grammar_problem, schema_text
from vlmbatch.config.option import Opt
from vlmbatch.errors import ConfigError, FieldError

MAX_LOGPROBS = 20  # of the likeliest tokens, as of OpenAI's API

_MAX_CHOICES = 256  # each may take a request of its own
_MAX_ANSWERS = 128  # as of OpenAI's API
_MAX_RETRIES = 10

_MAX_REPETITION = 1000.0  # logits stay finite
_MAX_PENALTY = 2.0  # as of OpenAI's API, either way
_MAX_NGRAM = 100  # so many tokens are compared with all that came before

_opt = partial(Opt, panel="Sampling (a row's own columns win)")


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the tokens of one row are chosen.

    ``temperature`` 0 is greedy. ``top_k`` 0 keeps the whole vocabulary. The stream of random
    numbers depends on ``seed`` and the token's position alone, so a row's text does not depend on
    what it is batched with. Penalties count tokens of text, not the places of images.
    Text is cut before the first of the ``stop`` strings. ``None`` stands for the default, but in
    ``max_tokens`` for as many as the context has room for, as in vLLM. ``logprobs`` 0 asks for
    those of the answer's own tokens alone, None for none. ``json_schema`` is a mapping or JSON text
    and kept as text; an answer that ends by itself follows it, or fully matches ``regex``. Of ``n``
    answers each has a seed of its own, the first one ``seed``. ``choices`` in one text are divided
    at its commas.

    Raises:
        ConfigError: a value of the wrong type or out of range, or two that exclude each other.
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
    min_p: Annotated[
        float, _opt("P", "Leave out tokens less likely than P times the likeliest.")
    ] = 0.0
    repetition_penalty: Annotated[
        float, _opt("X", "Divide logits of tokens of prompt or answer by X (multiply, below 0).")
    ] = 1.0
    presence_penalty: Annotated[
        float, _opt("X", "Lower logits of tokens that the answer has by X.")
    ] = 0.0
    frequency_penalty: Annotated[
        float, _opt("X", "Lower logits of tokens by X for each time that the answer has them.")
    ] = 0.0
    no_repeat_ngram_size: Annotated[
        int, _opt("N", "Let no N tokens follow each other twice, prompt included; 0 is any.")
    ] = 0
    logprobs: Annotated[
        int | None,
        _opt("K", "Write log-probabilities of each token and of the K likeliest in its place."),
    ] = None
    choices: Annotated[  # kept as a tuple
        Sequence[str],
        _opt(
            "A,B,...",
            "Answer with one of these classes. Repeatable, or a JSON list, where one has a comma.",
            divided=True,
        ),
    ] = ()
    json_schema: Annotated[  # kept as text
        str | Mapping[str, Any] | None,
        _opt("FILE", "Answer with JSON that follows the schema in this file.", unit="schema"),
    ] = None
    regex: Annotated[
        str | None, _opt("PATTERN", "Answer with a text that matches this pattern as a whole.")
    ] = None
    min_tokens: Annotated[int, _opt("N", "Let no answer end by itself before it has N tokens.")] = 0
    n: Annotated[int, _opt("N", "Give N answers to each row, each sampled by itself.")] = 1
    best_of_retries: Annotated[
        int, _opt("N", "Try an answer that loops again, up to N times at rising temperature.")
    ] = 0

    def __post_init__(self) -> None:
        for name, read in _SAMPLING_READERS.items():
            given: object = getattr(self, name)
            value = _STANDS_FOR_NONE[name] if given is None else read(name, given)
            object.__setattr__(self, name, value)
        if self.max_tokens < 1:
            raise FieldError("max_tokens", f"must be at least 1, got {self.max_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise FieldError(
                "temperature", f"must be finite and at least 0, got {self.temperature}"
            )
        if not 0 < self.top_p <= 1:
            raise FieldError("top_p", f"must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.top_k < 2**31:
            raise FieldError(
                "top_k",
                f"must be from 0 (which keeps all tokens) to 2**31 - 1, got {self.top_k}",
            )
        if not 0 <= self.min_p <= 1:
            raise FieldError("min_p", f"must be from 0 to 1, got {self.min_p}")
        if not 1 / _MAX_REPETITION <= self.repetition_penalty <= _MAX_REPETITION:
            raise FieldError(
                "repetition_penalty",
                f"must be from {1 / _MAX_REPETITION:g} to {_MAX_REPETITION:g}, "
                f"got {self.repetition_penalty}",
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -_MAX_PENALTY <= (value := getattr(self, name)) <= _MAX_PENALTY:
                raise FieldError(
                    name, f"must be from -{_MAX_PENALTY:g} to {_MAX_PENALTY:g}, got {value}"
                )
        if not 0 <= self.no_repeat_ngram_size <= _MAX_NGRAM:
            raise FieldError(
                "no_repeat_ngram_size",
                f"must be from 0 (which lets all repeat) to {_MAX_NGRAM}, "
                f"got {self.no_repeat_ngram_size}",
            )
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise FieldError("logprobs", f"must be from 0 to {MAX_LOGPROBS}, got {self.logprobs}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise FieldError(
                "min_tokens",
                f"must be from 0 to max_tokens, which is {self.max_tokens}, got {self.min_tokens}",
                "max_tokens",
            )
        if not 1 <= self.n <= _MAX_ANSWERS:
            raise FieldError("n", f"must be from 1 to {_MAX_ANSWERS}, got {self.n}")
        if not 0 <= self.best_of_retries <= _MAX_RETRIES:
            raise FieldError(
                "best_of_retries",
                f"must be from 0 to {_MAX_RETRIES}, got {self.best_of_retries}",
            )
        if self.choices:
            _check_choices(self.choices)
            self._check_nothing_generated()
        self._check_shape()
        if not 0 <= self.seed < 2**63:
            raise FieldError("seed", f"must be from 0 to 2**63 - 1, got {self.seed}")
        if any(not text for text in self.stop):
            raise ConfigError("a stop string must not be empty")

    def _check_shape(self) -> None:
        names = ("choices", "json_schema", "regex")
        given = [name for name in names if getattr(self, name) not in ((), None)]
        if len(given) > 1:
            first, *others = given
            raise FieldError(
                first,
                f"and {' and '.join(others)} cannot be combined: leave all but one out",
                *others,
            )
        if self.json_schema is None and self.regex is None:
            return
        if self.ignore_eos:
            raise FieldError(
                "ignore_eos",
                f"cannot be combined with {given[0]}: an answer of a shape ends with it",
                given[0],
            )
        if self.min_tokens:
            raise FieldError(
                "min_tokens",
                f"cannot be combined with {given[0]}, got {self.min_tokens}: an answer "
                "ends where its shape does",
                given[0],
            )
        if problem := grammar_problem(self.schema_text, self.regex):
            raise FieldError(given[0], problem)

    @property
    def schema_text(self) -> str | None:
        """``json_schema`` as it is kept."""
        return cast(str | None, self.json_schema)

    @property
    def grammar(self) -> str | None:
        """What the answer's tokens follow, as llguidance writes grammars."""
        return grammar_of(self.schema_text, self.regex)

    def _check_nothing_generated(self) -> None:
        """Refuse beside ``choices`` what is asked of generated tokens."""
        for name, nothing in (("logprobs", None), ("n", 1), ("best_of_retries", 0)):
            if (value := getattr(self, name)) != nothing:
                raise FieldError(
                    "choices",
                    f"cannot be asked for with {name}, got {value}: classes are scored, "
                    "and no token is generated",
                    name,
                )

    def settings(self) -> dict[str, object]:
        """All by name, for digests: what the first versions lacked only where it is asked for."""
        values = {name: getattr(self, name) for name in _SAMPLING_READERS}
        return {
            name: value
            for name, value in values.items()
            if name not in _ADDED or value != _STANDS_FOR_NONE[name]
        }

    @property
    def penalises_prompt(self) -> bool:
        """Whether the next token depends on which tokens the prompt and the answer have."""
        return self.repetition_penalty != 1 or self.no_repeat_ngram_size > 0

    @property
    def penalises(self) -> bool:
        """Whether the next token depends on which tokens the answer has, at the least."""
        return self.penalises_prompt or self.presence_penalty != 0 or self.frequency_penalty != 0


def _stop_strings(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    items = typed.several(name, value, "a string or a list of strings")
    return tuple(typed.text(f"{name}[{index}]", item) for index, item in enumerate(items))


def _choices(name: str, value: object) -> tuple[str, ...]:
    """Classes one by one, or all in one text."""
    return _stop_strings(name, typed.divided(value) if isinstance(value, str) else value)


def _check_choices(choices: Sequence[str]) -> None:
    if not 2 <= len(choices) <= _MAX_CHOICES:
        raise FieldError("choices", f"must be from 2 to {_MAX_CHOICES} classes, got {len(choices)}")
    if not all(choices):
        raise FieldError("choices", "must not be empty texts")
    for choice in choices:
        try:
            choice.encode()
        except UnicodeEncodeError as error:
            raise FieldError("choices", f"must be Unicode texts, got {choice!r:.80}") from error
    twice = next((each for each in choices if choices.count(each) > 1), None)
    if twice is not None:
        raise FieldError("choices", f"has {twice!r:.80} {choices.count(twice)} times")


def _token_ids(name: str, value: object) -> tuple[int, ...]:
    items = typed.several(name, value, "a list of integers")
    return tuple(typed.integer(f"{name}[{index}]", item) for index, item in enumerate(items))


_SAMPLING_READERS: dict[str, Callable[[str, object], object]] = {
    "max_tokens": typed.integer,
    "temperature": typed.number,
    "top_p": typed.number,
    "top_k": typed.integer,
    "min_p": typed.number,
    "repetition_penalty": typed.number,
    "presence_penalty": typed.number,
    "frequency_penalty": typed.number,
    "no_repeat_ngram_size": typed.integer,
    "logprobs": typed.integer,
    "choices": _choices,
    "json_schema": schema_text,
    "regex": typed.text,
    "min_tokens": typed.integer,
    "n": typed.integer,
    "best_of_retries": typed.integer,
    "seed": typed.integer,
    "stop": _stop_strings,
    "stop_token_ids": _token_ids,
    "ignore_eos": typed.boolean,
}
_ADDED = (
    *("min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("no_repeat_ngram_size", "logprobs", "choices"),
    *("json_schema", "regex"),
    *("min_tokens", "n", "best_of_retries"),
)
_STANDS_FOR_NONE: dict[str, object] = {
    **{field.name: field.default for field in fields(SamplingParams)},
    "max_tokens": 2**31 - 1,
}
