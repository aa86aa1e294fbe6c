"""The engine's greedy tokens against transformers' generate, however the work is cut up."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import EOS_TOKEN_ID, IMAGE_TOKEN_ID, TextKind, Tower
from parity_pair import IMAGES, Pair, make_pair

from vlmbatch.config import EngineConfig, SamplingParams
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.loading import build_engine
from vlmbatch.engine.outputs import TokenOutput
from vlmbatch.models.family import load_model_config
from vlmbatch.types import ImageGrid, ImageSpan, PixelImage, Request, TokenLogprob

MAX_TOKENS = 10
Combination = tuple[TextKind, Tower]
COMBINATIONS: list[Combination] = [
    ("llama", "clip"),
    ("llama", "siglip"),
    ("mistral", "clip"),
    ("mistral", "siglip"),
    ("qwen2", "clip"),
    ("qwen2", "siglip"),
]
# The engine sees of a tower only its features: each kind and each tower meets every setting.
CUT_UP: list[Combination] = [("llama", "clip"), ("mistral", "siglip"), ("qwen2", "clip")]
AT_ONCE = "at once"
SETTINGS = {
    AT_ONCE: EngineConfig(),
    "without a prefix cache": EngineConfig(enable_prefix_caching=False),
    "one at a time": EngineConfig(max_num_seqs=1),
    "chunks of 7": EngineConfig(max_batched_tokens=7),
    "chunks of 16": EngineConfig(max_batched_tokens=16),
    "chunks of 17": EngineConfig(max_batched_tokens=17, enable_prefix_caching=False),
    "a pool that runs dry": EngineConfig(kv_cache_tokens=96),
    "a dry pool without a prefix cache": EngineConfig(
        kv_cache_tokens=96, max_batched_tokens=33, enable_prefix_caching=False
    ),
}


@dataclass
class Case:
    folder: Path
    requests: list[Request]
    expected: list[list[int]]

    def engine(self, config: EngineConfig) -> Engine:
        processor = SimpleNamespace(images=IMAGES, tokenizer=None)
        return build_engine(self.folder, load_model_config(self.folder), config, processor)

    def answers(self, engine: Engine) -> list[list[int]]:
        sequences = [engine.add(request) for request in self.requests]
        while engine.num_unfinished:
            engine.step()
            engine.scheduler.check_integrity()
        return [sequence.output_token_ids for sequence in sequences]


def _expected(pair: Pair, **options: Any) -> list[list[int]]:
    outputs = []
    for ids, pixels in zip(pair.prompts, pair.pixel_values(), strict=True):
        tokens = pair.theirs.generate(
            input_ids=ids[None],
            attention_mask=torch.ones_like(ids)[None],
            pixel_values=pixels[None],
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
            eos_token_id=EOS_TOKEN_ID,
            pad_token_id=0,
            **options,
        )
        outputs.append(tokens[0, len(ids) :].tolist())
    return outputs


def _requests(pair: Pair) -> list[Request]:
    """Every prompt twice, so that the second can find the first one's blocks."""
    requests = []
    for index, (ids, pixels) in enumerate(zip(pair.prompts, pair.pixels, strict=True)):
        places = (ids == IMAGE_TOKEN_ID).nonzero().squeeze(1).tolist()
        spans = (ImageSpan(places[0], len(places), 0),)
        grid = ImageGrid(1, len(places), len(places), pixels.nbytes)
        image = PixelImage(pixels.numpy(), b"image %d" % index, grid)
        sampling = SamplingParams(max_tokens=MAX_TOKENS)
        requests.append(Request(index, ids.tolist(), sampling, (image,), spans))
    return [*requests, *requests]


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Combination], Case]:
    """Each is made once, in whatever order tests ask for it."""

    def make(combination: Combination) -> Case:
        folder = tmp_path_factory.mktemp("checkpoint")
        pair = make_pair(*combination, "llava-hf", folder)
        expected = _expected(pair)
        return Case(folder, _requests(pair), [*expected, *expected])

    return cache(make)


@pytest.mark.parametrize(
    ("combination", "name"),
    [
        pytest.param(combination, name, id="-".join([*combination, name]))
        for combination in COMBINATIONS
        for name in (SETTINGS if combination in CUT_UP else [AT_ONCE])
    ],
)
def test_greedy_tokens(
    cases: Callable[[Combination], Case], combination: Combination, name: str
) -> None:
    case, config = cases(combination), SETTINGS[name]
    engine = case.engine(config)
    assert case.answers(engine) == case.expected
    if config.kv_cache_tokens is not None:
        assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize(
    ("combination", "first_size"),
    [(combination, index + 1) for index, combination in enumerate(CUT_UP)],
    ids=["-".join(combination) for combination in CUT_UP],
)
def test_every_chunk_size(
    cases: Callable[[Combination], Case], combination: Combination, first_size: int
) -> None:
    """Each of the three takes a third of the sizes, and that of one token."""
    case = cases(combination)
    short = SamplingParams(max_tokens=3)
    half = len(case.requests) // 2
    first = Case(
        case.folder,
        [replace(request, sampling=short) for request in case.requests[:half]],
        [tokens[:3] for tokens in case.expected[:half]],
    )
    engine = first.engine(EngineConfig(max_num_seqs=3, enable_prefix_caching=False))
    longest = max(len(request.token_ids) for request in first.requests)
    for size in {1, *range(first_size, longest + 2, len(CUT_UP))}:
        engine.scheduler.max_batched_tokens = size
        assert first.answers(engine) == first.expected, f"chunks of {size}"


def test_greedy_tokens_with_penalties(tmp_path: Path) -> None:
    """In transformers the places of images count too, which no token of an answer meets here."""
    pair = make_pair("llama", "clip", "llava-hf", tmp_path)
    plain = _expected(pair)
    for options in ({"repetition_penalty": 1.4}, {"no_repeat_ngram_size": 2}):
        expected = _expected(pair, **options)
        assert expected != plain
        assert all(IMAGE_TOKEN_ID not in tokens for tokens in [*plain, *expected])
        sampling = SamplingParams(max_tokens=MAX_TOKENS, **options)
        requests = [replace(each, sampling=sampling) for each in _requests(pair)]
        case = Case(tmp_path, requests, [*expected, *expected])
        assert case.answers(case.engine(EngineConfig(max_batched_tokens=16))) == case.expected


def test_log_probabilities(tmp_path: Path) -> None:
    """Of the model's own logits, whatever penalties made of them, and where prompts are cut up."""
    pair = make_pair("qwen2", "clip", "llava-hf", tmp_path)
    sampling = SamplingParams(24, logprobs=3, presence_penalty=2.0, ignore_eos=True)
    requests = [replace(each, sampling=sampling) for each in _requests(pair)]
    config = EngineConfig(max_batched_tokens=17, kv_cache_tokens=96)
    engine = Case(tmp_path, requests, []).engine(config)
    sequences = [engine.add(request) for request in requests]
    told: dict[int, list[TokenLogprob]] = {id(sequence): [] for sequence in sequences}
    while engine.num_unfinished:
        for output in engine.step():
            assert isinstance(output, TokenOutput) and output.logprob is not None
            told[id(output.sequence)].append(output.logprob)
    assert engine.scheduler.num_preemptions > 0
    for sequence, ids, pixels in zip(
        sequences, pair.prompts * 2, [*pair.pixel_values()] * 2, strict=True
    ):
        answer = torch.tensor(sequence.output_token_ids)
        whole = torch.cat([ids, answer])
        with torch.inference_mode():
            logits = pair.theirs(input_ids=whole[None], pixel_values=pixels[None]).logits[0]
        expected = logits[len(ids) - 1 : -1].log_softmax(-1)
        found = told[id(sequence)]
        assert [each.token_id for each in found] == answer.tolist()
        own = expected.gather(1, answer[:, None]).squeeze(1)
        torch.testing.assert_close(
            torch.tensor([each.logprob for each in found]), own, rtol=0, atol=1e-4
        )
        values, token_ids = expected.topk(3)
        tops = torch.tensor([each.top for each in found])  # (tokens, 3, id and value)
        torch.testing.assert_close(tops[..., 1], values, rtol=0, atol=1e-4)
        assert torch.equal(tops[..., 0].long(), token_ids)
