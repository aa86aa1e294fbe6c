"""Request bodies: what is read, what is refused, and that nothing else comes of any JSON."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ErrorCode
from vlmbatch.images.urls import ImageUrls
from vlmbatch.openai.errors import ApiError, api_error, row_code
from vlmbatch.openai.requests import parse_chat_request, parse_completion_request
from vlmbatch.openai.unsupported import HARMLESS, NEUTRAL_CHAT, NEUTRAL_COMPLETION

DEFAULTS = SamplingParams(temperature=1.0, max_tokens=7, seed=5)
MESSAGES = [{"role": "user", "content": "Hello"}]
PIXEL = "data:image/png;base64,iVBORw0KGgo="


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "m", "messages": MESSAGES, **fields}


def refusal(body: object, parse: Any = parse_chat_request) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parse(body, DEFAULTS)
    assert caught.value.status == 400
    assert caught.value.type == "invalid_request_error"
    return caught.value


def test_a_chat() -> None:
    request = parse_chat_request(
        chat(
            max_tokens=3,
            temperature=0,
            top_p=0.5,
            seed=-1,
            stop="\n",
            top_k=-1,
            ignore_eos=True,
            stop_token_ids=[4],
            stream=True,
            stream_options={"include_usage": True},
            user="me",
        ),
        DEFAULTS,
    )
    assert request.model == "m"
    assert request.messages == MESSAGES
    assert request.images == ()
    assert request.sampling == SamplingParams(
        max_tokens=3,
        temperature=0.0,
        top_p=0.5,
        top_k=0,
        seed=2**63 - 1,
        stop=("\n",),
        stop_token_ids=(4,),
        ignore_eos=True,
    )
    assert request.stream and request.include_usage
    assert request.user == "me"


def test_penalties() -> None:
    penalties = {"min_p": 0.25, "repetition_penalty": 2.0, "presence_penalty": -1.0}
    penalties |= {"frequency_penalty": 0.5, "no_repeat_ngram_size": 3}
    for request in (
        parse_chat_request(chat(**penalties), DEFAULTS),
        parse_completion_request({"prompt": "a", **penalties}, DEFAULTS),
    ):
        assert request.sampling.settings().items() >= penalties.items()


def test_what_a_body_leaves_out_or_sets_to_null_is_as_the_defaults_say() -> None:
    nulls = dict.fromkeys(["max_tokens", "temperature", "top_p", "seed", "stop", "stream", "top_k"])
    for body in (chat(), chat(**nulls)):
        assert parse_chat_request(body, DEFAULTS).sampling == DEFAULTS
    assert parse_completion_request({"prompt": "a", **nulls}, DEFAULTS).sampling == DEFAULTS


def test_the_later_name_of_max_tokens_goes_first() -> None:
    body = chat(max_tokens=3, max_completion_tokens=4)
    assert parse_chat_request(body, DEFAULTS).sampling.max_tokens == 4


def test_images_leave_their_places_in_the_messages() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What?"},
                {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
                {"type": "image_url", "image_url": PIXEL},
            ],
        },
        {"role": "assistant", "content": "This.", "refusal": None, "tool_calls": None},
    ]
    request = parse_chat_request({"messages": messages}, DEFAULTS)
    assert request.model is None
    assert request.messages == [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What?"}, {"type": "image"}, {"type": "image"}],
        },
        {"role": "assistant", "content": "This."},
    ]
    assert [image.data for image in request.images] == [b"\x89PNG\r\n\x1a\n"] * 2


def test_a_completion() -> None:
    for prompt, prompts in (
        ("Once", ("Once",)),
        (["Once"], ("Once",)),
        ([1, 2], ((1, 2),)),
        (["Once", [3]], ("Once", (3,))),
    ):
        request = parse_completion_request({"model": "m", "prompt": prompt}, DEFAULTS)
        assert request.prompts == prompts


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "messages", "missing_required_parameter"),
        (chat(messages=[]), "messages", "invalid_value"),
        (chat(messages="Hello"), "messages", "invalid_type"),
        (chat(messages=["Hello"]), "messages[0]", "invalid_type"),
        (chat(messages=[{"content": "a"}]), "messages[0].role", "missing_required_parameter"),
        (chat(messages=[{"role": "user"}]), "messages[0].content", "invalid_type"),
        (chat(messages=[{"role": "tool", "content": ""}]), "messages[0].role", "invalid_value"),
        (chat(messages=[{"role": "user", "content": []}]), "messages[0].content", "invalid_value"),
        (
            chat(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]),
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            chat(messages=[{"role": "user", "content": [{"type": "video_url"}]}]),
            "messages[0].content[0].type",
            "invalid_value",
        ),
        (
            chat(messages=[{"role": "user", "content": "", "audio": {"id": "x"}}]),
            "messages[0].audio",
            "unsupported_parameter",
        ),
        (chat(model=3), "model", "invalid_type"),
        (chat(mm_processor_kwargs=[5]), "mm_processor_kwargs", "invalid_type"),
        (
            chat(mm_processor_kwargs={"max_pixels": "5"}),
            "mm_processor_kwargs.max_pixels",
            "invalid_type",
        ),
        (chat(mm_processor_kwargs={"max_pixels": 0}), "mm_processor_kwargs", "invalid_value"),
        (
            chat(mm_processor_kwargs={"max_pixels": 5, "min_pixels": 6}),
            "mm_processor_kwargs",
            "invalid_value",
        ),
        (chat(mm_processor_kwargs={"fps": 2}), "mm_processor_kwargs", "unsupported_parameter"),
        (chat(max_tokens=0), "max_tokens", "invalid_value"),
        (chat(max_completion_tokens=0), "max_completion_tokens", "invalid_value"),
        (chat(max_tokens="3"), "max_tokens", "invalid_type"),
        (chat(max_tokens=True), "max_tokens", "invalid_type"),
        (chat(temperature=-0.1), "temperature", "invalid_value"),
        (chat(temperature=10**400), "temperature", "invalid_type"),
        (chat(temperature=2.1), "temperature", "invalid_value"),
        (chat(temperature=2**70), "temperature", "invalid_value"),
        (chat(metadata="a"), "metadata", "invalid_type"),
        (chat(metadata={"a": 1}), "metadata.a", "invalid_type"),
        (chat(metadata={"a": None}), "metadata.a", "invalid_type"),
        (chat(metadata=dict.fromkeys("abcdefghijklmnopq", "x")), "metadata", "invalid_value"),
        (chat(metadata={"a" * 65: "x"}), "metadata", "invalid_value"),
        (chat(metadata={"a": "x" * 513}), "metadata", "invalid_value"),
        (chat(store="yes"), "store", "invalid_type"),
        (chat(service_tier=1), "service_tier", "invalid_type"),
        (chat(priority="high"), "priority", "invalid_type"),
        (chat(top_p=0), "top_p", "invalid_value"),
        (chat(top_k=-2), "top_k", "invalid_value"),
        (chat(stop=["a"] * 5), "stop", "invalid_value"),
        (chat(stop=[""]), "stop", "invalid_value"),
        (chat(stop=[1]), "stop", "invalid_type"),
        (chat(ignore_eos=1), "ignore_eos", "invalid_type"),
        (chat(stop_token_ids=[True]), "stop_token_ids", "invalid_type"),
        (chat(stream="yes"), "stream", "invalid_type"),
        (chat(stream_options={}), "stream_options", "invalid_value"),
        (chat(stream=True, stream_options={"x": 1}), "stream_options", "unknown_parameter"),
        *(
            (
                chat(stream=True, stream_options={f"{name}": 1}),
                f"stream_options.{name}",
                "invalid_type",
            )
            for name in ("include_usage", "include_obfuscation", "continuous_usage_stats")
        ),
        (chat(n=17), "n", "invalid_value"),
        (chat(n=0), "n", "invalid_value"),
        (chat(n="2"), "n", "invalid_type"),
        (chat(n=True), "n", "invalid_type"),
        (chat(tools=[{}]), "tools", "unsupported_parameter"),
        (chat(logit_bias={"1": 2}), "logit_bias", "unsupported_parameter"),
        (chat(presence_penalty=2.1), "presence_penalty", "invalid_value"),
        (chat(frequency_penalty="much"), "frequency_penalty", "invalid_type"),
        (chat(repetition_penalty=0), "repetition_penalty", "invalid_value"),
        (chat(min_p=-1), "min_p", "invalid_value"),
        (chat(no_repeat_ngram_size=0.5), "no_repeat_ngram_size", "invalid_type"),
        (chat(length_penalty=0.1), "length_penalty", "unsupported_parameter"),
        (chat(reasoning_effort="high"), "reasoning_effort", "unsupported_parameter"),
        (chat(temprature=1), "temprature", "unknown_parameter"),
    ],
)
def test_refused_chats(body: dict[str, Any], param: str, code: str) -> None:
    error = refusal(body)
    assert (error.param, error.code) == (param, code)
    assert param.rpartition(".")[2].partition("[")[0] in error.message


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": [1, "b"]}, "prompt"),
        ({"prompt": ["a"] * 17, "n": 16}, "n"),
        ({"prompt": ["a", "b"], "images": ["data:image/png;base64,AA=="]}, "images"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "echo": 1}, "echo"),
        ({"prompt": "a", "messages": MESSAGES}, "messages"),
    ],
)
def test_refused_completions(body: dict[str, Any], param: str) -> None:
    assert refusal(body, parse_completion_request).param == param


def test_fields_that_ask_for_nothing_are_accepted() -> None:
    values: dict[str, Any] = dict.fromkeys(HARMLESS, "a")
    values |= {"metadata": {"a": "x" * 512}, "store": True, "parallel_tool_calls": False}
    values |= {"prompt_cache_options": {"any": "thing"}, "priority": 1}
    for name, value in values.items():
        for each in (value, None):
            assert parse_chat_request(chat(**{name: each}), DEFAULTS).sampling == DEFAULTS
    parse_chat_request(chat(temperature=2), DEFAULTS)
    for neutral, parse, body in (
        (NEUTRAL_CHAT, parse_chat_request, chat()),
        (NEUTRAL_COMPLETION, parse_completion_request, {"prompt": "a"}),
    ):
        for name, neutrals in neutral.items():
            for value in (None, *neutrals):
                assert parse({**body, name: value}, DEFAULTS).sampling == DEFAULTS


def test_an_error_in_json_and_across_processes() -> None:
    error = refusal(chat(logit_bias={"1": 2}))
    assert json.loads(json.dumps(error.to_json()))["error"] == {
        "message": "'logit_bias' with {\"1\": 2} is not supported: leave it out, or set it to {}",
        "type": "invalid_request_error",
        "param": "logit_bias",
        "code": "unsupported_parameter",
    }
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.status, copy.to_json()) == (error.status, error.to_json())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            chat(verbosity="low"),
            """'verbosity' with "low" is not supported: leave it out, or set it to "medium\"""",
        ),
        (chat(tool_choice="required"), "for JSON of a schema use 'response_format'"),
        (chat(echo=True), "'echo' with true is not supported: leave it out, or set it to false"),
        (chat(modalities=["text", "audio"]), '["text", "audio"] is not'),
        (chat(max_tokens="é"), "'max_tokens' must be an integer, got \"é\""),
        (chat(max_tokens=False), "got false"),
        (chat(tools=[{"type": "function", "function": {"name": "x" * 200}}]), "xxx… is not"),
        (chat(tools=json.loads("[" * 500 + "]" * 500)), "[[[[… is not"),
    ],
)
def test_messages_show_json(body: dict[str, Any], message: str) -> None:
    assert message in refusal(body).message


@pytest.mark.parametrize(
    ("options", "usage", "continuous"),
    [
        ({}, False, False),
        ({"include_usage": True}, True, False),
        ({"include_usage": True, "continuous_usage_stats": True}, True, True),
        ({"include_usage": False, "continuous_usage_stats": True}, False, False),
    ],
)
def test_stream_options(options: dict[str, bool], usage: bool, continuous: bool) -> None:
    request = parse_chat_request(chat(stream=True, stream_options=options), DEFAULTS)
    assert (request.include_usage, request.continuous_usage) == (usage, continuous)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_row_error_has_an_answer(code: ErrorCode) -> None:
    error = api_error(code, "why")
    assert error.status == (500 if code is ErrorCode.ENGINE_ERROR else 400)
    assert row_code(error.code) == (code, None)
    again = error.to_row_error()
    assert api_error(again.code, again.message, again.param, again.api_code).code == error.code


def test_an_error_of_a_request_is_one_of_a_row() -> None:
    error = refusal(chat(logit_bias={"1": 2}))
    of_row = pickle.loads(pickle.dumps(error.to_row_error()))
    assert of_row.code is ErrorCode.REQUEST_INVALID
    again = api_error(of_row.code, of_row.message, of_row.param, of_row.api_code)
    assert again.to_json() == error.to_json()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
field_names = st.sampled_from(
    sorted(
        {"messages", "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed"}
        | {"min_p", "repetition_penalty", "presence_penalty", "no_repeat_ngram_size"}
        | {"stop", "stream", "stream_options", "ignore_eos", "stop_token_ids", "user"}
        | set(NEUTRAL_CHAT)
        | set(NEUTRAL_COMPLETION)
    )
)
parts = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(["text", "image_url", "file"]) | json_values,
        "text": json_values,
        "image_url": json_values
        | st.fixed_dictionaries(
            {"url": st.text() | st.text().map("data:image/png;base64,{}".format)}
        ),
    },
)
messages = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "role": st.sampled_from(["user", "system", "tool"]) | json_values,
            "content": st.text() | st.lists(parts, max_size=3) | json_values,
            "name": json_values,
        },
    ),
    max_size=3,
)


@given(
    body=json_values
    | st.dictionaries(field_names, json_values, max_size=4)
    | st.fixed_dictionaries({"messages": messages})
    | st.fixed_dictionaries({"messages": st.just(MESSAGES)}, optional={"stop": json_values}),
    urls=st.sampled_from([ImageUrls(), ImageUrls(max_data_bytes=3)]),
)
def test_any_json_is_a_request_or_a_refusal(body: object, urls: ImageUrls) -> None:
    for parse in (
        lambda: parse_chat_request(body, DEFAULTS, urls),
        lambda: parse_completion_request(body, DEFAULTS),
    ):
        try:
            parse()
        except ApiError as error:
            assert error.status == 400
            assert error.message
            assert len(error.message) < 2000
            error.to_row_error()


def test_an_image_that_is_none_is_refused_by_the_name_of_its_field() -> None:
    url = {"url": "https://example.org/a.png"}
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]}
    with pytest.raises(ApiError) as caught:
        parse_chat_request(body, SamplingParams())
    assert caught.value.status == 400
    assert caught.value.param == "messages[0].content[0].image_url"
    assert caught.value.code == "image_forbidden"
    with pytest.raises(ApiError) as caught:
        parse_completion_request({"prompt": "x", "images": ["data:,"]}, SamplingParams())
    assert (caught.value.param, caught.value.code) == ("images[0]", "image_invalid")
