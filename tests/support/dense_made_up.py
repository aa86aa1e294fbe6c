"""The made-up model once more, straight from its weights: no pages, chunks, batches or caches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from made_up_family.model import HEADS
from made_up_family.processor import PATCH
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor

SECTIONS = (4, 2, 2)
THETA = 10_000.0
EPS = 1e-5


@dataclass
class DenseModel:
    """``heads`` and ``kv_heads`` of ``head_dim``; ids of image tokens and of the end."""

    weights: dict[str, Tensor]
    heads: int
    kv_heads: int
    head_dim: int
    image_token_id: int
    eos: int

    @classmethod
    def load(cls, folder: Path, **sizes: int) -> DenseModel:
        return cls(load_file(folder / "model.safetensors"), **sizes)

    def features(self, pixels: NDArray[np.uint8]) -> Tensor:
        """(H, W, 3) uint8 to (height, width, 3, E): the embedding and the two deep levels."""
        image = torch.from_numpy(pixels).float() / 128 - 1
        height, width = image.shape[0] // PATCH, image.shape[1] // PATCH
        x = torch.stack(
            [
                torch.stack(
                    [
                        image[i * PATCH : (i + 1) * PATCH, j * PATCH : (j + 1) * PATCH].flatten()
                        for j in range(width)
                    ]
                )
                for i in range(height)
            ]
        )
        x = self._linear(x, "tower.patch")
        x = torch.stack([self._tower_attention(row, "tower.rows") for row in x])
        x = self._tower_attention(x.flatten(0, 1), "tower.whole")
        return self._linear(x, "tower.merge").view(height, width, 3, -1)

    def answer(self, token_ids: list[int], images: list[Tensor], max_tokens: int) -> list[int]:
        """Greedy tokens behind a prompt in which every image has a run of image tokens."""
        embeds = [self.weights["language_model.embed_tokens.weight"][token] for token in token_ids]
        deep = torch.zeros(2, len(token_ids), len(embeds[0]))
        positions: list[tuple[int, int, int]] = []
        token = next_position = 0
        for image in [*images, None]:
            while token < len(token_ids) and token_ids[token] != self.image_token_id:
                positions.append((next_position,) * 3)
                token, next_position = token + 1, next_position + 1
            if image is None:
                break
            height, width = image.shape[:2]
            for i in range(height):
                for j in range(width):
                    assert token_ids[token] == self.image_token_id
                    embeds[token] = image[i, j, 0]
                    deep[:, token] = image[i, j, 1:]
                    positions.append((next_position, next_position + i, next_position + j))
                    token += 1
            next_position += max(height, width)
        assert token == len(token_ids)
        output: list[int] = []
        while len(output) < max_tokens and (not output or output[-1] != self.eos):
            if output:
                embeds.append(self.weights["language_model.embed_tokens.weight"][output[-1]])
                deep = F.pad(deep, (0, 0, 0, 1))
                positions.append((next_position,) * 3)
                next_position += 1
            hidden = self._decoder(torch.stack(embeds), torch.tensor(positions), deep)
            output.append(int((self.weights["lm_head.weight"] @ hidden[-1]).argmax()))
        return output

    def _decoder(self, x: Tensor, positions: Tensor, deep: Tensor) -> Tensor:
        for layer in range(3):
            at = f"language_model.layers.{layer}."
            x = x + self._attention(self._norm(x, f"{at}input_layernorm"), positions, at)
            normed = self._norm(x, f"{at}post_attention_layernorm")
            gate = F.silu(self._linear(normed, f"{at}mlp.gate_proj"))
            x = x + self._linear(
                gate * self._linear(normed, f"{at}mlp.up_proj"), f"{at}mlp.down_proj"
            )
            if layer < 2:
                x = x + deep[layer]
        return self._norm(x, "language_model.norm")

    def _attention(self, x: Tensor, positions: Tensor, at: str) -> Tensor:
        query, key, value = (
            self._linear(x, f"{at}self_attn.{name}_proj").view(len(x), -1, self.head_dim)
            for name in "qkv"
        )
        query, key = self._rotate(query, positions), self._rotate(key, positions)
        key, value = (
            each.repeat_interleave(self.heads // self.kv_heads, dim=1) for each in (key, value)
        )
        scores = torch.einsum("qhd,khd->hqk", query, key) / self.head_dim**0.5
        scores = scores.masked_fill(torch.ones_like(scores[0]).triu(1).bool(), -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)
        return self._linear(out, f"{at}self_attn.o_proj")

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """``positions``: (T, 3); pair i of dimensions turns by one of them."""
        half = self.head_dim // 2
        axis = [row for row, count in enumerate(SECTIONS) for _ in range(count)]
        out = torch.empty_like(x)
        for pair in range(half):
            angle = positions[:, axis[pair], None] / THETA ** (pair / half)
            a, b = x[..., pair], x[..., pair + half]
            out[..., pair] = a * angle.cos() - b * angle.sin()
            out[..., pair + half] = b * angle.cos() + a * angle.sin()
        return out

    def _tower_attention(self, x: Tensor, name: str) -> Tensor:
        query, key, value = (
            self._linear(x, f"{name}.{part}_proj").view(len(x), HEADS, -1) for part in "qkv"
        )
        scores = torch.einsum("qhd,khd->hqk", query, key) / query.shape[-1] ** 0.5
        return x + torch.einsum("hqk,khd->qhd", scores.softmax(-1), value).flatten(1)

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + EPS).rsqrt() * self.weights[f"{name}.weight"]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))
