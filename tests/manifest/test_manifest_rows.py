"""From the columns of a row to prompt, images and sampling."""

from __future__ import annotations

import base64
import io
import json
import random
from pathlib import Path

import pytest
from PIL import Image

from vlmbatch.config import ImageResolution, SamplingParams
from vlmbatch.config.seeds import derive_seed
from vlmbatch.errors import ErrorCode
from vlmbatch.images.urls import AllowedDomains, ImageUrls
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.image_column import ImageColumn
from vlmbatch.manifest.rows import RowBuilder
from vlmbatch.types import ImageRef, Row

DEFAULTS = SamplingParams(max_tokens=10, temperature=0.5, stop=("END",), seed=3)


def build(values, index: int = 0, columns: Columns | None = None) -> Row:
    columns = columns or Columns()
    images = ImageColumn(columns.image, Path("/data"))
    return RowBuilder(columns, DEFAULTS, images).build(index, "m", 1, values)


def code_and_message(row: Row) -> tuple[ErrorCode, str]:
    assert row.error is not None
    return row.error.code, row.error.message


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"question": "a"}, 'no column "prompt" or "messages" (present: "question")'),
        ({"prompt": None}, 'column "prompt" is null'),
        ({"prompt": 5}, 'column "prompt" must be a string, got 5 (int)'),
        ({"prompt": ["a"]}, "(list)"),
        ({"prompt": "a", "messages": [{"role": "user"}]}, "both"),
        ({"messages": "hello"}, 'column "messages" must be a list of objects'),
        ({"messages": '[{"role": '}, "or one as JSON: the text: not JSON: Expecting value at"),
        ({"messages": '["hello"]'}, 'column "messages" must be a list of objects'),
        ({"messages": ["hello"]}, 'column "messages" must be a list of objects'),
        ({"messages": []}, 'column "messages" is empty'),
    ],
)
def test_bad_prompt(values, cause):
    code, message = code_and_message(build(values))
    assert code is ErrorCode.PROMPT_INVALID and cause in message


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"max_pixels": None, "min_pixels": float("nan")}, None),
        ({"max_pixels": 5000}, ImageResolution(max_pixels=5000)),
        ({"max_pixels": 5000.0, "min_pixels": 9}, ImageResolution(5000, 9)),
        ({"longest_side": 100}, None),
    ],
)
def test_a_rows_own_resolution(values, expected):
    row = build({"prompt": "a", "image": ["a.png", "b.png"], **values})
    assert row.error is None
    assert [image.resolution for image in row.images] == [expected, expected]
    assert row.extra.keys() == values.keys() - {"max_pixels", "min_pixels"}


@pytest.mark.parametrize(
    ("values", "cause"),
    [
        ({"max_pixels": "many"}, "max_pixels must be an integer, got 'many' (str)"),
        ({"min_pixels": 0.5}, "min_pixels must be an integer, got 0.5 (float)"),
        ({"max_pixels": True}, "max_pixels must be an integer"),
        ({"max_pixels": 0}, "max_pixels must be from 1 to 1000000000, got 0"),
        ({"min_pixels": 10**400}, "min_pixels must be from 1 to 1000000000, got 1000"),
        ({"max_pixels": 4, "min_pixels": 5}, "min_pixels is 5, above max_pixels, which is 4"),
    ],
)
def test_bad_resolution(values, cause):
    code, message = code_and_message(build({"prompt": "a", **values}))
    assert code is ErrorCode.RESOLUTION_INVALID and cause in message


def test_messages_in_place_of_a_prompt():
    messages = [{"role": "user", "content": "hello"}]
    row = build({"prompt": None, "messages": messages})
    assert (row.error, row.prompt, row.messages) == (None, None, messages)
    assert build({"messages": json.dumps(messages)}).messages == messages


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "a.jpg"}},
        {"type": "image", "image": "a.jpg", "text": None},
    ],
)
def test_messages_that_name_images_need_the_image_column(part):
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": [part]}]
    error = build({"messages": messages}).error
    assert (error.code, "message 2 names an image" in error.message) == (
        ErrorCode.IMAGE_TOKEN_MISMATCH,
        True,
    )
    assert build({"messages": messages, "image": "a.jpg"}).error is None
    assert build({"messages": [{"role": "user", "content": [{"type": "image"}]}]}).error is None


@pytest.mark.parametrize(
    ("value", "images"),
    [
        (None, []),
        ([], []),
        ("a/b.jpg", [ImageRef("/data/a/b.jpg")]),
        ("/abs.jpg", [ImageRef("/abs.jpg")]),
        (b"\xff\xd8", [ImageRef(data=b"\xff\xd8")]),
        (b"", [ImageRef(data=b"")]),
        ({"bytes": b"x", "path": "label.jpg"}, [ImageRef("label.jpg", b"x")]),
        ({"bytes": b"x", "path": None}, [ImageRef(None, b"x")]),
        ({"bytes": None, "path": "p.jpg"}, [ImageRef("/data/p.jpg")]),
        ({"path": "p.jpg"}, [ImageRef("/data/p.jpg")]),
        (["a.jpg", {"bytes": b"x"}], [ImageRef("/data/a.jpg"), ImageRef(None, b"x")]),
    ],
)
def test_images(value, images):
    row = build({"prompt": "a", "image": value})
    assert row.error is None
    assert list(row.images) == images


@pytest.mark.parametrize(
    "value",
    [
        *(5, True, "", "a\0b.jpg", "odd://example.org/a.jpg", "data:image/png,AAAA"),
        *("data:image/png;base64,", "data:image/png;base64,A?", "data:text/html;base64,AAAA"),
        *({}, {"bytes": None, "path": None}, {"bytes": "text"}, {"bytes": b"x", "path": 5}),
        *([None], ["a.jpg", None], [["a.jpg"]]),
    ],
)
def test_bad_image(value):
    code, message = code_and_message(build({"prompt": "a", "image": value}))
    assert code is ErrorCode.IMAGE_INVALID
    assert message.isprintable()


@pytest.mark.parametrize("in_a", [str, lambda url: [url], lambda url: {"path": url}])
def test_urls_of_allowed_hosts_are_images(in_a):
    urls = ImageUrls(AllowedDomains.of(["a.example"]))
    images = ImageColumn("image", Path("/data"), urls=urls)
    builder = RowBuilder(Columns(), SamplingParams(), images)
    values = {"prompt": "a", "image": in_a("HTTPS://a.example/x.jpg")}
    row = builder.build(0, "m.jsonl", 1, values)
    assert row.error is None
    assert list(row.images) == [ImageRef(url="HTTPS://a.example/x.jpg")]
    other = builder.build(0, "m.jsonl", 1, {**values, "image": in_a("https://b.example/x.jpg")})
    code, message = code_and_message(other)
    assert code is ErrorCode.IMAGE_FORBIDDEN
    assert "the host b.example is not allowed" in message


def test_urls_are_not_fetched_unless_a_host_is_allowed():
    code, message = code_and_message(build({"prompt": "a", "image": "https://b.example/x.jpg"}))
    assert code is ErrorCode.IMAGE_FORBIDDEN
    assert "images are not fetched; --allow-domain b.example would allow it" in message


def encoded_picture(kind: str, size: int) -> str:
    file = io.BytesIO()
    Image.frombytes("RGB", (size, 8), random.Random(7).randbytes(size * 24)).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize("in_a", [str, lambda url: [url], lambda url: {"path": url}])
def test_data_urls_are_images(in_a):
    encoded = encoded_picture("PNG", 8)
    row = build({"prompt": "a", "image": in_a(f"DATA:image/png;base64,{encoded}")})
    assert row.error is None
    assert [image.data for image in row.images] == [base64.b64decode(encoded)]


@pytest.mark.parametrize(
    ("kind", "size"),
    [(kind, size) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "AVIF") for size in (1, 200)]
    + [("BMP", 200)],
)
def test_base64_without_a_scheme_is_told_in_short(kind, size):
    code, message = code_and_message(build({"prompt": "a", "image": encoded_picture(kind, size)}))
    assert code is ErrorCode.IMAGE_INVALID
    assert "looks like base64: put data:image/jpeg;base64," in message
    assert len(message) < 160


@pytest.mark.parametrize(
    "path", ["/9j/a.jpg", "iVBORw0KGgo", "a/" * 2500 + "b.jpg", "UklGR" * 30 + ".webp"]
)
def test_paths_are_not_taken_for_base64(path):
    assert build({"prompt": "a", "image": path}).error is None


def test_row_sampling_overrides_the_runs():
    row = build(
        {"prompt": "a", "max_tokens": 5, "temperature": 1, "top_p": 0.5, "top_k": 4.0, "seed": 9}
        | {"stop": ["x", "y"]}
    )
    assert row.sampling == SamplingParams(5, 1.0, 0.5, 4, 9, ("x", "y"))


def test_row_penalties_override_the_runs():
    penalties = {"min_p": 0.25, "repetition_penalty": 2, "presence_penalty": -1}
    penalties |= {"frequency_penalty": 0.5, "no_repeat_ngram_size": 3.0}
    row = build({"prompt": "a", "seed": 1} | penalties)
    assert row.sampling.settings().items() >= penalties.items()
    assert row.extra == {}


def test_null_sampling_keeps_the_runs():
    row = build({"prompt": "a", "max_tokens": None, "stop": None, "temperature": None})
    assert row.sampling is not None
    assert (row.sampling.max_tokens, row.sampling.temperature) == (10, 0.5)
    assert row.sampling.stop == ("END",)


@pytest.mark.parametrize(("stop", "expected"), [("x", ("x",)), ([], ()), (["x"], ("x",))])
def test_stop(stop, expected):
    row = build({"prompt": "a", "stop": stop})
    assert row.sampling is not None and row.sampling.stop == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("max_tokens", value) for value in (0, -1, 1.5, "5", True, float("inf"), [5])),
        *(("temperature", value) for value in (-0.1, "hot", True, float("inf"), 10**400)),
        *(("top_p", value) for value in (0, 1.01, float("inf"), "0.5")),
        *(("top_k", value) for value in (-1, 2.5, "3")),
        *(("min_p", value) for value in (-0.1, 1.1, "0")),
        *(("repetition_penalty", value) for value in (0, -1, float("inf"), "1")),
        *(("presence_penalty", value) for value in (-2.1, 2.1, True)),
        *(("frequency_penalty", value) for value in (-2.1, 2.1, [1])),
        *(("no_repeat_ngram_size", value) for value in (-1, 101, 1.5)),
        *(("seed", value) for value in (-1, 2**63, "1", 0.5)),
        *(("stop", value) for value in (5, [5], "", [""], {"a": 1})),
    ],
)
def test_bad_sampling(name, value):
    code, message = code_and_message(build({"prompt": "a", name: value}))
    assert code is ErrorCode.SAMPLING_INVALID
    assert name in message


def test_seeds_differ_by_row_and_run_and_stay_the_same():
    seeds = {derive_seed(run, index) for run in range(20) for index in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert build({"prompt": "a"}, index=4).sampling.seed == derive_seed(3, 4)
    # The first output of SplitMix64 from seed 0, as published with the algorithm, halved.
    assert derive_seed(0, 0) == 0xE220A8397B1DCDAF >> 1


def test_error_row_keeps_id_and_other_columns():
    row = build({"id": "x", "prompt": None, "image": "a.jpg", "seed": 1, "label": "cat"}, index=6)
    assert (row.index, row.id, row.extra) == (6, "x", {"label": "cat"})


def test_renamed_columns():
    columns = Columns(prompt="question", image="picture", id="key")
    values = {"question": "q", "picture": "p.jpg", "key": "k", "prompt": 1, "image": 2}
    row = build(values, columns=columns)
    assert (row.prompt, row.id, row.images) == ("q", "k", (ImageRef("/data/p.jpg"),))
    assert row.extra == {"prompt": 1, "image": 2}
