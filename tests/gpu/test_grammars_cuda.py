"""Answers that follow grammars on the GPU: as on the CPU, and the host never waits for masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sample_model import SampleModel, answer, make_rows
from test_answers_cuda import EXACT, SETTINGS

from vlmbatch.config import EngineConfig, SamplingParams
from vlmbatch.engine.grammars import Grammars
from vlmbatch.engine.token_masks import TokenMasks
from vlmbatch.types import Request

SHAPES = (
    SamplingParams(max_tokens=40, regex=r"[a-z]{2,9} [0-9]{1,4}"),
    SamplingParams(max_tokens=60, json_schema={"enum": ["red", "green", "a long text", 12]}),
    SamplingParams(max_tokens=40),
)
VOCAB = 32064


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleModel:
    return SampleModel.open(make_rows(200, 7011, tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="module")
def requests(sample: SampleModel) -> list[Request]:
    return [
        replace(request, sampling=SHAPES[number % len(SHAPES)])
        for number, request in enumerate(sample.requests)
    ]


@pytest.fixture(scope="module")
def expected(sample: SampleModel, requests: list[Request]) -> list[list[int]]:
    tokens, errors = answer(sample.engine(EngineConfig(device="cpu")), requests)
    assert not errors
    return tokens


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_float32_answers_are_the_cpus(
    settings: dict[str, int],
    sample: SampleModel,
    requests: list[Request],
    expected: list[list[int]],
) -> None:
    engine = sample.engine(replace(EXACT, **settings))
    assert answer(engine, requests) == (expected, {})


def test_the_host_does_not_wait_for_masks(sample: SampleModel) -> None:
    grammars = Grammars(sample.inputs.processor.tokenizer, {2}, VOCAB)
    grammar = SHAPES[0].grammar
    assert grammar is not None
    logits = torch.zeros(8, VOCAB, device="cuda", dtype=torch.bfloat16)
    for mode in ("default", "error"):  # kernels are compiled and loaded first
        answers = [(row, grammars.constraint(grammar), []) for row in (1, 6)]
        torch.cuda.set_sync_debug_mode(mode)
        try:
            masks = TokenMasks.of(answers, logits.device)
            assert masks is not None
            masks.apply_(logits)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    allowed = logits.isfinite().sum(1).tolist()
    assert allowed[0] == VOCAB and 0 < allowed[1] == allowed[6] < VOCAB


def test_sampled_answers_match_their_pattern(tmp_path: Path) -> None:
    """In bfloat16 with all that makes steps fast, at a high temperature."""
    sample = SampleModel.open(make_rows(64, 7012, tmp_path))
    shape = replace(SHAPES[0], temperature=2.0)
    requests = [
        replace(request, sampling=replace(shape, seed=number))
        for number, request in enumerate(sample.requests)
    ]
    engine = sample.engine(EngineConfig(device="cuda", dtype="bfloat16"))
    tokens, errors = answer(engine, requests)
    tokenizer = sample.inputs.processor.tokenizer
    assert not errors
    for each in tokens:
        word, number = tokenizer.decode(each).split(" ")
        assert word.isalpha() and 2 <= len(word) <= 9 and number.isdigit() and len(number) <= 4
