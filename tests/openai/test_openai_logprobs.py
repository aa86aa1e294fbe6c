"""How requests ask for log-probabilities, and the forms in which they are told."""

from __future__ import annotations

from typing import Any

import pytest

from vlmbatch.config import SamplingParams
from vlmbatch.openai.errors import ApiError
from vlmbatch.openai.logprobs import chat_logprobs, text_logprobs, tokens_of
from vlmbatch.openai.requests import parse_chat_request, parse_completion_request

NONE, TWO = SamplingParams(), SamplingParams(logprobs=2)
MESSAGES = [{"role": "user", "content": "a"}]
TOKENS = [
    {
        "token_id": None,
        "token": text,
        "logprob": -0.5,
        "top_logprobs": [
            {"token_id": None, "token": text, "logprob": -0.5},
            {"token_id": None, "token": "c", "logprob": -2.0},
        ],
    }
    for text in ("a ", "é", "\ufffd")
]


@pytest.mark.parametrize(
    ("body", "defaults", "asked"),
    [
        ({}, NONE, None),
        ({}, TWO, 2),
        ({"logprobs": None}, TWO, 2),
        ({"logprobs": False}, TWO, None),
        ({"logprobs": False, "top_logprobs": 0}, NONE, None),
        ({"logprobs": True}, NONE, 0),
        ({"logprobs": True}, TWO, 2),
        ({"logprobs": True, "top_logprobs": 20}, NONE, 20),
        ({"top_logprobs": 1}, TWO, 1),
    ],
)
def test_chats(body: dict[str, Any], defaults: SamplingParams, asked: int | None) -> None:
    request = parse_chat_request({"messages": MESSAGES, **body}, defaults)
    assert request.sampling.logprobs == asked


@pytest.mark.parametrize(
    ("value", "defaults", "asked"), [(None, NONE, None), (None, TWO, 2), (0, TWO, 0), (5, NONE, 5)]
)
def test_completions(value: int | None, defaults: SamplingParams, asked: int | None) -> None:
    request = parse_completion_request({"prompt": "a", "logprobs": value}, defaults)
    assert request.sampling.logprobs == asked


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": MESSAGES, "logprobs": 1}, "logprobs"),
        ({"messages": MESSAGES, "top_logprobs": 1}, "top_logprobs"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"messages": MESSAGES, "logprobs": True, "top_logprobs": -1}, "top_logprobs"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "top_logprobs": 1}, "top_logprobs"),
    ],
)
def test_refusals(body: dict[str, Any], param: str) -> None:
    parse: Any = parse_chat_request if "messages" in body else parse_completion_request
    with pytest.raises(ApiError) as caught:
        parse(body, NONE)
    assert (caught.value.status, caught.value.param) == (400, param)


def test_forms_lead_back_to_the_tokens() -> None:
    chat, text = chat_logprobs(TOKENS), text_logprobs(TOKENS, 7)
    assert [token["bytes"] for token in chat["content"]] == [[97, 32], [195, 169], None]
    assert text["text_offset"] == [7, 9, 10]
    assert text["top_logprobs"][0] == {"a ": -0.5, "c": -2.0}
    assert tokens_of(chat) == tokens_of(text) == TOKENS


def test_what_json_lacks_is_told_as_a_number() -> None:
    token = {**TOKENS[0], "logprob": -float("inf"), "top_logprobs": []}
    assert chat_logprobs([token])["content"][0]["logprob"] == -9999.0
    assert text_logprobs([token])["token_logprobs"] == [-9999.0]
