"""Penalties in the engine: they look back on the right tokens, however the work is cut up."""

from __future__ import annotations

from typing import Any

import pytest
from fake_model import IMAGE_TOKEN_ID, IMAGE_TOKENS, VOCAB, fake_image, reference, small_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from small_engines import SMALL_ENGINES

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ConfigError
from vlmbatch.types import ImageSpan, Request


def request(index: int, text: list[int], image: int | None, sampling: SamplingParams) -> Request:
    if image is None:
        return Request(index, text, sampling)
    tokens = [text[0], *[IMAGE_TOKEN_ID] * IMAGE_TOKENS, *text[1:]]
    spans = (ImageSpan(1, IMAGE_TOKENS, 0),)
    return Request(index, tokens, sampling, (fake_image(image),), spans)


def expected(row: Request) -> list[int]:
    """The rule in plain Python; the factors are such that nothing is rounded."""
    params = row.sampling
    prompt = [None if token == IMAGE_TOKEN_ID else token for token in row.token_ids]

    def choose(likeliest: int, output: list[int]) -> int:
        history = [*prompt, *output]
        logits = [-float(abs(token - likeliest)) for token in range(VOCAB)]
        for token in {token for token in history if token is not None}:
            logits[token] *= params.repetition_penalty
        for token in set(output):
            logits[token] -= params.presence_penalty
            logits[token] -= params.frequency_penalty * output.count(token)
        size = params.no_repeat_ngram_size
        for start in range(len(history) - size + 1 if size else 0):
            window = history[start : start + size]
            if None not in window and window[:-1] == history[len(history) - size + 1 :]:
                logits[window[-1]] = -float("inf")
        return logits.index(max(logits))

    return reference(row, params.max_tokens, choose)


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    rows = []
    for index in range(draw(st.integers(1, 8))):
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 15)),
            ignore_eos=True,
            repetition_penalty=draw(st.sampled_from([1.0, 1.0, 2.0])),
            presence_penalty=draw(st.sampled_from([0.0, 1.5])),
            frequency_penalty=draw(st.sampled_from([0.0, 2.0, -0.5])),
            no_repeat_ngram_size=draw(st.sampled_from([0, 0, 1, 2])),
        )
        text = draw(st.lists(st.integers(0, 96 - 1), min_size=1, max_size=20))
        rows.append(request(index, text, draw(st.none() | st.integers(0, 2)), sampling))
    return rows


@settings(max_examples=40, deadline=None)
@given(workloads(), SMALL_ENGINES)
def test_tokens_are_those_of_the_plain_rule(rows: list[Request], how: dict[str, Any]) -> None:
    engine = small_engine(**how)
    sequences = [engine.add(row) for row in rows]
    while engine.num_unfinished:
        engine.step()
    assert [sequence.output_token_ids for sequence in sequences] == [expected(row) for row in rows]


def test_rows_without_penalties_keep_no_history() -> None:
    engine = small_engine()
    plain = engine.add(request(0, [1, 2], None, SamplingParams(max_tokens=3, min_p=0.1)))
    asks = engine.add(request(1, [1, 2], None, SamplingParams(max_tokens=3, presence_penalty=1)))
    assert plain.history is None and asks.history is not None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("min_p", 1.5, "from 0 to 1, got 1.5"),
        ("min_p", float("nan"), "from 0 to 1, got nan"),
        ("repetition_penalty", 0, "from 0.001 to 1000, got 0"),
        ("repetition_penalty", float("inf"), "from 0.001 to 1000, got inf"),
        ("presence_penalty", 2.5, "from -2 to 2, got 2.5"),
        ("frequency_penalty", float("nan"), "from -2 to 2, got nan"),
        ("no_repeat_ngram_size", -1, "0 .* to 100, got -1"),
        ("no_repeat_ngram_size", 101, "0 .* to 100, got 101"),
    ],
)
def test_values_out_of_range_are_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be .*{message}"):
        SamplingParams(**{name: value})
