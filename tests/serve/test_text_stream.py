"""What a stream shows before its last token, and after it where nothing stopped it."""

from __future__ import annotations

from pathlib import Path

import pytest

from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.serve.engine_thread import TokenChunk
from vlmbatch.serve.text_stream import TextStream

SAMPLE_MODEL = Path(__file__).parents[2] / "samples/tiny-llava"
TOKENIZER = Tokenizer.load(SAMPLE_MODEL)


@pytest.mark.parametrize(
    ("stop", "shown"),
    [((), "red blue"), (("xyz",), "red blue"), (("blue sky",), "red "), (("e!", "ue?"), "red bl")],
)
def test_only_what_may_begin_a_stop_string_is_held_back(stop: tuple[str, ...], shown: str) -> None:
    ids = TOKENIZER.encode("red blue", add_special_tokens=False)
    stream = TextStream(TOKENIZER, stop)
    assert stream.push(TokenChunk(ids, None)) == shown
    assert stream.push(TokenChunk([], "length")) == "red blue"[len(shown) :]
