"""The engine's greedy tokens against transformers' generate, however the work is cut up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from checkpoints import EOS_TOKEN_ID, IMAGE_TOKEN_ID
from parity_pair import IMAGES, Pair, make_pair

from vlmbatch.config import EngineConfig, SamplingParams
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.loading import build_engine
from vlmbatch.models.family import load_model_config
from vlmbatch.types import ImageGrid, ImageSpan, PixelImage, Request

MAX_TOKENS = 24
COMBINATIONS = [
    (kind, tower) for kind in ("llama", "mistral", "qwen2") for tower in ("clip", "siglip")
]
# The engine sees of a tower only its features: each kind and each tower meets every setting.
CUT_UP = [("llama", "clip"), ("mistral", "siglip"), ("qwen2", "clip")]
AT_ONCE = "at once"
SETTINGS = {
    AT_ONCE: EngineConfig(),
    "without a prefix cache": EngineConfig(enable_prefix_caching=False),
    "one at a time": EngineConfig(max_num_seqs=1),
    "chunks of 1": EngineConfig(max_batched_tokens=1),
    "chunks of 2": EngineConfig(max_batched_tokens=2, enable_prefix_caching=False),
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
        processor = SimpleNamespace(images=IMAGES)
        return build_engine(self.folder, load_model_config(self.folder), config, processor)

    def answers(self, engine: Engine) -> list[list[int]]:
        sequences = [engine.add(request) for request in self.requests]
        while engine.num_unfinished:
            engine.step()
            engine.scheduler.check_integrity()
        return [sequence.output_token_ids for sequence in sequences]


def _expected(pair: Pair) -> list[list[int]]:
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
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("checkpoint")
    kind, tower = request.param
    pair = make_pair(kind, tower, "llava-hf", folder)
    expected = _expected(pair)
    return Case(folder, _requests(pair), [*expected, *expected])


@pytest.mark.parametrize(
    ("case", "name"),
    [
        pytest.param(combination, name, id="-".join([*combination, name]))
        for combination in COMBINATIONS
        for name in (SETTINGS if combination in CUT_UP else [AT_ONCE])
    ],
    indirect=["case"],
    scope="module",
)
def test_greedy_tokens(case: Case, name: str) -> None:
    config = SETTINGS[name]
    engine = case.engine(config)
    assert case.answers(engine) == case.expected
    if config.kv_cache_tokens is not None:
        assert engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("case", CUT_UP, ids="-".join, indirect=True, scope="module")
def test_every_chunk_size(case: Case) -> None:
    short = SamplingParams(max_tokens=3)
    half = len(case.requests) // 2
    first = Case(
        case.folder,
        [replace(request, sampling=short) for request in case.requests[:half]],
        [tokens[:3] for tokens in case.expected[:half]],
    )
    engine = first.engine(EngineConfig(max_num_seqs=3, enable_prefix_caching=False))
    for size in range(1, max(len(request.token_ids) for request in first.requests) + 2):
        engine.scheduler.max_batched_tokens = size
        assert first.answers(engine) == first.expected, f"chunks of {size}"
