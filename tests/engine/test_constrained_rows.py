"""Answers that follow a grammar: the same tokens however the work is cut up, and no others."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from fake_model import EOS, IMAGE_TOKEN_ID, VOCAB, FakeModel, reference, small_engine
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from small_engines import SMALL_ENGINES
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from vlmbatch.config import SamplingParams
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.grammars import Grammars
from vlmbatch.engine.outputs import SequenceFailure, TokenOutput
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.models.vision_language_model import Embedded
from vlmbatch.types import Request

REGEXES = ("[a-f]{2,5}", "x+", "(ab|cd)*e?", "[^a]{3}b*")
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "boolean"}, "b": {"type": "string", "maxLength": 3}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
# Its definition is nothing but itself: compiled without complaint, and followed by no text.
ENDLESS = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}


@cache
def backend() -> Any:
    """A token a character, but for two special ones."""
    vocabulary = {chr(33 + token): token for token in range(94)}
    vocabulary |= {"Ġ": 94, "Ċ": 95}
    del vocabulary[chr(33 + EOS)]
    made = Backend(models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    written = json.loads(made.to_str())
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    for token_id, content in ((EOS, "<eos>"), (IMAGE_TOKEN_ID, "<image>")):
        written["model"]["vocab"][content] = token_id
        written["added_tokens"].append(
            {"id": token_id, "content": content, "special": True, **special}
        )
    return Backend.from_str(json.dumps(written))


def make_grammars() -> Grammars:
    return Grammars(Tokenizer(backend(), {}), {EOS}, VOCAB)


def text_of(token_ids: list[int]) -> str:
    text: str = backend().decode(token_ids, skip_special_tokens=True)
    return text


@cache
def plain_tokenizer() -> LLTokenizer:
    return LLTokenizer(backend().to_str(), n_vocab=VOCAB, eos_token=EOS)


def expected(row: Request) -> list[int]:
    """A plain loop that takes the likeliest of the tokens that a matcher allows."""
    params = row.sampling
    if params.grammar is None:
        return reference(row, params.max_tokens)
    matcher = LLMatcher(plain_tokenizer(), params.grammar)

    def choose(likeliest: int, output: list[int]) -> int:
        if output:
            assert matcher.consume_token(output[-1])
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")
        logits = [-float(abs(token - likeliest)) for token in range(VOCAB)]
        for token in np.flatnonzero(bits[:VOCAB] == 0).tolist():
            logits[token] = -float("inf")
        for token in set(output):
            logits[token] -= params.presence_penalty
        return logits.index(max(logits))

    return reference(row, params.max_tokens, choose)


@st.composite
def workloads(draw: st.DrawFn) -> list[Request]:
    rows = []
    for index in range(draw(st.integers(1, 8))):
        shape: dict[str, Any] = draw(
            st.sampled_from([{}, {"json_schema": SCHEMA}, *({"regex": each} for each in REGEXES)])
        )
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 25)),
            presence_penalty=draw(st.sampled_from([0.0, 1.5])) if shape else 0.0,
            logprobs=draw(st.sampled_from([None, 1])),
            **shape,
        )
        text = draw(st.lists(st.integers(0, 96 - 1), min_size=1, max_size=20))
        rows.append(Request(index, text, sampling))
    return rows


@settings(max_examples=40, deadline=None)
@given(workloads(), SMALL_ENGINES)
def test_tokens_are_those_of_a_plain_loop_over_a_matcher(
    rows: list[Request], how: dict[str, Any]
) -> None:
    """Whatever rows are beside each other, preempted or not."""
    engine = small_engine(**how, grammars=make_grammars())
    sequences = [engine.add(row) for row in rows]
    while engine.num_unfinished:
        engine.step()
        engine.scheduler.check_integrity()
    for row, sequence in zip(rows, sequences, strict=True):
        tokens, params = sequence.output_token_ids, row.sampling
        assert tokens == expected(row)
        if sequence.finish_reason == "length":
            assert len(tokens) == params.max_tokens
        elif params.regex is not None:
            assert re.fullmatch(params.regex, text_of(tokens))
        elif params.json_schema is not None:
            answer = json.loads(text_of(tokens))
            assert list(answer) == ["a", "b"] and len(answer["b"]) <= 3
            assert isinstance(answer["a"], bool)


def finished(engine: Engine) -> dict[int, TokenOutput | SequenceFailure]:
    found = {}
    while engine.num_unfinished:
        for output in engine.step():
            if isinstance(output, SequenceFailure) or output.finish_reason:
                found[output.sequence.request.index] = output
    return found


@pytest.mark.parametrize("ahead", [False, True])
def test_a_grammar_without_an_answer_fails_its_row_alone(ahead: bool) -> None:
    engine = small_engine(ahead=ahead, grammars=make_grammars())
    plain = Request(0, [1, 2], SamplingParams(max_tokens=9, ignore_eos=True))
    follows = Request(1, [3], SamplingParams(regex="a{20}"))
    for row in (plain, Request(2, [4], SamplingParams(json_schema=ENDLESS)), follows):
        engine.add(row)
    found = finished(engine)
    failure = found[2]
    assert isinstance(failure, SequenceFailure)
    assert failure.error.code == ErrorCode.SAMPLING_INVALID
    assert "after 0 tokens of the answer: no token of the vocabulary" in failure.error.message
    assert found[0].sequence.output_token_ids == expected(plain)
    assert found[1].sequence.output_token_ids == expected(follows)


@pytest.mark.parametrize("more", [{}, {"temperature": 0.9}, {"logprobs": 0}])
def test_what_a_grammar_asks_for_may_repeat(more: dict[str, Any]) -> None:
    """Though no other token may, of which some are left to choose among."""
    engine = small_engine(grammars=make_grammars())
    params = SamplingParams(regex="aaa[ab]{2}ccx", no_repeat_ngram_size=1, **more)
    engine.add(Request(0, [1, 2], params))
    engine.add(Request(1, [1, 2], SamplingParams(max_tokens=9, ignore_eos=True)))
    tokens = finished(engine)[0].sequence.output_token_ids
    assert re.fullmatch("aaa(ab|ba|bb)ccx", text_of(tokens))
    assert "b" in text_of(tokens)


def test_the_name_of_a_special_token_is_a_text_as_any_other() -> None:
    engine = small_engine(grammars=make_grammars())
    engine.add(Request(0, [1, 2], SamplingParams(regex="<eos>x<image>")))
    tokens = finished(engine)[0].sequence.output_token_ids
    assert text_of(tokens) == "<eos>x<image>" and tokens.count(EOS) == 1


def test_a_step_that_fails_is_tried_again_with_its_grammars_as_they_were() -> None:
    engine = small_engine(FakeModel(fail_on=77), ahead=True, grammars=make_grammars())
    rows = [
        Request(index, [10 + index] * 3, SamplingParams(max_tokens=12, regex="[a-f]{10}"))
        for index in range(4)
    ]
    for row in rows:
        engine.add(row)
    early = [each for _ in range(4) for each in engine.step()]
    engine.add(Request(9, [77], SamplingParams(max_tokens=3)))
    found = finished(engine)
    assert early and isinstance(found.pop(9), SequenceFailure)
    assert [found[row.index].sequence.output_token_ids for row in rows] == [*map(expected, rows)]


class Overflowing(FakeModel):
    """No number comes of token 77, nor of what follows it."""

    def embed(self, input_ids: Tensor, *images: Any) -> Embedded:
        hidden = super().embed(input_ids, *images).hidden
        return Embedded(hidden.masked_fill((input_ids == 77)[:, None], torch.nan))


@settings(max_examples=30, deadline=None)
@given(workloads(), st.lists(st.sampled_from([None, "[a-f]{2,5}"]), max_size=4), SMALL_ENGINES)
def test_rows_of_no_numbers_are_errors_and_the_others_answered(
    rows: list[Request], bad: list[str | None], how: dict[str, Any]
) -> None:
    rows = [row for row in rows if 77 not in row.token_ids and 77 not in expected(row)]
    engine = small_engine(Overflowing(), **how, grammars=make_grammars())
    for index, regex in enumerate(bad):
        engine.add(Request(100 + index, [5, 77, index], SamplingParams(max_tokens=9, regex=regex)))
    sequences = [engine.add(row) for row in rows]
    found: dict[int, TokenOutput | SequenceFailure] = {}
    while engine.num_unfinished:
        found |= {
            output.sequence.request.index: output
            for output in engine.step()
            if isinstance(output, SequenceFailure) or output.finish_reason
        }
        engine.scheduler.check_integrity()
    for index in range(len(bad)):
        failure = found.pop(100 + index)
        assert isinstance(failure, SequenceFailure)
        assert "no finite numbers for this row" in failure.error.message
    for row, sequence in zip(rows, sequences, strict=True):
        assert sequence.output_token_ids == expected(row)


class DamagedHead(FakeModel):
    """No number comes of one row of the head's weights."""

    def compute_logits(self, hidden: Tensor) -> Tensor:
        logits = super().compute_logits(hidden)
        logits[:, 7] = torch.nan
        return logits


def test_rows_of_a_damaged_head_are_errors() -> None:
    engine = small_engine(DamagedHead(), ahead=True, grammars=make_grammars())
    for index, temperature in enumerate((0.0, 1.0)):
        sampling = SamplingParams(max_tokens=3, temperature=temperature, logprobs=1)
        engine.add(Request(index, [5, 6], sampling))
    found = finished(engine)
    assert len(found) == 2
    assert all(isinstance(each, SequenceFailure) for each in found.values())


def test_a_model_without_an_end_cannot_follow_a_grammar() -> None:
    with pytest.raises(RowError, match="need an end-of-sequence token"):
        Grammars(Tokenizer(backend(), {}), (), VOCAB).constraint("{}")


def test_compiled_grammars_are_shared_and_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmbatch.engine.grammars._MAX_COMPILED", 2)
    grammars = make_grammars()
    made: list[str] = []
    monkeypatch.setattr(grammars, "_compile", made.append)
    first, second, third = (SamplingParams(regex=each).grammar for each in "abc")
    for grammar in (first, second, first, third, first, second):
        assert grammar is not None
        grammars.constraint(grammar)._compiled.result()
    assert made == [first, second, third, second]


def test_a_tokenizer_with_more_tokens_than_the_model_has() -> None:
    """Those that it lacks are chosen by nobody."""
    tokenizer = Tokenizer(backend(), {})
    engine = small_engine(grammars=Grammars(tokenizer, {EOS}, 60))
    follows = Request(0, [3], SamplingParams(regex="a{3}|[A-E]{4}", max_tokens=9))
    engine.add(follows)
    assert finished(engine)[0].sequence.output_token_ids == expected(follows)


def test_a_tokenizer_that_llguidance_does_not_know_fails_the_row() -> None:
    tokenizer = Tokenizer(Backend(models.WordLevel({"a": 0, "b": 1}, unk_token="a")), {})
    engine = small_engine(grammars=Grammars(tokenizer, {EOS}, VOCAB))
    plain = Request(0, [1, 2], SamplingParams(max_tokens=4, ignore_eos=True))
    for row in (plain, Request(1, [4], SamplingParams(regex="a"))):
        engine.add(row)
    found = finished(engine)
    failure = found[1]
    assert isinstance(failure, SequenceFailure)
    assert failure.error.message.startswith("json_schema or regex cannot be followed, after 0 tok")
    assert found[0].sequence.output_token_ids == expected(plain)
