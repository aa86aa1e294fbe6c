"""Log-probabilities in the forms of the two endpoints, and how they are asked for.

In our own terms a token is an object with ``token``, ``logprob``, ``top_logprobs`` (a list of such)
and ``token_id``, which OpenAI's forms lack.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmbatch.config import MAX_LOGPROBS
from vlmbatch.openai.errors import bad_request
from vlmbatch.openai.fields import Json, boolean, integer

_LEAST = -9999.0  # in the place of minus infinity, which JSON lacks
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def read_chat_logprobs(body: Json, default: int | None) -> int | None:
    """How many of the likeliest tokens to tell for each; None for no log-probabilities at all.

    Raises:
        ApiError: 400; ``param`` names the field.
    """
    top = _in_range("top_logprobs", integer(body, "top_logprobs"))
    asked = boolean(body, "logprobs")
    if body.get("logprobs") is None:
        asked = default is not None
    if not asked:
        if top:
            raise bad_request(
                "'top_logprobs' is only allowed when 'logprobs' is true", "top_logprobs"
            )
        return None
    return top if top is not None else default or 0


def read_text_logprobs(body: Json, default: int | None) -> int | None:
    """As ``read_chat_logprobs``, where ``logprobs`` is the number itself."""
    count = _in_range("logprobs", integer(body, "logprobs"))
    return default if count is None else count


def chat_logprobs(tokens: Sequence[Json]) -> Json:
    """``logprobs`` of a choice of a chat."""
    content = [
        {**_candidate(token), "top_logprobs": [_candidate(each) for each in token["top_logprobs"]]}
        for token in tokens
    ]
    return {"content": content, "refusal": None}


def text_logprobs(tokens: Sequence[Json], offset: int = 0) -> Json:
    """``logprobs`` of a choice of a completion, whose text so far has ``offset`` characters.

    The first token of an echoed prompt has None for its own and for those in its place.
    """
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token["token"])
    return {
        "tokens": [token["token"] for token in tokens],
        "token_logprobs": [
            None if token["logprob"] is None else _finite(token) for token in tokens
        ],
        "top_logprobs": [
            None
            if token["top_logprobs"] is None
            else {each["token"]: _finite(each) for each in reversed(token["top_logprobs"])}
            for token in tokens
        ],
        "text_offset": offsets,
    }


def tokens_of(logprobs: Json) -> list[dict[str, Any]]:
    """The tokens that either form was made of, without their ids.

    Raises:
        KeyError, TypeError, ValueError: it is neither form.
    """
    if "content" in logprobs:
        return [
            {**_own(token), "top_logprobs": [_own(each) for each in token["top_logprobs"]]}
            for token in logprobs["content"]
        ]
    names = ("tokens", "token_logprobs", "top_logprobs")
    return [
        {
            **_own({"token": text, "logprob": logprob}),
            "top_logprobs": [
                _own({"token": each, "logprob": value}) for each, value in reversed(top.items())
            ],
        }
        for text, logprob, top in zip(*(logprobs[name] for name in names), strict=True)
    ]


def _in_range(name: str, value: int | None) -> int | None:
    if value is not None and not 0 <= value <= MAX_LOGPROBS:
        raise bad_request(f"'{name}' must be from 0 to {MAX_LOGPROBS}, got {value}", name)
    return value


def _candidate(token: Json) -> Json:
    text = token["token"]
    # A part of a character has no text of its own to be the bytes of.
    data = None if _REPLACEMENT in text else list(text.encode())
    return {"token": text, "logprob": _finite(token), "bytes": data}


def _own(token: Json) -> dict[str, Any]:
    return {"token_id": None, "token": token["token"], "logprob": token["logprob"]}


def _finite(token: Json) -> float:
    return max(float(token["logprob"]), _LEAST)
