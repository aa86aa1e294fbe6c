"""The rows of the corpus and what must become of each."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from corpus_pictures import DESCRIPTION, NUMBER, colour_pictures, grey_pictures

IMAGE_TOKENS = 100  # of one image, and
CONTEXT = 512  # tokens at most, in samples/tiny-llava
ANYTHING = "anything"  # an answer, but not one that can be foretold
HUGE_LINE_BYTES = 100 * 2**20
LINE_LIMIT_BYTES = 16 * 2**20


@dataclass(frozen=True)
class CorpusRow:
    """One row: either it is answered with ``answer``, or it is an error of ``code``.

    ``content``: its values, or the bytes of its line. ``says``: parts of the message, in which
    ``{line}`` stands for the row's line.
    """

    name: str
    content: dict[str, Any] | bytes
    answer: str | None = None
    code: str | None = None
    says: tuple[str, ...] = ()

    @property
    def line(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        return json.dumps({"id": self.name, **self.content}).encode()


def ask(question: str, images: int = 1) -> str:
    return f"USER: {'<image>' * images}\n{question} ASSISTANT:"


DESCRIBE = ask("Describe the picture.")
GOOD_QUESTIONS = {
    "Describe the picture.": DESCRIPTION,
    "What number is written?": NUMBER,
    "What colour is the star?": "blue",
    "How many circles are there?": "1",
    "What is right of the circle?": "a blue star",
}


def error(name: str, content: dict[str, Any] | bytes, code: str, *says: str) -> CorpusRow:
    return CorpusRow(name, content, code=code, says=says)


def picture_error(image: str, code: str, *says: str) -> CorpusRow:
    return error(image, {"prompt": DESCRIBE, "image": f"images/{image}"}, code, image, *says)


def asked(prompt: str, image: Any = "images/plain.png", **values: Any) -> dict[str, Any]:
    return {"prompt": prompt, "image": image, **values}


VIDEO = {"role": "user", "content": [{"type": "video", "video": "images/clip.mp4"}]}
VIDEO_URL = {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "a.mp4"}}]}
BAD_LINES = (
    error("not-json", b'{"id": "x", "prompt": ', "manifest_line_invalid", ":{line}:", "not JSON"),
    error("array", b'["a", "b"]', "manifest_line_invalid", ":{line}:", "an array"),
    error("string", b'"hello"', "manifest_line_invalid", ":{line}:", "a string"),
    error("not-utf-8", b'{"prompt": "caf\xe9"}', "manifest_line_invalid", ":{line}:", "0xe9"),
    error("surrogate", b'{"prompt": "\\ud800"}', "manifest_line_invalid", ":{line}:", "surrogate"),
    error("deep", b'{"a": ' + b"[" * 999 + b"]" * 999 + b"}", "manifest_line_invalid", "64 levels"),
    error("nul", asked(DESCRIBE, "images/a\0b.png"), "image_invalid", "NUL"),
    error("id-is-a-list", {"id": [1], "prompt": "a"}, "manifest_line_invalid", "[1]", "list"),
)
BAD_PROMPTS = (
    error("prompt-missing", {"image": "images/plain.png"}, "prompt_invalid", 'no column "prompt"'),
    error("prompt-null", {"prompt": None}, "prompt_invalid", "null"),
    error("prompt-number", {"prompt": 7}, "prompt_invalid", "string", "7 (int)"),
    error("prompt-empty-chat", {"messages": []}, "prompt_invalid", "empty"),
    error("tokens-0", asked(ask("?", 0)), "image_token_mismatch", "expected 100 or 1", "found 0"),
    error("tokens-2", asked(ask("?", 2)), "image_token_mismatch", "expected 100 or 1", "found 2"),
    error("tokens-99", asked(ask("?", 99)), "image_token_mismatch", "expected 100", "found 99"),
    error("no-image", {"prompt": DESCRIBE}, "image_token_mismatch", "expected 0", "found 1"),
    error("long", asked(DESCRIBE + " red" * 600), "prompt_too_long", "100 of them", "of 512"),
    error(
        "too-many-images",
        asked(ask("?", 6), ["images/plain.png"] * 6),
        "prompt_too_long",
        "600 of them for images",
        "of 512",
    ),
    error("video-part", {"messages": [VIDEO]}, "prompt_invalid", "part 1", "videos are not taken"),
    error("video-url-part", {"messages": [VIDEO_URL]}, "prompt_invalid", "videos are not taken"),
    error(
        "resolution",
        asked(DESCRIBE, max_pixels=5000),
        "resolution_invalid",
        "max_pixels",
        "100 tokens",
    ),
    error(
        "no-resolution",
        asked(DESCRIBE, min_pixels=9, max_pixels=8),
        "resolution_invalid",
        "min_pixels is 9",
        "max_pixels, which is 8",
    ),
    error("hot", asked(DESCRIBE, temperature=-1), "sampling_invalid", "temperature", "-1"),
    error("open-regex", asked(DESCRIBE, regex="(a"), "sampling_invalid", "regex", "unclosed group"),
    error(
        "no-schema",
        asked(DESCRIBE, json_schema=7),
        "sampling_invalid",
        "json_schema must be a JSON",
    ),
    error(
        "odd-schema",
        asked(DESCRIBE, json_schema={"type": "strin"}),
        *("sampling_invalid", "json_schema cannot be used", "Invalid type: strin"),
    ),
    error(
        "two-shapes",
        asked(DESCRIBE, json_schema={}, regex="a"),
        *("sampling_invalid", "json_schema and regex cannot be combined"),
    ),
    error(
        "too-early",
        asked(DESCRIBE, min_tokens=9, max_tokens=8),
        "sampling_invalid",
        "min_tokens",
        "max_tokens, which is 8, got 9",
    ),
    error("few-tokens", asked(DESCRIBE, min_tokens="few"), "sampling_invalid", "'few' (str)"),
)
BAD_IMAGES = (
    picture_error("none.png", "image_missing"),
    error("a-folder", asked(DESCRIBE, "images"), "image_unreadable", "a folder"),
    picture_error("empty.jpg", "image_unreadable", "0 bytes"),
    picture_error("page.jpg", "image_unreadable", "HTML"),
    picture_error("truncated.jpg", "image_unreadable", "truncated"),
    picture_error("no-end.jpg", "image_unreadable", "truncated"),
    picture_error("20000x20000.png", "image_too_large", "20000 x 20000 = 400000000", "100000000"),
    picture_error("bomb.png", "image_too_large", "12000 x 12000 = 144000000", "100000000"),
    picture_error("drawing.eps", "image_format_unsupported", "EPS"),
    picture_error("layers.psd", "image_format_unsupported", "PSD"),
    picture_error("sky.fits", "image_format_unsupported", "FITS"),
    picture_error("clip.mp4", "image_format_unsupported", "a video (MP4), not an image"),
    picture_error("clip.webm", "image_format_unsupported", "a video (WebM or Matroska)"),
    picture_error("clip.avi", "image_format_unsupported", "a video (AVI)"),
    picture_error("features.pt", "image_unreadable", "not an image"),
    picture_error("features.pkl", "image_unreadable", "not an image"),
    error(
        "features.npy",
        asked(DESCRIBE, "features/good.npy"),
        "image_format_unsupported",
        "--image-input-type image_features",
    ),
    error("a-url", asked(DESCRIBE, "https://localhost/a.png"), "image_forbidden", "not fetched"),
    error(
        "an-s3-bucket", asked(DESCRIBE, "s3://photos/a.png"), "image_forbidden", "--allow-bucket"
    ),
    error("a-bucket", asked(DESCRIBE, "gopher://localhost/a.png"), "image_invalid", "URL"),
    error("a-number", asked(DESCRIBE, 7), "image_invalid", "7 (int)"),
)


def answered_rows() -> Iterator[CorpusRow]:
    """Rows that look odd and must be answered as the plain ones are."""
    yield CorpusRow("tokens-100", asked(ask("Describe the picture.", IMAGE_TOKENS)), DESCRIPTION)
    yield CorpusRow("extra", asked(DESCRIBE, note={"by": "a user"}, weight=0.5), DESCRIPTION)
    yield CorpusRow("null-extra", asked(DESCRIBE, note=None), DESCRIPTION)
    yield CorpusRow("", json.dumps(asked(DESCRIBE)).encode(), DESCRIPTION)  # no id: its index
    yield CorpusRow(
        "crlf", json.dumps({"id": "crlf", **asked(DESCRIBE)}).encode() + b"\r", DESCRIPTION
    )
    for name, _ in colour_pictures():
        yield CorpusRow(name, asked(DESCRIBE, f"images/{name}"), DESCRIPTION)
    for name, _ in grey_pictures():
        yield CorpusRow(name, asked(ask("What number is written?"), f"images/{name}"), NUMBER)
    for name in ("1x1.png", "1x10000.png", "10000x1.png"):
        yield CorpusRow(name, asked(DESCRIBE, f"images/{name}"), ANYTHING)


def corpus_rows() -> list[CorpusRow]:
    """The rows of ``rows.jsonl``: after every two of them one with a plain question."""
    odd = [*answered_rows(), *BAD_LINES, *BAD_PROMPTS, *BAD_IMAGES]
    questions = cycle(GOOD_QUESTIONS.items())
    rows: list[CorpusRow] = []
    for position, row in enumerate(odd):
        if position % 2 == 0:
            question, answer = next(questions)
            rows.append(CorpusRow(f"good-{position}", asked(ask(question)), answer))
        rows.append(row)
    return rows


def rows_of_this_machine(folder: Path) -> list[CorpusRow]:
    """Rows that need what no repository can hold; it is made in ``folder``."""
    images = folder / "images"
    os.mkfifo(images / "pipe.png")
    (images / "loop.png").symlink_to("loop.png")
    huge = b'{"id": "huge", "prompt": "' + b"x" * HUGE_LINE_BYTES + b'"}'
    return [
        picture_error("pipe.png", "image_unreadable", "a named pipe"),
        picture_error("loop.png", "image_unreadable", "cannot be opened"),
        error("device", asked(DESCRIBE, "/dev/zero"), "image_unreadable", "/dev/zero: a device"),
        error("huge", huge, "manifest_line_invalid", ":{line}:", f"limit of {LINE_LIMIT_BYTES}"),
    ]


def rows_out_of_root(folder: Path) -> list[CorpusRow]:
    """Rows of images outside ``folder / "images"``, for a run whose root that is."""
    (folder / "outside.png").write_bytes((folder / "images/plain.png").read_bytes())
    (folder / "images/link.png").symlink_to("../outside.png")
    (folder / "images/up").symlink_to("..")
    forbidden = ("../outside.png", "link.png", "up/outside.png", "../none.png", "/dev/zero")
    allowed = ("plain.png", "../images/plain.png", "up/images/plain.png")
    return [
        *(CorpusRow(path, asked(DESCRIBE, path), DESCRIPTION) for path in allowed),
        *(error(path, asked(DESCRIBE, path), "image_forbidden", path) for path in forbidden),
    ]


def mistakes(rows: list[CorpusRow], records: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the output for ``rows``."""
    assert [record["row_index"] for record in records] == list(range(len(rows)))
    return [
        f"{row.name}: {mistake}"
        for index, (row, record) in enumerate(zip(rows, records, strict=True))
        if (mistake := mistake_in(row, index, record))
    ]


def mistake_in(row: CorpusRow, index: int, record: dict[str, Any]) -> str | None:
    illegible = row.code == "manifest_line_invalid"
    if record["id"] != (f"#{index}" if illegible else row.name or str(index)):
        return f"the id is {record['id']}"
    if row.code is None:
        right = (
            record["text"] is not None if row.answer == ANYTHING else record["text"] == row.answer
        )
        return None if right and record["error_code"] is None else str(record)
    said = [part.replace("{line}", str(index + 1)) for part in row.says]
    right = (
        (record["status"], record["text"]) == ("error", None)
        and record["error_code"] == row.code
        and all(part in record["error_message"] for part in said)
    )
    return None if right else f"{record['error_code']}: {record['error_message']}"
