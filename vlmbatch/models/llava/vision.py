"""CLIP and SigLIP vision towers, cut off behind the last layer whose features are used.

Letters in shapes: N images, L tokens of an image, C hidden size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vlmbatch_kernels.linear import linear

from vlmbatch.attention.base import AttentionBackend, AttentionSpec
from vlmbatch.models.layers import Embedding, LayerNorm, PlainMLP
from vlmbatch.models.linear import QKVLinear, RowLinear
from vlmbatch.models.llava.vision_config import VisionConfig
from vlmbatch.models.parallel import ParallelContext


class PatchEmbedding(nn.Module):
    """Projects the patches of an image."""

    def __init__(self, config: VisionConfig, bias: bool) -> None:
        super().__init__()
        size = config.patch_size
        weight = torch.empty(config.hidden_size, 3, size, size)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(weight.new_empty(config.hidden_size)) if bias else None

    def forward(self, patches: Tensor) -> Tensor:
        """Turn rows of ``normalize_patches`` (N, L, row) into (N, L, C)."""
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)
        return linear(patches, F.pad(weight, (0, patches.shape[-1] - weight.shape[1])), self.bias)


class VisionEmbeddings(nn.Module):
    """Patches and, in CLIP, a class token before them, each with its learned position."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        is_clip = config.has_class_token
        self.patch_embedding = PatchEmbedding(config, bias=not is_clip)
        self.class_embedding = nn.Parameter(torch.empty(config.hidden_size)) if is_clip else None
        self.position_embedding = Embedding(config.num_patches + is_clip, config.hidden_size)

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch_embedding(patches)
        if self.class_embedding is not None:
            x = torch.cat((self.class_embedding.expand(x.shape[0], 1, -1), x), dim=1)
        embeddings: Tensor = x + self.position_embedding.weight
        return embeddings


class Images(NamedTuple):
    """The N images of a pass as sequences of ``length`` tokens; ``cu_seqlens``: (N + 1,) int32."""

    cu_seqlens: Tensor
    length: int

    @classmethod
    def of(cls, x: Tensor) -> Images:
        """Those of ``x`` (N, L, C)."""
        count, length, _ = x.shape
        ends = torch.arange(count + 1, dtype=torch.int32, device=x.device) * length
        return cls(ends, length)


class VisionAttention(nn.Module):
    """Self-attention among the tokens of each image."""

    def __init__(self, config: VisionConfig, parallel: ParallelContext) -> None:
        super().__init__()
        size, heads = config.hidden_size, config.num_heads
        head_dim = size // heads
        self.qkv_proj = QKVLinear(size, heads, heads, head_dim, bias=True, parallel=parallel)
        self.out_proj = RowLinear(parallel.share(heads, head_dim), size, True, parallel)
        local = self.qkv_proj.num_heads
        self.spec = AttentionSpec(local, local, head_dim, scale=head_dim**-0.5, causal=False)

    def forward(self, x: Tensor, images: Images, backend: AttentionBackend) -> Tensor:
        qkv = self.qkv_proj(x).unflatten(-1, (3, self.spec.num_heads, self.spec.head_dim))
        query, key, value = qkv.flatten(0, 1).unbind(1)
        heads = backend.varlen(query, key, value, images.cu_seqlens, images.length, self.spec)
        out: Tensor = self.out_proj(heads.flatten(1).view(*x.shape[:2], -1))
        return out


class VisionLayer(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: VisionConfig, parallel: ParallelContext) -> None:
        super().__init__()
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = VisionAttention(config, parallel)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        size, inner = config.hidden_size, config.intermediate_size
        self.mlp = PlainMLP(size, inner, size, config.hidden_act, parallel)

    def forward(
        self, x: Tensor | None, residual: Tensor, images: Images, backend: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        """Add the previous layer's output to the residual; return this one's, not yet added."""
        if x is None:
            x = self.layer_norm1(residual)
        else:
            x, residual = self.layer_norm1.add(x, residual)
        x, residual = self.layer_norm2.add(self.self_attn(x, images, backend), residual)
        return self.mlp(x), residual


class VisionEncoder(nn.Module):
    """The layers of a tower."""

    def __init__(self, config: VisionConfig, num_layers: int, parallel: ParallelContext) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(config, parallel) for _ in range(num_layers))


class VisionTower(nn.Module):
    """A tower with as many layers as ``feature_layers`` ask for (see ``TowerConfig``)."""

    def __init__(
        self, config: VisionConfig, feature_layers: tuple[int, ...], parallel: ParallelContext
    ) -> None:
        super().__init__()
        self.feature_layers = feature_layers
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = (  # sic, in every CLIP checkpoint
            nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
            if config.has_class_token
            else None
        )
        self.encoder = VisionEncoder(config, max(feature_layers), parallel)

    def forward(self, patches: Tensor, backend: AttentionBackend) -> Tensor:
        """Turn rows of ``normalize_patches`` into features (N, L, C * len(feature_layers))."""
        residual: Tensor = self.embeddings(patches)
        if self.pre_layrnorm is not None:
            residual = self.pre_layrnorm(residual)
        hidden_states = {0: residual}
        images = Images.of(residual)
        x = None
        for index, layer in enumerate(self.encoder.layers, start=1):
            x, residual = layer(x, residual, images, backend)
            if index in self.feature_layers:
                hidden_states[index] = residual + x
        if len(self.feature_layers) == 1:
            return hidden_states[self.feature_layers[0]]
        return torch.cat([hidden_states[index] for index in self.feature_layers], dim=-1)
