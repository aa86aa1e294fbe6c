"""Requests to rows: whatever a caller gives, the row has it or an error that names the cause."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch import ImagePixelData, SamplingParams
from vlmbatch.api.images import ImageReader
from vlmbatch.api.requests import RequestReader, open_call, with_sampling
from vlmbatch.config import ImageLimits
from vlmbatch.errors import ConfigError, ErrorCode
from vlmbatch.types import ImageGrid, Row


def no_grid(shape: tuple[int, ...]) -> ImageGrid:
    raise AssertionError("these are no features")


READER = RequestReader(ImageReader("pixel_values", no_grid, ImageLimits()))
PARAMS = SamplingParams()


def read(request: object) -> Row:
    return READER.read(3, request, PARAMS)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (5, r"a string or a dict, got 5 \(int\)"),
        (b"bytes", "a string or a dict"),
        ({"prompt": None}, "prompt must be a string, got None"),
        ({"multi_modal_data": None}, "prompt must be a string"),
        ({"prompt": "a", "image": "b.png"}, "unknown key 'image'; a request has prompt"),
        ({"prompt": "a", "messages": []}, "leave out prompt"),
        ({"messages": "text"}, "messages must be a list"),
        ({"messages": ["text"]}, "message 1 must be a dict"),
    ],
)
def test_malformed_requests(request_: object, message: str) -> None:
    row = read(request_)
    assert row.error is not None and row.error.code is ErrorCode.PROMPT_INVALID
    assert message.replace("\\", "") in row.error.message


def test_images_keep_their_order() -> None:
    row = read({"prompt": "p", "multi_modal_data": [ImagePixelData("/a"), ImagePixelData("/b")]})
    assert [image.path for image in row.images] == ["/a", "/b"]
    url = {"type": "image_url", "image_url": {"url": "/b"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": [{"type": "image", "image": "/a"}, url]},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": ({"type": "image_url", "image_url": "/c"},)},
    ]
    row = read({"messages": messages})
    assert [image.path for image in row.images] == ["/a", "/b", "/c"]
    assert row.messages is not None
    assert row.messages[0]["content"] == [{"type": "image"}] * 2
    assert messages[0]["content"][1] is url and "image" in messages[0]["content"][0]


ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary() | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["prompt", "messages", "role", "content", "type", "image", "image_url", "url", "x"]
            )
            | st.integers(),
            inner | st.sampled_from(["image", "image_url", "text", "data:,"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(ANYTHING)
def test_no_request_raises(request: object) -> None:
    row = read(request)
    assert row.index == 3
    assert row.error is not None or row.prompt is not None or row.messages is not None


@given(st.integers(0, 8), st.integers(0, 8))
def test_sampling_pairs_or_says_both_numbers(num_requests: int, num_params: int) -> None:
    requests = [str(number) for number in range(num_requests)]
    params = [SamplingParams(max_tokens=1 + number) for number in range(num_params)]
    try:
        paired = list(with_sampling(*open_call(requests, params)))
    except ConfigError as error:
        assert num_requests != num_params
        assert f"{num_requests} requests, but {num_params} sampling_params" in str(error)
        return
    assert paired == list(zip(requests, params, strict=True))


def test_sampling_of_the_wrong_kind() -> None:
    bad: Any = [PARAMS, {"max_tokens": 3}]
    with pytest.raises(TypeError, match=r"sampling_params\[1\] is no SamplingParams"):
        open_call(["a", "b"], bad)
    rows = [
        READER.read(i, *pair) for i, pair in enumerate(with_sampling(iter(["a", "b"]), iter(bad)))
    ]
    assert rows[0].error is None
    assert rows[1].error is not None and rows[1].error.code is ErrorCode.SAMPLING_INVALID


class Hostile:
    """Raises whatever is asked of it."""

    def __repr__(self) -> str:
        raise ZeroDivisionError("hostile")

    def __fspath__(self) -> str:
        raise ZeroDivisionError("hostile")


@pytest.mark.parametrize(
    "request_",
    [
        Hostile(),
        {"prompt": Hostile()},
        {"prompt": "p", "multi_modal_data": Hostile()},
        {"prompt": "p", "multi_modal_data": ImagePixelData(Hostile())},
        {"messages": [{"role": "user", "content": [{"type": "image", "image": Hostile()}]}]},
    ],
)
def test_what_the_objects_of_a_request_raise_is_its_own_error(request_: object) -> None:
    assert read(request_).error is not None
