"""What OpenAI's own client, and curl, get from the server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import httpx
import openai
import pydantic
import pytest
from server_process import (
    MODEL,
    NUMBER,
    ServerProcess,
    answered_rows,
    chat_body,
    data_url,
    user_message,
)

from vlmbatch.models.tokenizer import Tokenizer

JSON = ["-H", "Content-Type: application/json", "-d", "@-"]
PROMPT = f"USER: <image>\n{NUMBER} ASSISTANT:"


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="EMPTY", max_retries=0) as made:
        yield made


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**chat_body())
    assert answer.choices[0].message.content == "92"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == MODEL
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (112, 4)


def test_chat_stream_adds_up_to_the_answer(client: openai.OpenAI) -> None:
    body = chat_body(stream=True, stream_options={"include_usage": True})
    *chunks, last = client.chat.completions.create(**body)
    assert last.choices == []
    assert last.usage.total_tokens == 116
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(deltas) == "92"
    assert chunks[0].choices[0].delta.role == "assistant"
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("chat", [True, False])
def test_a_stream_that_tells_the_usage_all_along(server: ServerProcess, chat: bool) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body: dict[str, Any] = chat_body(max_tokens=9, stream=True, stream_options=options)
    body |= {"ignore_eos": True, "stop": ["never so"]}
    if not chat:
        del body["messages"]
        body["prompt"] = "USER: Hi ASSISTANT:"
    path = "/v1/chat/completions" if chat else "/v1/completions"
    *events, done, _ = httpx.post(f"{server.url}{path}", json=body).text.split("\n\n")
    assert done == "data: [DONE]"
    usages = [json.loads(event.removeprefix("data: "))["usage"] for event in events]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts) and counts[0] < 9 and counts[-2:] == [9, 9]
    assert len({usage["prompt_tokens"] for usage in usages}) == 1
    assert all(u["total_tokens"] == u["prompt_tokens"] + u["completion_tokens"] for u in usages)


def test_a_long_answer_comes_in_pieces(client: openai.OpenAI) -> None:
    body = chat_body(max_tokens=200, extra_body={"ignore_eos": True})
    whole = client.chat.completions.create(**body).choices[0].message.content
    chunks = client.chat.completions.create(**body, stream=True)
    deltas = [chunk.choices[0].delta.content or "" for chunk in chunks]
    assert "".join(deltas) == whole
    assert len([delta for delta in deltas if delta]) > 1  # how many depends on the client's speed


def test_many_at_once_get_their_own_answers(server: ServerProcess) -> None:
    rows = answered_rows()
    assert len(rows) > 10

    async def ask(client: openai.AsyncOpenAI, row: dict[str, Any]) -> str | None:
        message: Any = user_message(row["question"], row["url"])
        answer = await client.chat.completions.create(
            model=MODEL, messages=[message], temperature=0
        )
        return answer.choices[0].message.content

    async def ask_all() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY") as client:
            return await asyncio.gather(*(ask(client, row) for row in rows))

    assert asyncio.run(ask_all()) == [row["answer"] for row in rows]


def test_async_stream(server: ServerProcess) -> None:
    async def ask() -> str:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="EMPTY") as client:
            stream = await client.chat.completions.create(**chat_body(stream=True))
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    assert asyncio.run(ask()) == "92"


def test_completions(client: openai.OpenAI) -> None:
    arguments: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "temperature": 0}
    arguments["extra_body"] = {"images": [data_url()]}
    answer = client.completions.create(**arguments)
    assert answer.choices[0].text == "92"
    stream = client.completions.create(**arguments, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "92"


def test_a_prompt_without_images(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=MODEL, prompt="USER: What", max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens <= 3


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_is_cut_off(client: openai.OpenAI, stream: bool) -> None:
    answer = client.chat.completions.create(**chat_body(stop=["2"], stream=stream))
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == ("9", "stop")


def test_a_seed_repeats_an_answer_and_none_does_not(client: openai.OpenAI) -> None:
    def ask(**fields: Any) -> str | None:
        # Without an image the model is sure of nothing.
        fields |= {"messages": [user_message("Hello")], "extra_body": {"ignore_eos": True}}
        body = chat_body(temperature=2.0, max_tokens=40, **fields)
        return client.chat.completions.create(**body).choices[0].message.content

    assert ask(seed=5) == ask(seed=5)
    assert ask() != ask()


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.models.retrieve("other")


@pytest.mark.parametrize(
    ("fields", "kind", "message", "code"),
    [
        ({"model": "other"}, openai.NotFoundError, "no model 'other'", "model_not_found"),
        (
            {"messages": [user_message(NUMBER, data_url(), data_url())]},
            openai.BadRequestError,
            "has 2 images, and the server takes 1",
            "too_many_images",
        ),
        (
            {"messages": [user_message(NUMBER, "data:image/png;base64,AAAA")]},
            openai.BadRequestError,
            "image",
            "image_unreadable",
        ),
        (
            {"messages": [user_message(NUMBER, "http://example.org/a.png")]},
            openai.BadRequestError,
            "--allow-domain example.org",
            "image_forbidden",
        ),
        (
            {"messages": [user_message(NUMBER, "file:///etc/passwd")]},
            openai.BadRequestError,
            "a file: URL",
            "image_forbidden",
        ),
        (
            {"messages": [user_message("word " * 600)]},
            openai.BadRequestError,
            "exceeds the context of 512",
            "context_length_exceeded",
        ),
        (
            {"messages": [user_message("<image><image>", data_url())]},
            openai.BadRequestError,
            "1 image: expected 100 or 1 image tokens",
            "image_token_mismatch",
        ),
        ({"n": 17}, openai.BadRequestError, "'n' must be from 1 to 16, got 17", "invalid_value"),
        ({"temperature": -1}, openai.BadRequestError, "temperature", "invalid_value"),
        ({"messages": []}, openai.BadRequestError, "messages", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors(
    client: openai.OpenAI,
    fields: dict[str, Any],
    kind: type[openai.APIStatusError],
    message: str,
    code: str | None,
    stream: bool,
) -> None:
    with pytest.raises(kind, match=message) as caught:
        client.chat.completions.create(**chat_body(stream=stream, **fields))
    assert set(caught.value.response.json()["error"]) == {"message", "type", "param", "code"}
    if code is not None:
        assert caught.value.code == code


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")


def curl(*arguments: str, body: str = "") -> str:
    done = subprocess.run(
        ["curl", "-sS", *arguments], input=body, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_curl
def test_curl(server: ServerProcess) -> None:
    url = f"{server.url}/v1/chat/completions"
    answer = json.loads(curl(url, *JSON, body=json.dumps(chat_body())))
    assert answer["choices"][0]["message"]["content"] == "92"
    events = curl("-N", url, *JSON, body=json.dumps(chat_body(stream=True))).split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: {") for event in events[:-2])


@needs_curl
@pytest.mark.parametrize(
    ("path", "arguments", "body", "status"),
    [
        ("/nothing", [], "", 404),
        ("/v1/nothing", [], "", 404),
        ("/v1/models", ["-X", "DELETE"], "", 405),
        ("/v1/chat/completions", [], "", 405),
        ("/v1/chat/completions", ["-d", "@-"], "{}", 415),
        ("/v1/chat/completions", JSON, "{", 400),
        ("/v1/chat/completions", JSON, "[" * 100_000, 400),
        ("/v1/chat/completions", JSON, '{"\\ud800": 1}', 400),
        ("/v1/chat/completions", JSON, "null", 400),
    ],
)
def test_refusals_are_json(
    server: ServerProcess, path: str, arguments: list[str], body: str, status: int
) -> None:
    shown = curl(f"{server.url}{path}", "-w", "\n%{http_code}", *arguments, body=body)
    answer, _, code = shown.rpartition("\n")
    assert int(code) == status
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


def test_log_probabilities(client: openai.OpenAI) -> None:
    """Those of a stream are those of the whole answer."""
    body = chat_body(logprobs=True, top_logprobs=2)
    whole = client.chat.completions.create(**body).choices[0].logprobs
    assert whole is not None and whole.content is not None
    assert len(whole.content) == 4
    assert all(len(token.top_logprobs) == 2 for token in whole.content)
    streamed: list[Any] = []
    for chunk in client.chat.completions.create(**body, stream=True):
        logprobs = chunk.choices[0].logprobs
        streamed += (logprobs.content or []) if logprobs is not None else []
    assert [token.token for token in streamed] == [token.token for token in whole.content]

    text = client.completions.create(model=MODEL, prompt="What?", logprobs=1, max_tokens=3)
    found = text.choices[0].logprobs
    assert found is not None and found.tokens is not None and found.token_logprobs is not None
    assert len(found.tokens) == len(found.token_logprobs) == text.usage.completion_tokens


@pytest.mark.parametrize("chat", [True, False])
def test_several_answers(client: openai.OpenAI, chat: bool) -> None:
    """The first is that of a request for one; a stream's are those of the whole response."""
    options: dict[str, Any] = {"n": 3, "seed": 5, "temperature": 2.0, "max_tokens": 12}
    create: Any = client.completions.create
    body: dict[str, Any] = {"model": MODEL, "prompt": "What is it?"}
    if chat:
        create, body = client.chat.completions.create, chat_body()
    # The sample model is sure of all that it says, but for what a penalty takes from it.
    body |= options | {"extra_body": {"ignore_eos": True, "repetition_penalty": 50.0}}

    def text(choice: Any) -> str:
        return str(choice.message.content if chat else choice.text)

    whole = create(**body)
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    texts = [text(choice) for choice in whole.choices]
    assert len(set(texts)) == 3
    alone = create(**body | {"n": 1})
    assert text(alone.choices[0]) == texts[0]
    assert alone.usage.prompt_tokens == whole.usage.prompt_tokens
    assert alone.usage.completion_tokens < whole.usage.completion_tokens <= 36

    streamed, opened, ended = [""] * 3, set(), set()
    for chunk in create(**body, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            streamed[choice.index] += (choice.delta.content or "") if chat else choice.text
            if chat and choice.delta.role is not None:
                opened.add(choice.index)
            if choice.finish_reason is not None:
                ended.add(choice.index)
    assert streamed == texts and ended == {0, 1, 2}
    assert opened == ({0, 1, 2} if chat else set())
    assert chunk.usage.completion_tokens == whole.usage.completion_tokens


class Shape(pydantic.BaseModel, extra="forbid"):
    colour: Literal["red", "green", "blue"]
    sides: int = pydantic.Field(ge=0, le=99)
    tags: list[Literal["a", "b"]] = pydantic.Field(max_length=2)


def test_an_answer_of_a_pydantic_model(client: openai.OpenAI) -> None:
    """OpenAI's client makes the schema, and reads the answer by it."""
    answer = client.chat.completions.parse(**chat_body(max_tokens=200), response_format=Shape)
    assert isinstance(answer.choices[0].message.parsed, Shape)
    assert answer.choices[0].finish_reason == "stop"


def test_a_shape_is_streamed(client: openai.OpenAI) -> None:
    schema = {"name": "shape", "schema": Shape.model_json_schema(), "strict": True}
    body = chat_body(max_tokens=200, response_format={"type": "json_schema", "json_schema": schema})
    whole = client.chat.completions.create(**body).choices[0].message.content
    chunks = [*client.chat.completions.create(**body, stream=True)]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
    Shape.model_validate_json(whole)
    text = client.completions.create(
        model=MODEL,
        prompt="USER: Hi ASSISTANT:",
        extra_body={"structured_outputs": {"regex": "[a-c]{2,4}"}},
    )
    assert re.fullmatch("[a-c]{2,4}", text.choices[0].text)


def test_a_shape_that_cannot_be_used_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="Unimplemented keys") as caught:
        schema = {"name": "n", "schema": {"not": {}}}
        body = chat_body(response_format={"type": "json_schema", "json_schema": schema})
        client.chat.completions.create(**body)
    assert caught.value.param == "response_format"


def test_a_shape_without_an_answer_is_an_error(client: openai.OpenAI) -> None:
    endless = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    shape = {"type": "json_schema", "json_schema": {"name": "n", "schema": endless}}
    with pytest.raises(openai.BadRequestError, match="no token of the vocabulary"):
        client.chat.completions.create(**chat_body(response_format=shape))


def test_several_prompts(client: openai.OpenAI) -> None:
    """Texts and token ids, each answered as it is alone, with ``n`` answers in its place."""
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 5, "seed": 3, "temperature": 0}
    texts = ["USER: Hi ASSISTANT:", "What is it?"]
    alone = [client.completions.create(**options, prompt=text) for text in texts]
    expected = [each.choices[0].text for each in alone]
    prompt_tokens = sum(each.usage.prompt_tokens for each in alone if each.usage is not None)
    both = client.completions.create(**options, prompt=texts, n=2)
    assert [choice.text for choice in both.choices] == [expected[0]] * 2 + [expected[1]] * 2
    assert [choice.index for choice in both.choices] == [0, 1, 2, 3]
    assert both.usage is not None and both.usage.prompt_tokens == prompt_tokens

    tokenizer = Tokenizer.load(Path(MODEL))
    ids = [tokenizer.encode(text) for text in texts]
    assert client.completions.create(**options, prompt=ids[1]).choices[0].text == expected[1]
    streamed = ["", ""]
    for chunk in client.completions.create(**options, prompt=ids, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.text
    assert streamed == expected


@pytest.mark.parametrize(
    ("prompt", "message", "param"),
    [
        ([], "'prompt' is empty", "prompt"),
        ([[]], "the prompt is empty", None),
        ([1, "a"], 'an array of token ids, or an array of these, got "a"', "prompt"),
        ([[1, 2], [3, True]], "got true", "prompt[1]"),
        ("a" * 9000, "exceeds the context of 512", None),
        (["a"] * 257, "has 257 prompts, at most 256 fit", "prompt"),
        (["Hi", [1, 99999]], "prompt 1: token 1 of the prompt is 99999, and the model has", None),
    ],
)
def test_prompts_that_are_refused(
    client: openai.OpenAI, prompt: Any, message: str, param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(message)) as caught:
        client.completions.create(model=MODEL, prompt=prompt)
    assert caught.value.param == param


def test_echo(client: openai.OpenAI) -> None:
    """As lm-eval asks for it: the prompt's tokens with their log-probabilities come first."""
    texts = ["USER: Hi ASSISTANT:", "What is it?"]
    body: dict[str, Any] = {"model": MODEL, "prompt": texts, "echo": True, "temperature": 0}
    whole = client.completions.create(**body, max_tokens=1, logprobs=1)
    nothing = client.completions.create(**body, max_tokens=0)
    assert [choice.text for choice in nothing.choices] == texts
    assert nothing.usage is not None and nothing.usage.completion_tokens == 0
    assert whole.usage is not None and whole.usage.completion_tokens == 2
    lengths = []
    for choice, text in zip(whole.choices, texts, strict=True):
        found = choice.logprobs
        assert found is not None and found.tokens is not None and found.token_logprobs is not None
        assert choice.text.startswith(text)
        assert "".join(found.tokens).removeprefix("<s>").removesuffix("</s>") == choice.text
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None
        assert all(each < 0 for each in found.token_logprobs[1:])
        lengths.append(len(found.tokens))
    assert sum(lengths) == whole.usage.total_tokens


@pytest.mark.parametrize("field", [{"stream": True}, {"extra_body": {"images": [data_url()]}}])
def test_echoes_that_are_refused(client: openai.OpenAI, field: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match=r"'echo' with .* is not supported") as caught:
        client.completions.create(model=MODEL, prompt="<image>Hi", echo=True, **field)
    assert caught.value.param == "echo"


def test_an_answer_has_as_many_tokens_as_asked_for(client: openai.OpenAI) -> None:
    body = chat_body(max_tokens=40, stop=["9"], extra_body={"min_tokens": 9})
    answer = client.chat.completions.create(**body)
    assert answer.usage is not None and answer.usage.completion_tokens >= 9
    assert str(answer.choices[0].message.content).startswith("92")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
        ("tool_choice", "required"),
        ("functions", [{"name": "f"}]),
    ],
)
def test_tools_are_refused_by_name(client: openai.OpenAI, field: str, value: Any) -> None:
    with pytest.raises(openai.BadRequestError, match=rf"'{field}' with .* is not supported") as got:
        client.chat.completions.create(**chat_body(**{field: value}))
    assert (got.value.code, got.value.param) == ("unsupported_parameter", field)
