"""Our models against transformers' on the same tiny checkpoints: images, text, logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Layout, Rope, TextKind, Tower, make_checkpoint
from paged_batch import forward_in_chunks
from parity_pair import Pair, make_pair
from pixel_scaling import scaling

from vlmbatch.attention import make_backend
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava.model import Model as LlavaModel
from vlmbatch.models.registry import load_model

TOLERANCE: dict[str, Any] = {"atol": 1e-4, "rtol": 0.0}


@pytest.fixture(
    scope="module",
    params=[
        (kind, tower) for kind in ("llama", "mistral", "qwen2") for tower in ("clip", "siglip")
    ],
    ids="-".join,
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    kind, tower = request.param
    return make_pair(kind, tower, "llava-hf", tmp_path_factory.mktemp("checkpoint"))


def test_image_features(pair: Pair) -> None:
    with torch.inference_mode():
        theirs = pair.theirs.get_image_features(pair.pixel_values(), return_dict=True)
    ours = pair.ours.encode_images(list(pair.pixels), [])
    for mine, features in zip(ours, theirs.pooler_output, strict=True):
        torch.testing.assert_close(mine, features, **TOLERANCE)


@pytest.mark.parametrize("chunk", [1, 3, 7, 10_000, "mixed"])
def test_logits_in_chunks(pair: Pair, chunk: int | str) -> None:
    """Sequences of unlike lengths side by side, over a shuffled pool, all positions compared."""
    chunks = [1, 3, 50, 4] if chunk == "mixed" else [int(chunk)] * len(pair.prompts)
    hidden = forward_in_chunks(pair.ours, pair.our_embeds(), chunks)
    for ours, theirs in zip(hidden, pair.their_logits(), strict=True):
        torch.testing.assert_close(pair.ours.compute_logits(ours), theirs, **TOLERANCE)


@pytest.mark.parametrize("layout", ["saved", "internal"])
@pytest.mark.parametrize(("kind", "tower"), [("llama", "clip"), ("qwen2", "siglip")])
def test_layouts_of_transformers_5(
    kind: TextKind, tower: Tower, layout: Layout, tmp_path: Path
) -> None:
    pair = make_pair(kind, tower, layout, tmp_path)
    hidden = forward_in_chunks(pair.ours, pair.our_embeds(), [10_000] * len(pair.prompts))
    for ours, theirs in zip(hidden, pair.their_logits(), strict=True):
        torch.testing.assert_close(pair.ours.compute_logits(ours), theirs, **TOLERANCE)


@pytest.mark.parametrize("rope", ["linear", "llama3"])
def test_scaled_rope(rope: Rope, tmp_path: Path) -> None:
    theirs = make_checkpoint("llama", "clip", tmp_path, rope=rope)
    config = load_model_config(tmp_path)
    assert config.text.rope.kind == rope
    table = torch.arange(config.text.max_position_embeddings)
    ours = load_model(
        tmp_path,
        config,
        scaling(),
        torch.device("cpu"),
        torch.float32,
        make_backend("torch", "cpu"),
    )
    assert isinstance(ours, LlavaModel)
    cos, sin = ours.language_model.rotary(table)
    want_cos, want_sin = theirs.model.language_model.rotary_emb(torch.empty(0), table[None])
    half = config.text.head_dim // 2
    torch.testing.assert_close(cos[:, 0], want_cos[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(sin[:, 0, half:], want_sin[0, :, half:], atol=1e-5, rtol=0)
    torch.testing.assert_close(-sin[:, 0, :half], want_sin[0, :, :half], atol=1e-5, rtol=0)
