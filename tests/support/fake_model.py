"""A model whose next token depends on every token and image before it, and on nothing else.

It keeps its "keys" in the paged pool and reads them back through the block tables, so that a wrong
slot, table, position or image row changes the tokens. ``reference`` is the same rule, written down
without any engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vlmbatch.attention.base import AttentionMetadata, LayerKVCache
from vlmbatch.config import EngineConfig
from vlmbatch.engine.assembly import make_engine
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.grammars import Grammars
from vlmbatch.models.config import ModelConfig, TextConfig
from vlmbatch.models.vision_language_model import Embedded
from vlmbatch.types import ImageGrid, PixelImage, Request

VOCAB = 97
IMAGE_TOKEN_ID = 96
EOS = 5
IMAGE_TOKENS = 6
GRANULE = 4


class FakeBackend:
    """What the engine asks of an attention backend."""

    name = "fake"
    captures_decodes = False
    shares_prefixes = False
    granule = GRANULE

    def __init__(self, granules_per_block: int = 1) -> None:
        self.block_size = GRANULE * granules_per_block

    def attend(self, *_: object) -> Tensor:
        raise AssertionError("the fake model reads the pool by itself")

    varlen = attend


class FakeModel:
    """Plays a vision-language model; ``fail_on`` makes a step that holds this token id raise."""

    def __init__(self, granules_per_block: int = 1, fail_on: int | None = None) -> None:
        self.block_size = GRANULE * granules_per_block
        self.fail_on = fail_on
        self.num_encoded = 0

    def encode_images(self, images: Sequence[Tensor], grids: Sequence[ImageGrid]) -> list[Tensor]:
        self.num_encoded += len(images)
        values = [pixels.double().mean().round() for pixels in images]
        return [value + torch.arange(IMAGE_TOKENS).double()[:, None] for value in values]

    def extract_features(
        self, images: Sequence[Tensor], grids: Sequence[ImageGrid]
    ) -> list[Tensor]:
        raise AssertionError("no engine asks for features")

    def project_features(self, features: Sequence[Tensor]) -> list[Tensor]:
        self.num_encoded += len(features)
        return [each[:, :1].double() for each in features]

    def embed(
        self,
        input_ids: Tensor,
        features: Tensor | None = None,
        feature_rows: Tensor | None = None,
    ) -> Embedded:
        if self.fail_on is not None and (input_ids == self.fail_on).any():
            raise RuntimeError("the fake model fails on this token")
        embeds = input_ids.double()[:, None]
        if features is not None and feature_rows is not None:
            placed = feature_rows >= 0
            embeds[placed] = features[feature_rows[placed]]
        return Embedded(embeds)

    def forward(
        self,
        embedded: Embedded,
        positions: Tensor,
        kv_caches: list[LayerKVCache],
        metadata: AttentionMetadata,
    ) -> Tensor:
        embeds = embedded.hidden
        keys = kv_caches[0].key
        keys[metadata.slot_mapping, 0, 0] = (embeds[:, 0] + positions).to(keys.dtype)
        hidden = torch.zeros_like(embeds)
        first = 0
        for b, (queries, length) in enumerate(
            zip(metadata.query_lens, metadata.seqlens_k_host, strict=True)
        ):
            at = torch.arange(length)
            pages = metadata.block_table[b, at // self.block_size].long()
            slots = pages * GRANULE + at % self.block_size
            read = keys[slots, 0, 0].double()
            weights = torch.arange(1, length + 1).double()
            for query in range(queries):
                seen = length - queries + query + 1
                hidden[first + query, 0] = (read[:seen] * weights[:seen]).sum() % VOCAB
            first += queries
        assert first == len(embeds) == int(metadata.cu_seqlens_q[-1])
        return hidden if metadata.sampled is None else hidden[metadata.sampled.tokens]

    def kv_scales(self) -> list[Tensor]:
        return [torch.ones(2, 1)]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        distance = (torch.arange(VOCAB).double()[None] - hidden).abs()
        return (-distance).float()


def reference(
    request: Request, num_tokens: int, choose: Callable[[int, list[int]], int] | None = None
) -> list[int]:
    """The greedy tokens of ``request``, at most ``num_tokens`` of them.

    ``choose``: another token than the likeliest, from that one and those before.
    """
    values = [float(token) for token in request.token_ids]
    for span in request.image_spans:
        image = request.images[span.image]
        assert isinstance(image, PixelImage)
        mean = round(float(image.pixels.mean()))
        for i in range(span.length):
            values[span.start + i] = mean + span.offset + i
    output: list[int] = []
    while len(output) < num_tokens:
        keys = [value + position for position, value in enumerate(values)]
        likeliest = int(sum((i + 1) * key for i, key in enumerate(keys)) % VOCAB)
        output.append(likeliest if choose is None else choose(likeliest, output))
        values.append(output[-1])
        if output[-1] == EOS and not request.sampling.ignore_eos:
            break
    return output


def fake_image(value: int) -> PixelImage:
    grid = ImageGrid(1, IMAGE_TOKENS, IMAGE_TOKENS, num_bytes=12)
    return PixelImage(np.full((2, 2, 3), value, np.uint8), b"image %d" % value, grid)


def fake_config(max_position_embeddings: int = 256) -> ModelConfig:
    text = TextConfig(
        model_type="llama",
        vocab_size=VOCAB,
        hidden_size=1,
        intermediate_size=1,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=1,
        rms_norm_eps=1e-5,
        max_position_embeddings=max_position_embeddings,
        sliding_windows=(None,),
    )
    return ModelConfig(
        model_type="fake",
        text=text,
        image_token_id=IMAGE_TOKEN_ID,
        tie_word_embeddings=False,
        eos_token_ids=(EOS,),
        dtype="float32",
    )


def small_engine(
    model: FakeModel | None = None,
    granules_per_block: int = 1,
    ahead: bool = False,
    grammars: Grammars | None = None,
    **options: Any,
) -> Engine:
    """An engine on the CPU."""
    return make_engine(
        model or FakeModel(granules_per_block),
        fake_config(),
        EngineConfig(**{"kv_cache_tokens": 400, **options}),
        FakeBackend(granules_per_block),
        torch.device("cpu"),
        torch.float64,
        ahead=ahead,
        grammars=grammars,
    )
