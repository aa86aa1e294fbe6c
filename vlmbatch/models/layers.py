"""Layers of decoders and towers: normalisation, rotary tables, feed-forward."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from vlmbatch_kernels.activation import quick_gelu, silu_and_mul
from vlmbatch_kernels.gated_linear import silu_gated_linear
from vlmbatch_kernels.gelu_linear import gelu_linear
from vlmbatch_kernels.layer_norm import layer_norm_residual
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.quantized_rows import (
    QuantizedRows,
    rms_norm_residual_quantized,
    silu_and_mul_quantized,
)
from vlmbatch_kernels.rms_norm import rms_norm, rms_norm_residual
from vlmbatch_kernels.rotary import rotary_tables

from vlmbatch.models.config import RopeConfig
from vlmbatch.models.linear import ColumnLinear, GateUpLinear, Part, RowLinear
from vlmbatch.models.parallel import ParallelContext

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
}


class DerivedBuffers(nn.Module):
    """A module whose buffers follow from its configuration and are in no checkpoint."""

    def fill_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        """Compute the buffers on the device that the parameters have come to."""
        raise NotImplementedError


class Embedding(nn.Module):
    """A table of vectors, left empty: torch's own draws numbers even on the meta device, and
    imports its compiler for that (over a second)."""

    def __init__(self, num_rows: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_rows, size), requires_grad=False)


class RMSNorm(nn.Module):
    """Root mean square normalisation of rows."""

    def __init__(self, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.empty(hidden_size), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of ``x`` and ``residual``, and the sum."""
        return rms_norm_residual(x, residual, self.weight, self.eps)

    def add_before(
        self, layer: ColumnLinear, x: Tensor, residual: Tensor
    ) -> tuple[Tensor | QuantizedRows, Tensor]:
        """``add``, with the normalised sum as ``layer`` multiplies it."""
        fp8 = layer.fp8
        if fp8 is None or not fp8.takes_rows(x.device, x.dtype):
            return self.add(x, residual)
        return rms_norm_residual_quantized(x, residual, self.weight, self.eps, fp8.group)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation of rows."""

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """Return the normalised sum of ``x`` and ``residual``, and the sum."""
        return layer_norm_residual(x, residual, self.weight, self.bias, self.eps)


class GatedMLP(nn.Module):
    """Feed-forward layer of the Llama family: (T, hidden) to (T, hidden)."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        act: str,
        bias: bool,
        parallel: ParallelContext,
    ) -> None:
        super().__init__()
        self.gate_up_proj = GateUpLinear(hidden_size, intermediate_size, bias, parallel)
        share = parallel.share(intermediate_size)
        self.down_proj = RowLinear(share, hidden_size, bias, parallel)
        self.act = act

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        gated: Tensor | QuantizedRows
        if self.gate_up_proj.fp8 is not None:
            gated = self._gated_products(self.gate_up_proj(x))
        else:
            assert isinstance(x, Tensor)
            gated = self.gated(x, self.gate_up_proj.weight, self.gate_up_proj.bias)
        out: Tensor = self.down_proj(gated)
        return out

    def _gated_products(self, products: Tensor) -> Tensor | QuantizedRows:
        """(T, 2I) of gate and up projection to (T, I), as ``down_proj`` multiplies it."""
        fp8 = self.down_proj.fp8
        if self.act == "silu":
            if fp8 is not None and fp8.takes_rows(products.device, products.dtype):
                return silu_and_mul_quantized(products, fp8.group)
            return silu_and_mul(products)
        return self._activated(products)

    def gated(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """(T, I) of a gate and an up projection: ``weight`` (2I, hidden), ``bias`` (2I,)."""
        if self.act == "silu":
            return silu_gated_linear(x, weight, bias)
        return self._activated(linear(x, weight, bias))

    def _activated(self, products: Tensor) -> Tensor:
        gate, up = products.chunk(2, dim=-1)
        return ACTIVATIONS[self.act](gate).mul_(up)


class PlainMLP(nn.Module):
    """Feed-forward layer with biases: (..., in_features) to (..., out_features)."""

    def __init__(
        self, in_features: int, size: int, out_features: int, act: str, parallel: ParallelContext
    ) -> None:
        super().__init__()
        share = parallel.share(size)
        self.fc1 = ColumnLinear(in_features, (Part("fc1", share),), bias=True)
        self.fc2 = RowLinear(share, out_features, True, parallel)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(self._activated(x))
        return out

    def _activated(self, x: Tensor) -> Tensor:
        if self.act == "gelu_pytorch_tanh":
            assert self.fc1.bias is not None
            return gelu_linear(x, self.fc1.weight, self.fc1.bias)
        return ACTIVATIONS[self.act](self.fc1(x))


class RotaryTable(DerivedBuffers):
    """Cosines and sines of every position, as ``apply_rotary`` takes them.

    Where positions have three rows (time, height, width), each pair of dimensions turns by the row
    that the sections of ``rope`` give it (multimodal RoPE: Wang et al. 2024, arXiv:2409.12191).
    """

    cos: Tensor
    sin: Tensor
    axis: Tensor

    def __init__(self, head_dim: int, max_position_embeddings: int, rope: RopeConfig) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.length = max_position_embeddings
        self.rope = rope
        self.register_buffer("cos", torch.empty(self.length, head_dim), persistent=False)
        self.register_buffer("sin", torch.empty(self.length, head_dim), persistent=False)
        axis = torch.empty(head_dim, dtype=torch.int64) if rope.sections else None
        self.register_buffer("axis", axis, persistent=False)

    def fill_buffers(self, device: torch.device, dtype: torch.dtype) -> None:
        inv_freq = inverse_frequencies(self.head_dim, self.rope).to(device)
        self.cos, self.sin = rotary_tables(inv_freq, self.length, dtype)
        if self.rope.sections:
            half = torch.tensor(_axes(self.rope))
            self.axis = torch.cat((half, half)).to(device)

    def forward(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Look ``positions`` (T,) or (3, T) up: cos and sin, both (T, 1, D)."""
        if positions.ndim == 2:
            return self._mixed(self.cos, positions), self._mixed(self.sin, positions)
        cos = self.cos.index_select(0, positions)
        sin = self.sin.index_select(0, positions)
        return cos.unsqueeze(1), sin.unsqueeze(1)

    def _mixed(self, table: Tensor, positions: Tensor) -> Tensor:
        """Each dimension at its own row of ``positions`` (3, T): (T, 1, D)."""
        assert self.rope.sections, "three rows of positions need sections in the configuration"
        dimension = torch.arange(self.head_dim, device=table.device)
        return table[positions[self.axis].T, dimension].contiguous().unsqueeze(1)


def _axes(rope: RopeConfig) -> list[int]:
    """The row of positions that each pair of dimensions turns by."""
    if not rope.interleaved:
        return [axis for axis, count in enumerate(rope.sections) for _ in range(count)]
    pairs = range(sum(rope.sections))
    # The first section takes the turns that the others no longer want.
    return [pair % 3 if pair // 3 < rope.sections[pair % 3] else 0 for pair in pairs]


def inverse_frequencies(head_dim: int, rope: RopeConfig) -> Tensor:
    """Return radians a position of each pair of dimensions: (head_dim / 2,) float32.

    "linear" is position interpolation (Chen et al. 2023). "llama3" leaves the short wavelengths,
    divides the long ones by ``factor`` and blends between (Llama 3.1 model card and code).
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / rope.theta**exponents
    if rope.kind == "default":
        return frequencies
    if rope.kind == "linear":
        return frequencies / rope.factor
    turns = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    spread = rope.high_freq_factor - rope.low_freq_factor
    kept = ((turns - rope.low_freq_factor) / spread).clamp(0.0, 1.0)
    return frequencies * (kept + (1.0 - kept) / rope.factor)
