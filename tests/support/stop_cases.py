"""Answers and stop strings at random, and what the stop strings do to an answer."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from vlmbatch.models.tokenizer import Tokenizer

_TEXTS = st.text("ab \nThe.é字🙂\ufffd", min_size=1, max_size=6)


@dataclass(frozen=True)
class StopCase:
    """The tokens that a model would generate, and what should stop it."""

    ids: list[int]
    stop: tuple[str, ...]


@st.composite
def stop_cases(draw: st.DrawFn, tokenizer: Tokenizer, vocabulary_size: int) -> StopCase:
    """Tokens at random, or of a text character by character; one to three stop strings."""
    kind = draw(st.integers(0, 2))
    if kind == 0:
        # Past the vocabulary's end too: a model's may be padded.
        ids = draw(st.lists(st.integers(0, vocabulary_size + 9), min_size=1, max_size=24))
    else:
        parts = draw(st.lists(_TEXTS, min_size=1, max_size=6))
        texts = parts if kind == 1 else list("".join(parts))
        ids = [id for text in texts for id in tokenizer.encode(text, add_special_tokens=False)]
    stops = st.lists(_stop_strings(tokenizer, ids), min_size=1, max_size=3)
    return StopCase(ids or [0], tuple(draw(stops)))


@st.composite
def _stop_strings(draw: st.DrawFn, tokenizer: Tokenizer, ids: list[int]) -> str:
    """Cut out of the text (of some of the tokens, whose last character may be unfinished), a near
    miss of that, something longer than the text, or a text of its own."""
    kind = draw(st.integers(0, 5))
    text = tokenizer.decode(ids[: draw(st.integers(1, len(ids)))] if kind == 1 else ids)
    if kind == 5 or not text:
        return draw(_TEXTS)
    start = draw(st.integers(0, len(text) - 1))
    cut = text[start : start + draw(st.integers(1, 6) | st.integers(1, 60))]
    if kind == 2:
        return cut + draw(st.sampled_from("ab .🙂"))
    if kind == 3:
        place = draw(st.integers(0, len(cut) - 1))
        return cut[:place] + draw(st.sampled_from("ab .é")) + cut[place + 1 :]
    return text + draw(_TEXTS) if kind == 4 else cut


def cut_at_stop(text: str, stop: tuple[str, ...]) -> str:
    """``text`` before the earliest stop string."""
    return min((text.partition(each)[0] for each in stop), key=len, default=text)


def stopped(tokenizer: Tokenizer, case: StopCase) -> tuple[list[int], str, str]:
    """The tokens, text and finish reason of an answer: the first tokens whose text as a whole holds
    a stop string, or all of them."""
    for count in range(1, len(case.ids) + 1):
        text = tokenizer.decode(case.ids[:count])
        if any(stop in text for stop in case.stop):
            return case.ids[:count], cut_at_stop(text, case.stop), "stop"
    return case.ids, tokenizer.decode(case.ids), "length"
