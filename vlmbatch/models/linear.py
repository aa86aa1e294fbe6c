"""Linear layers whose weights are fused from the checkpoint's and divided over ranks.

They can be built on the meta device. ``weight_slots`` tells where their checkpoint tensors go.
A layer that is quantized has an ``fp8`` in the place of its ``weight``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.quantized_rows import QuantizedRows

from vlmbatch.errors import CheckpointError
from vlmbatch.models.fp8 import Fp8Weight
from vlmbatch.models.parallel import ParallelContext, Share
from vlmbatch.models.quantization import Fp8Config
from vlmbatch.models.weight_slot import WeightSlot


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
        self.fp8: Fp8Weight | None = None
        self.weight = nn.Parameter(torch.empty(rows, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(rows), requires_grad=False) if bias else None

    def quantize(self, config: Fp8Config) -> None:
        """Have the weight in e4m3, before there is memory for it."""
        rows = tuple(part.share.count for part in self.parts)
        self.fp8 = Fp8Weight(rows, self.weight.shape[1], config)
        del self.weight

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        if self.fp8 is not None:
            out: Tensor = self.fp8(x, self.bias)
            return out
        assert isinstance(x, Tensor)
        return linear(x, self.weight, self.bias)

    def rows_from(self, part: int) -> tuple[Tensor, Tensor | None]:
        """Rows of the ``part``-th projection and those behind it, dequantized, and their bias."""
        first = sum(each.share.count for each in self.parts[:part])
        bias = None if self.bias is None else self.bias[first:]
        if self.fp8 is not None:
            return self.fp8.dequantized(torch.float32, part), bias
        return self.weight[first:], bias

    def checkpoint_names(self, path: str) -> list[str]:
        """The layers that the checkpoint has in the place of this one, which we call ``path``."""
        parent = path.rpartition(".")[0]
        return [f"{parent}.{part.name}" for part in self.parts]

    def weight_slots(self, path: str) -> Iterator[tuple[str, WeightSlot]]:
        start = 0
        for index, name in enumerate(self.checkpoint_names(path)):
            share = self.parts[index].share
            rows = slice(start, start + share.count)
            if self.fp8 is not None:
                yield from self.fp8.weight_slots(name, index, share, dim=0)
            else:
                yield f"{name}.weight", WeightSlot(self.weight[rows], share)
            if self.bias is not None:
                yield f"{name}.bias", WeightSlot(self.bias[rows], share)
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
        self.fp8: Fp8Weight | None = None
        self.weight = nn.Parameter(torch.empty(out_features, share.count), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    def quantize(self, config: Fp8Config) -> None:
        """Have the weight in e4m3, before there is memory for it."""
        self.fp8 = Fp8Weight((self.weight.shape[0],), self.weight.shape[1], config)
        del self.weight

    def forward(self, x: Tensor | QuantizedRows) -> Tensor:
        if self.parallel.world_size == 1:
            return self._product(x, self.bias)
        out = self.parallel.all_reduce(self._product(x, None))
        return out if self.bias is None else out.add_(self.bias)

    def _product(self, x: Tensor | QuantizedRows, bias: Tensor | None) -> Tensor:
        if self.fp8 is not None:
            out: Tensor = self.fp8(x, bias)
            return out
        assert isinstance(x, Tensor)
        return linear(x, self.weight, bias)

    def checkpoint_names(self, path: str) -> list[str]:
        """See ``ColumnLinear``."""
        return [path]

    def weight_slots(self, path: str) -> Iterator[tuple[str, WeightSlot]]:
        if self.fp8 is not None:
            yield from self.fp8.weight_slots(path, 0, self.share, dim=1)
        else:
            yield f"{path}.weight", WeightSlot(self.weight, self.share, dim=1)
        if self.bias is not None:
            yield f"{path}.bias", WeightSlot(self.bias)


def quantize_layers(decoder: nn.Module, path: str, config: Fp8Config) -> None:
    """Have the linear layers of ``decoder`` in e4m3 that ``config`` does not ignore.

    Raises:
        CheckpointError: of layers that are computed together it ignores only some.
    """
    for name, module in list(decoder.named_modules(prefix=path)):
        if not isinstance(module, (ColumnLinear, RowLinear)):
            continue
        names = module.checkpoint_names(name)
        ignored = [each for each in names if config.ignores(each)]
        if not ignored:
            module.quantize(config)
        elif len(ignored) < len(names):
            quantized = next(each for each in names if each not in ignored)
            raise CheckpointError(
                f"quantization_config: {ignored[0]} is ignored and {quantized} is not, which is "
                "unsupported: they are one product"
            )
