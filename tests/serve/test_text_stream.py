"""Streamed text adds up to the text of the whole answer, for any tokens and stop strings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.serve.text_stream import TextStream
from vlmbatch.stop_strings import StopChecker, cut_at_stop

SAMPLE_MODEL = Path(__file__).parents[2] / "samples/tiny-llava"
TOKENIZER = Tokenizer.load(SAMPLE_MODEL)
WORDS = TOKENIZER.encode("a a b ab aba baa red blue\n\n é€", add_special_tokens=False)
LETTERS = st.text("ab \n", min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.sampled_from(WORDS), min_size=1, max_size=30),
    st.lists(LETTERS, max_size=3).map(tuple),
    st.lists(st.integers(1, 4), min_size=30, max_size=30),
)
def test_pieces_add_up(ids: list[int], stop: tuple[str, ...], sizes: list[int]) -> None:
    if stop:  # the engine's thread ends an answer at its first stop string
        checker = StopChecker(TOKENIZER, stop)
        ends = (number for number, token in enumerate(ids, 1) if checker.push(token))
        ids = ids[: next(ends, len(ids))]
    stream = TextStream(TOKENIZER, stop)
    text, first = "", 0
    whole = cut_at_stop(TOKENIZER.decode(ids), stop)
    for size in sizes:
        last = first + size >= len(ids)
        text += stream.push(ids[first : first + size], last)
        assert whole.startswith(text)
        first += size
        if last:
            break
    assert text == whole


@pytest.mark.parametrize(
    ("stop", "shown"),
    [((), "red blue"), (("xyz",), "red blue"), (("blue sky",), "red "), (("e!", "ue?"), "red bl")],
)
def test_only_what_may_begin_a_stop_string_is_held_back(stop: tuple[str, ...], shown: str) -> None:
    ids = TOKENIZER.encode("red blue", add_special_tokens=False)
    stream = TextStream(TOKENIZER, stop)
    assert stream.push(ids, last=False) == shown
    assert stream.push([], last=True) == "red blue"[len(shown) :]
