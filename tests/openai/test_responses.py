"""Response objects are those that the official client expects."""

from __future__ import annotations

from typing import Any

from openai.types import Completion, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from pydantic import BaseModel

from vlmbatch.openai import responses

HEAD = responses.ResponseHead("chatcmpl-1", 1_700_000_000, "tiny")
USAGE = responses.usage(10, 3, 8, 4)


def strictly(model: type[BaseModel], values: dict[str, Any]) -> None:
    """Valid, and nothing in it that the client does not know."""
    parsed = model.model_validate(values, strict=True)
    assert parsed.model_dump(exclude_unset=True) == values
    _no_extra(parsed)


def _no_extra(value: object) -> None:
    assert not getattr(value, "model_extra", None)
    for item in vars(value).values() if hasattr(value, "model_fields_set") else ():
        for each in item if isinstance(item, list) else [item]:
            if hasattr(each, "model_fields_set"):
                _no_extra(each)


def test_usage() -> None:
    assert USAGE["total_tokens"] == 13
    assert USAGE["prompt_tokens_details"] == {"image_tokens": 8, "cached_tokens": 4}
    assert "cached_tokens" not in responses.usage(1, 1)["prompt_tokens_details"]


def test_whole_answers() -> None:
    strictly(ChatCompletion, responses.chat_completion(HEAD, "a", "stop", USAGE))
    strictly(Completion, responses.text_completion(HEAD, "a", "length", USAGE))


def test_chunks() -> None:
    chunks = [
        responses.chat_chunk(HEAD, "", first=True),
        responses.chat_chunk(HEAD, "a"),
        responses.chat_chunk(HEAD, finish_reason="stop"),
        responses.chat_usage_chunk(HEAD, USAGE),
    ]
    for chunk in chunks:
        strictly(ChatCompletionChunk, chunk)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[2]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_models() -> None:
    listed = responses.model_list(["a", "b"], 5)
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["a", "b"]
    for model in listed["data"]:
        strictly(Model, model)


def test_ids_differ() -> None:
    ids = {responses.new_id("chatcmpl-") for _ in range(100)}
    assert len(ids) == 100
    assert all(name.startswith("chatcmpl-") for name in ids)
