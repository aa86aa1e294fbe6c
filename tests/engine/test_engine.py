"""The engine on a fake model whose tokens betray any mix-up of pages, positions or images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from fake_model import (
    IMAGE_TOKEN_ID,
    IMAGE_TOKENS,
    VOCAB,
    FakeModel,
    fake_image,
    reference,
    small_engine,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vlmbatch.config import SamplingParams
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.outputs import SequenceFailure
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.types import ImageSpan, Request


def request(index: int, text: list[int], image: int | None = None, **sampling: Any) -> Request:
    if image is None:
        return Request(index, text, SamplingParams(**sampling))
    tokens = [text[0], *[IMAGE_TOKEN_ID] * IMAGE_TOKENS, *text[1:]]
    spans = (ImageSpan(1, IMAGE_TOKENS, 0),)
    return Request(index, tokens, SamplingParams(**sampling), (fake_image(image),), spans)


# Tokens and why they ended; of a failed row its code and nothing.
Ending = tuple[list[int] | ErrorCode, str | None]


def drain(engine: Engine) -> dict[int, Ending]:
    finished: dict[int, Ending] = {}
    for _ in range(5000):
        for output in engine.step():
            if isinstance(output, SequenceFailure):
                finished[output.sequence.request.index] = (output.error.code, None)
            elif output.finish_reason:
                sequence = output.sequence
                finished[sequence.request.index] = (
                    sequence.output_token_ids,
                    output.finish_reason,
                )
        engine.scheduler.check_integrity()
        if not engine.num_unfinished:
            return finished
    raise AssertionError("the engine does not finish")


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    rows = []
    for index in range(draw(st.integers(1, 10))):
        text = draw(st.lists(st.integers(0, 3), min_size=1, max_size=20))
        image = draw(st.none() | st.integers(0, 2))
        rows.append(
            request(
                index,
                text,
                image,
                max_tokens=draw(st.integers(1, 15)),
                ignore_eos=draw(st.booleans()),
            )
        )
    return rows


@settings(max_examples=40, deadline=None)
@given(
    workloads(),
    st.integers(1, 40),
    st.integers(1, 6),
    st.integers(48, 120),
    st.integers(1, 4),
    st.booleans(),
    st.booleans(),
)
def test_tokens_do_not_depend_on_batching(
    rows: list[Request],
    budget: int,
    seqs: int,
    pool: int,
    blocks: int,
    caching: bool,
    ahead: bool,
) -> None:
    engine = small_engine(
        ahead=ahead,
        granules_per_block=blocks,
        max_batched_tokens=budget,
        max_num_seqs=seqs,
        kv_cache_tokens=pool,
        enable_prefix_caching=caching,
    )
    for row in rows:
        engine.add(row)
    finished = drain(engine)
    for row in rows:
        expected = reference(row, row.sampling.max_tokens)
        assert finished[row.index][0] == expected
        ended = expected[-1] == 5 and not row.sampling.ignore_eos
        assert finished[row.index][1] == ("stop" if ended else "length")


def test_one_image_is_encoded_once_for_all_its_rows() -> None:
    model = FakeModel()
    engine = small_engine(model)
    for index in range(12):
        engine.add(request(index, [index], image=index % 2, max_tokens=2))
    drain(engine)
    assert model.num_encoded == 2


@pytest.mark.parametrize("budget", [3, 64])
def test_an_image_interrupted_by_text_goes_on_where_it_was(budget: int) -> None:
    text = [1, IMAGE_TOKEN_ID, IMAGE_TOKEN_ID, 2, *[IMAGE_TOKEN_ID] * 4, 3]
    spans = (ImageSpan(1, 2, 0), ImageSpan(4, 4, 0, offset=2))
    row = Request(0, text, SamplingParams(max_tokens=6, ignore_eos=True), (fake_image(7),), spans)
    engine = small_engine(max_batched_tokens=budget)
    engine.add(row)
    assert drain(engine)[0][0] == reference(row, 6)


def test_a_prompt_that_fills_the_context_is_refused_with_both_numbers() -> None:
    engine = small_engine(max_model_len=32)
    with pytest.raises(RowError, match=r"32 tokens.*at most 31") as caught:
        engine.add(request(0, [1] * 32))
    assert caught.value.code is ErrorCode.PROMPT_TOO_LONG
    engine.add(request(1, [1] * 31, max_tokens=99, ignore_eos=True))
    assert drain(engine)[1] == (reference(request(1, [1] * 31, ignore_eos=True), 1), "length")


def test_a_row_larger_than_the_pool_is_refused_with_both_numbers() -> None:
    engine = small_engine(kv_cache_tokens=40)
    with pytest.raises(RowError, match=r"50 tokens.*holds 40"):
        engine.add(request(0, [1] * 30, max_tokens=20))


def test_finish_ends_a_sequence_early() -> None:
    engine = small_engine()
    sequence = engine.add(request(0, [1, 2], max_tokens=50, ignore_eos=True))
    engine.step()
    engine.step()
    engine.finish(sequence, "stop")
    assert engine.num_unfinished == 0
    assert sequence.output_token_ids == reference(request(0, [1, 2]), 2)


def test_seeded_rows_give_the_same_tokens_alone_and_in_company() -> None:
    rows = [
        request(i, [1, 2, i % 3], temperature=3.0, top_k=40, top_p=0.9, seed=i, max_tokens=12)
        for i in range(9)
    ]
    together = small_engine(max_num_seqs=4, max_batched_tokens=7)
    for row in rows:
        together.add(row)
    in_company = drain(together)
    for row in rows:
        alone = small_engine()
        alone.add(row)
        assert drain(alone)[row.index] == in_company[row.index]
    assert len({tuple(tokens) for tokens, _ in in_company.values()}) > 5


@settings(max_examples=40, deadline=None)
@given(
    workloads(),
    st.sets(st.integers(0, 9), max_size=4),
    st.integers(1, 40),
    st.integers(1, 8),
    st.booleans(),
)
def test_rows_that_break_steps_are_found_and_the_others_answered(
    rows: list[Request], poisoned: set[int], budget: int, seqs: int, ahead: bool
) -> None:
    poison = 77
    rows = [
        replace(row, token_ids=[*row.token_ids, poison]) if row.index in poisoned else row
        for row in rows
    ]
    expected = {row.index: reference(row, row.sampling.max_tokens) for row in rows}
    # A row may come upon the poison by itself too, among its own answer's tokens.
    broken = {
        row.index
        for row in rows
        if poison in row.token_ids or poison in expected[row.index][: row.sampling.max_tokens - 1]
    }
    engine = small_engine(
        FakeModel(fail_on=poison), ahead=ahead, max_batched_tokens=budget, max_num_seqs=seqs
    )
    for row in rows:
        engine.add(row)
    finished = drain(engine)
    assert {i for i, (_, reason) in finished.items() if reason is None} == broken
    for index in broken:
        assert finished[index] == (ErrorCode.ENGINE_ERROR, None)
    for index in expected.keys() - broken:
        assert finished[index][0] == expected[index]


class UniformModel(FakeModel):
    """Every token is equally likely, always: the answer is the random numbers themselves."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        return torch.zeros(len(hidden), VOCAB)


def test_every_token_of_a_row_draws_its_own_random_number() -> None:
    engine = small_engine(UniformModel())
    engine.add(request(0, [1, 2], temperature=1.0, seed=3, max_tokens=30, ignore_eos=True))
    tokens = drain(engine)[0][0]
    assert len(set(tokens)) > 15


def test_an_engine_that_fails_on_everything_is_not_blamed_on_the_rows() -> None:
    class BrokenModel(FakeModel):
        def compute_logits(self, hidden: Tensor) -> Tensor:
            raise RuntimeError("broken")

    engine = small_engine(BrokenModel(), max_num_seqs=4)
    for index in range(200):
        engine.add(request(index, [1, 2]))
    with pytest.raises(RuntimeError, match="broken"):
        drain(engine)


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_pool_of_less_than_one_page_is_refused(tokens: int) -> None:
    with pytest.raises(ConfigError, match=f"at least 4, got {tokens}"):
        small_engine(kv_cache_tokens=tokens)


def test_the_pool_made_by_itself_holds_a_sequence_of_full_length() -> None:
    engine = small_engine(kv_cache_tokens=None, max_num_seqs=1, max_model_len=30)
    row = request(0, [1] * 10, max_tokens=99, ignore_eos=True)
    engine.add(row)
    assert drain(engine)[0] == (reference(row, 20), "length")
