"""Llama, Mistral, Qwen2 and Qwen3 decoders: one set of layers, told apart by ``TextConfig``.

Letters in shapes: T tokens of a step, M image tokens among them, E hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vlmbatch_kernels.embedding import embed_with_features
from vlmbatch_kernels.qkv_linear import project_qkv
from vlmbatch_kernels.quantized_rows import QuantizedRows
from vlmbatch_kernels.rotary import rotary_and_cache

from vlmbatch.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerKVCache,
    SampledQueries,
)
from vlmbatch.models.config import TextConfig
from vlmbatch.models.kv_scales import kv_scales
from vlmbatch.models.layers import Embedding, GatedMLP, RMSNorm, RotaryTable
from vlmbatch.models.linear import QKVLinear, RowLinear
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.vision_language_model import Embedded


class DecoderAttention(nn.Module):
    """Self-attention over the paged pool with rotary positions."""

    def __init__(
        self, config: TextConfig, sliding_window: int | None, parallel: ParallelContext
    ) -> None:
        super().__init__()
        self.qkv_proj = QKVLinear(
            config.hidden_size,
            config.num_heads,
            config.num_kv_heads,
            config.head_dim,
            config.attention_bias,
            parallel,
        )
        self.q_norm = self.k_norm = None
        if config.head_norms:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        heads = parallel.share(config.num_heads, config.head_dim)
        self.o_proj = RowLinear(heads, config.hidden_size, config.output_bias, parallel)
        self.spec = AttentionSpec(
            self.qkv_proj.num_heads,
            self.qkv_proj.num_kv_heads,
            config.head_dim,
            scale=config.head_dim**-0.5,
            sliding_window=sliding_window,
        )

    def forward(
        self,
        x: Tensor | QuantizedRows,
        cos: Tensor,
        sin: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        backend: AttentionBackend,
        sampled: SampledQueries | None,
    ) -> Tensor:
        places = (cos, sin, cache.key, cache.value, metadata.slot_mapping)
        numbers = (*self._norms, cache.scales)
        if self.qkv_proj.fp8 is not None:
            heads = self.qkv_proj(x).unflatten(1, (-1, self.spec.head_dim))
            query = rotary_and_cache(heads, *places, *numbers)
        else:
            assert isinstance(x, Tensor)
            weight, bias = self.qkv_proj.weight, self.qkv_proj.bias
            query = project_qkv(x, weight, bias, *places, *numbers)
        out = backend.attend(query, cache, metadata, self.spec, sampled)
        projected: Tensor = self.o_proj(out.flatten(1))
        return projected

    def kv_scales(self, input_norm: RMSNorm) -> Tensor:
        """(2, K) float32, see ``VisionLanguageModel``; ``input_norm``: what comes before."""
        keys_and_values = self.qkv_proj.rows_from(1)
        key_norm = None if self.k_norm is None else self.k_norm.weight
        return kv_scales(*keys_and_values, input_norm.weight, key_norm, self.spec.head_dim)

    @property
    def _norms(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Weights of the norms of query and key heads, where there are any, and their epsilon."""
        if self.q_norm is None or self.k_norm is None:
            return None, None, 0.0
        return self.q_norm.weight, self.k_norm.weight, self.q_norm.eps


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each normalised before and added to the residual after."""

    def __init__(
        self, config: TextConfig, sliding_window: int | None, parallel: ParallelContext
    ) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = DecoderAttention(config, sliding_window, parallel)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            config.mlp_bias,
            parallel,
        )

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        cache: LayerKVCache,
        metadata: AttentionMetadata,
        backend: AttentionBackend,
        sampled: SampledQueries | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Add the previous layer's output to the residual; return this one's, not yet added.

        All tokens write their keys and values; with ``sampled`` only its n are returned.
        """
        normed: Tensor | QuantizedRows
        if residual is None:
            normed, residual = self.input_layernorm(x), x
        else:
            qkv_proj = self.self_attn.qkv_proj
            normed, residual = self.input_layernorm.add_before(qkv_proj, x, residual)
        x = self.self_attn(normed, cos, sin, cache, metadata, backend, sampled)
        if sampled is not None:
            residual = residual[sampled.tokens]
        gate_up_proj = self.mlp.gate_up_proj
        normed, residual = self.post_attention_layernorm.add_before(gate_up_proj, x, residual)
        return self.mlp(normed), residual


class Decoder(nn.Module):
    """A stack of decoder layers with its token embedding and final normalisation."""

    def __init__(self, config: TextConfig, parallel: ParallelContext) -> None:
        super().__init__()
        windows = config.sliding_windows or (None,) * config.num_layers
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        layers = [DecoderLayer(config, window, parallel) for window in windows]
        self.layers = nn.ModuleList(layers)
        self.attention_specs = [layer.self_attn.spec for layer in layers]
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary = RotaryTable(config.head_dim, config.max_position_embeddings, config.rope)

    def embed(
        self,
        input_ids: Tensor,
        features: Tensor | None = None,
        feature_rows: Tensor | None = None,
    ) -> Embedded:
        """See ``VisionLanguageModel``: the first E columns of ``features`` stand for tokens, each E
        columns behind them are a deep level."""
        table = self.embed_tokens.weight
        if features is None or feature_rows is None:
            return Embedded(F.embedding(input_ids, table))
        first, *deep = torch.split(features, table.shape[1], dim=1)
        hidden = embed_with_features(input_ids, table, first.contiguous(), feature_rows)
        return Embedded(hidden, tuple(deep), feature_rows)

    def forward(
        self,
        embedded: Embedded,
        positions: Tensor,
        kv_caches: list[LayerKVCache],
        metadata: AttentionMetadata,
        backend: AttentionBackend,
    ) -> Tensor:
        """Return normalised hidden states (T, E) at ``positions`` (T,), or (3, T) by sections.

        With ``metadata.sampled``: (n, E), those of its queries.
        """
        x, deep, feature_rows = embedded
        assert len(deep) < len(self.layers), "the last layer may leave most tokens out"
        cos, sin = self.rotary(positions)
        residual = None
        last = self.layers[-1]
        for index, (layer, cache) in enumerate(zip(self.layers, kv_caches, strict=True)):
            sampled = metadata.sampled if layer is last else None
            x, residual = layer(x, residual, cos, sin, cache, metadata, backend, sampled)
            if index < len(deep):
                assert feature_rows is not None
                x = x + _spread(deep[index], feature_rows)
        assert residual is not None
        return self.norm.add(x, residual)[0]

    def kv_scales(self) -> list[Tensor]:
        """See ``VisionLanguageModel``."""
        layers = cast(Iterable[DecoderLayer], self.layers)
        return [layer.self_attn.kv_scales(layer.input_layernorm) for layer in layers]


def _spread(level: Tensor, feature_rows: Tensor) -> Tensor:
    """Rows of ``level`` (M, E) at the tokens that they belong to, zeros elsewhere: (T, E)."""
    rows = level.index_select(0, feature_rows.clamp(min=0))
    return torch.where((feature_rows >= 0)[:, None], rows, 0.0)
