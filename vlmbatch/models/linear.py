"""Linear layers whose weights are fused from the checkpoint's and divided over ranks.

They can be built on the meta device. ``weight_slots`` tells where their checkpoint tensors go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from vlmbatch_kernels.linear import linear

from vlmbatch.models.parallel import ParallelContext, Share


@dataclass(frozen=True, slots=True)
class WeightSlot:
    """The place of one checkpoint tensor: ``target`` is a (view of a) parameter.

    ``share``: the part of dimension ``dim`` of the tensor that this rank takes.
    """

    target: Tensor
    share: Share | None = None
    dim: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole tensor in the checkpoint."""
        shape = list(self.target.shape)
        if self.share is not None:
            shape[self.dim] = self.share.total
        return tuple(shape)

    def load(self, tensor: Tensor) -> None:
        """Copy this rank's part of a checkpoint tensor, converting its dtype."""
        if self.share is not None:
            tensor = tensor.narrow(self.dim, self.share.start, self.share.count)
        self.target.copy_(tensor)


class Part(NamedTuple):
    """One of the checkpoint's projections within a column-parallel layer."""

    name: str
    share: Share


class ColumnLinear(nn.Module):
    """Projections of one input, stacked in one matrix; each rank holds its rows of each.

    The parts are named as the checkpoint has them, beside this module's own name.
    """

    def __init__(self, in_features: int, parts: tuple[Part, ...], bias: bool) -> None:
        super().__init__()
        rows = sum(part.share.count for part in parts)
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(rows, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)

    def weight_slots(self, path: str) -> Iterator[tuple[str, WeightSlot]]:
        parent = path.rpartition(".")[0]
        start = 0
        for name, share in self.parts:
            rows = slice(start, start + share.count)
            yield f"{parent}.{name}.weight", WeightSlot(self.weight[rows], share)
            if self.bias is not None:
                yield f"{parent}.{name}.bias", WeightSlot(self.bias[rows], share)
            start += share.count


class QKVLinear(ColumnLinear):
    """Query, key and value heads, in this order; a rank holds whole groups of query heads."""

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        bias: bool,
        parallel: ParallelContext,
    ) -> None:
        query = parallel.share(num_heads, head_dim)
        key_value = parallel.share(num_kv_heads, head_dim, repeat=True)
        self.num_heads = query.count // head_dim
        self.num_kv_heads = key_value.count // head_dim
        names = (("q_proj", query), ("k_proj", key_value), ("v_proj", key_value))
        super().__init__(hidden_size, tuple(Part(*part) for part in names), bias)


class GateUpLinear(ColumnLinear):
    """Gate and up projections of a gated feed-forward layer."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, bias: bool, parallel: ParallelContext
    ) -> None:
        share = parallel.share(intermediate_size)
        super().__init__(hidden_size, (Part("gate_proj", share), Part("up_proj", share)), bias)


class RowLinear(nn.Module):
    """A projection whose input is divided over the ranks; the partial outputs are summed."""

    def __init__(self, share: Share, out_features: int, bias: bool, parallel: ParallelContext):
        super().__init__()
        self.share = share
        self.parallel = parallel
        self.weight = nn.Parameter(torch.empty(out_features, share.count), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel.world_size == 1:
            return linear(x, self.weight, self.bias)
        out = self.parallel.all_reduce(linear(x, self.weight))
        return out if self.bias is None else out.add_(self.bias)

    def weight_slots(self, path: str) -> Iterator[tuple[str, WeightSlot]]:
        yield f"{path}.weight", WeightSlot(self.weight, self.share, dim=1)
        if self.bias is not None:
            yield f"{path}.bias", WeightSlot(self.bias)
