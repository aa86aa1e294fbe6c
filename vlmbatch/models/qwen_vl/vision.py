"""The vision towers of Qwen2-VL, Qwen2.5-VL and Qwen3-VL over packed images of any size.

Letters in shapes: T patches of all images, M tokens of all images, C hidden size, D head size.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vlmbatch_kernels.image_patches import normalize_patches
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.qkv_linear import project_qkv
from vlmbatch_kernels.quantized_rows import QuantizedRows

from vlmbatch.attention.base import AttentionBackend, AttentionSpec
from vlmbatch.models.config import RopeConfig
from vlmbatch.models.layers import (
    DerivedBuffers,
    Embedding,
    GatedMLP,
    LayerNorm,
    PlainMLP,
    RMSNorm,
    inverse_frequencies,
)
from vlmbatch.models.linear import ColumnLinear, Part, RowLinear
from vlmbatch.models.parallel import SINGLE_DEVICE
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.models.qwen_vl.packing import Packing
from vlmbatch.models.qwen_vl.vision_config import VisionConfig
from vlmbatch.models.upload import to_device

_EPS = 1e-6
_ALIGNMENT = 8  # numbers of 2 bytes
# Each rank has the whole tower: checkpoints hold queries, keys and values in one tensor, which is
# not divided by heads.
_WHOLE = SINGLE_DEVICE


class Sequences(NamedTuple):
    """Who attends to whom: ``cu_seqlens`` (n + 1,) int32; ``longest``: patches of one at most."""

    cu_seqlens: Tensor
    longest: int

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Sequences:
        return cls(to_device(np.array([0, *accumulate(lengths)], np.int32), device), max(lengths))


class Patches(NamedTuple):
    """Of every patch: ``cos`` and ``sin`` (T, 1, D), see ``apply_rotary``; ``slots`` (T,) int64,
    where its key and value lie, which is in their order."""

    cos: Tensor
    sin: Tensor
    slots: Tensor


class PatchProjection(nn.Module):
    """The kernel of a convolution over patches of several frames, all of them the same still."""

    def __init__(self, config: VisionConfig, bias: bool) -> None:
        super().__init__()
        size = config.patch_size
        weight = torch.empty(config.hidden_size, 3, config.temporal_patch_size, size, size)
        self.weight = nn.Parameter(weight, requires_grad=False)
        bias_values = nn.Parameter(weight.new_empty(config.hidden_size), requires_grad=False)
        self.bias = bias_values if bias else None

    def forward(self, patches: Tensor) -> Tensor:
        """Turn rows of ``normalize_patches`` (T, row) into (T, C)."""
        still = self.weight.float().sum(2).to(self.weight.dtype)
        weight = still.permute(0, 2, 3, 1).flatten(1)
        return linear(patches, F.pad(weight, (0, patches.shape[-1] - weight.shape[1])), self.bias)


class PatchEmbedding(DerivedBuffers):
    """Bytes of pixels to embedded patches, image by image."""

    scale: Tensor
    bias: Tensor

    def __init__(self, config: VisionConfig, images: QwenImageProcessor) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        normalization = images.normalization
        self.coefficients = (normalization.scale, normalization.bias)
        self.register_buffer("scale", torch.empty(3), persistent=False)
        self.register_buffer("bias", torch.empty(3), persistent=False)
        self.proj = PatchProjection(config, bias=config.kind == "qwen3_vl")

    def fill_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        self.scale, self.bias = (
            torch.tensor(values, dtype=torch.float32, device=device) for values in self.coefficients
        )

    def forward(self, images: Sequence[Tensor], order: Tensor) -> Tensor:
        """Pixels (H_i, W_i, 3) uint8 to (T, C), patches in ``order`` (T,)."""
        dtype = self.proj.weight.dtype
        patches = [
            normalize_patches(image[None], self.scale, self.bias, self.patch_size, dtype)[0]
            for image in images
        ]
        embedded: Tensor = self.proj(torch.cat(patches).index_select(0, order))
        return embedded


class VisionRotary(DerivedBuffers):
    """Half of a head's pairs of dimensions turn by a patch's row, half by its column."""

    inv_freq: Tensor

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.size = config.head_dim // 2
        self.theta = config.rope_theta
        self.register_buffer("inv_freq", torch.empty(self.size // 2), persistent=False)

    def fill_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        self.inv_freq = inverse_frequencies(self.size, RopeConfig(self.theta)).to(device)
        self.dtype = dtype

    def forward(self, places: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and columns (2, T) to cos and sin as ``apply_rotary`` takes them: (T, 1, D)."""
        angles = torch.cat([axis[:, None] * self.inv_freq for axis in places], dim=1)
        cos, sin = angles.cos(), angles.sin()
        tables = torch.cat((cos, cos), 1), torch.cat((-sin, sin), 1)
        first, second = (table.to(self.dtype).unsqueeze(1) for table in tables)
        return first, second


class VisionAttention(nn.Module):
    """Self-attention among the patches of each sequence."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, heads, head_dim = config.hidden_size, config.num_heads, config.head_dim
        self.qkv = ColumnLinear(size, (Part("qkv", _WHOLE.share(3 * size)),), bias=True)
        self.proj = RowLinear(_WHOLE.share(size), size, True, _WHOLE)
        self.spec = AttentionSpec(heads, heads, head_dim, scale=head_dim**-0.5, causal=False)

    def forward(
        self,
        x: Tensor,
        patches: Patches,
        sequences: Sequences,
        backend: AttentionBackend,
    ) -> Tensor:
        shape = (len(x), self.spec.num_heads, self.spec.head_dim)
        key, value = x.new_empty(shape), x.new_empty(shape)
        cos, sin, slots = patches
        weight, bias = self.qkv.weight, self.qkv.bias
        query = project_qkv(x, weight, bias, cos, sin, key, value, slots)
        heads = backend.varlen(query, key, value, *sequences, self.spec)
        out: Tensor = self.proj(heads.flatten(1))
        return out


class AlignedGatedMLP(GatedMLP):
    """A gated feed-forward layer whose inner rows take up whole multiples of 16 bytes.

    Those of Qwen2.5-VL's towers have 3420 numbers, for which products on a GPU are slow. Filling
    the weights up with zeros takes a thousandth of a pass.
    """

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        assert isinstance(x, Tensor)
        weight, bias = self.gate_up_proj.weight, self.gate_up_proj.bias
        size = len(weight) // 2
        more = -size % _ALIGNMENT
        if not more:
            return super().forward(x)
        assert bias is not None and self.down_proj.bias is not None
        filled = F.pad(weight.view(2, size, -1), (0, 0, 0, more)).flatten(0, 1)
        gated = self.gated(x, filled, F.pad(bias.view(2, size), (0, more)).flatten())
        return linear(gated, F.pad(self.down_proj.weight, (0, more)), self.down_proj.bias)


class VisionLayer(nn.Module):
    """Attention and feed-forward, each normalised before and added after."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        size, inner, act = config.hidden_size, config.intermediate_size, config.hidden_act
        self.norm1 = _norm(config, size)
        self.attn = VisionAttention(config)
        self.norm2 = _norm(config, size)
        self.mlp = (
            AlignedGatedMLP(size, inner, act, True, _WHOLE)
            if config.kind == "qwen2_5_vl"
            else PlainMLP(size, inner, size, act, _WHOLE)
        )

    def forward(
        self,
        x: Tensor | None,
        residual: Tensor,
        patches: Patches,
        sequences: Sequences,
        backend: AttentionBackend,
    ) -> tuple[Tensor, Tensor]:
        """Add the previous layer's output to the residual; return this one's, not yet added."""
        if x is None:
            x = self.norm1(residual)
        else:
            x, residual = self.norm1.add(x, residual)
        x, residual = self.norm2.add(self.attn(x, patches, sequences, backend), residual)
        return self.mlp(x), residual


class Merger(PlainMLP):
    """The patches of each token to an embedding of the decoder's: (T, C) to (M, E).

    Normalised patch by patch; where it makes a deep level, token by token.
    """

    def __init__(self, config: VisionConfig, deep: bool = False) -> None:
        size = config.hidden_size * config.merge_size**2
        super().__init__(size, size, config.out_hidden_size, "gelu", _WHOLE)
        self.size = size
        self.deep = deep
        self.norm = _norm(config, size if deep else config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.view(-1, self.size)) if self.deep else self.norm(x).view(-1, self.size)
        return super().forward(x)


class VisionTower(nn.Module):
    """Pixels to what the decoder is given of each image."""

    def __init__(self, config: VisionConfig, images: QwenImageProcessor) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config, images)
        side = config.position_side
        self.pos_embed = Embedding(side**2, config.hidden_size) if side else None
        self.rotary = VisionRotary(config)
        self.blocks = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))
        self.merger = Merger(config)
        self.deepstack_merger_list = nn.ModuleList(Merger(config, True) for _ in config.deep_layers)

    def forward(self, images: Sequence[Tensor], backend: AttentionBackend) -> list[Tensor]:
        """Pixels (H_i, W_i, 3) uint8 to (tokens_i, (1 + deep levels) * E) each."""
        device, size = images[0].device, self.config.patch_size
        packing = Packing.of([(len(x) // size, x.shape[1] // size) for x in images], self.config)
        whole = Sequences.of(packing.lengths, device)
        windows = whole if self.config.window is None else Sequences.of(packing.windows, device)
        residual = self.patch_embed(images, to_device(packing.patches, device))
        if self.pos_embed is not None:
            residual = residual + self._learned_positions(packing, device).to(residual.dtype)
        cos, sin = self.rotary(to_device(packing.places, device))
        patches = Patches(cos, sin, torch.arange(len(residual), device=device))
        x = None
        deep: list[Tensor] = []
        for index, layer in enumerate(self.blocks):
            sequences = windows if self.config.attends_in_windows(index) else whole
            x, residual = layer(x, residual, patches, sequences, backend)
            if index in self.config.deep_layers:
                deep.append(self.deepstack_merger_list[len(deep)](residual + x))
        assert x is not None
        merged = torch.cat((self.merger(residual + x), *deep), dim=1)
        if self.config.window is not None:
            merged = merged.index_select(0, to_device(packing.tokens, device))
        counts = [length // self.config.merge_size**2 for length in packing.lengths]
        return list(torch.split(merged, counts))

    def _learned_positions(self, packing: Packing, device: torch.device) -> Tensor:
        """Embeddings (T, C) float32 between those of the table."""
        assert self.pos_embed is not None
        indices, weights = packing.interpolation(self.config)
        return F.embedding_bag(
            to_device(indices, device),
            self.pos_embed.weight.float(),
            mode="sum",
            per_sample_weights=to_device(weights, device),
        )


def _norm(config: VisionConfig, size: int) -> RMSNorm | LayerNorm:
    return RMSNorm(size, _EPS) if config.kind == "qwen2_5_vl" else LayerNorm(size, _EPS)
