"""The weight of a linear layer in e4m3, see ``vlmbatch_kernels.fp8_linear``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from vlmbatch_kernels.fp8_linear import (
    BLOCK,
    block_linear,
    channel_linear,
    dequantize,
    multiplies,
)
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.quantized_rows import E4M3, QuantizedRows, quantize_rows

from vlmbatch.errors import ConfigError
from vlmbatch.models.parallel import Share
from vlmbatch.models.quantization import Fp8Config
from vlmbatch.models.weight_slot import WeightSlot


class Fp8Weight(nn.Module):
    """One matrix (N, K), stacked from ``parts`` rows of the checkpoint's each, and its scales.

    Blocks begin anew with each part: ``scales`` are (N, 1), or (blocks of all parts, K / 128).
    """

    def __init__(self, parts: tuple[int, ...], in_features: int, config: Fp8Config) -> None:
        super().__init__()
        self.parts = parts
        self.config = config
        self.scale_rows = tuple(-(-rows // BLOCK) if config.blocks else rows for rows in parts)
        columns = -(-in_features // BLOCK) if config.blocks else 1
        values = torch.empty(sum(parts), in_features, dtype=E4M3)
        scales = torch.empty(sum(self.scale_rows), columns, dtype=torch.float32)
        self.values = nn.Parameter(values, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        sizes = (*parts, in_features)
        self.is_even = not config.blocks or all(size % BLOCK == 0 for size in sizes)

    @property
    def group(self) -> int | None:
        """Columns of activations that share a scale; None: all of a row."""
        return BLOCK if self.config.blocks else None

    def takes_rows(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Whether activations of ``dtype`` are quantized for the product."""
        return self.is_even and multiplies(device, dtype, *self.values.shape)

    def forward(self, x: Tensor | QuantizedRows, bias: Tensor | None) -> Tensor:
        """(T, K) to (T, N)."""
        if isinstance(x, Tensor):
            if not self.takes_rows(x.device, x.dtype):
                return linear(x, self.dequantized(x.dtype), bias)
            x = quantize_rows(x.contiguous(), self.group)
        product = block_linear if self.config.blocks else channel_linear
        return product(x, self.values, self.scales, bias)

    def dequantized(self, dtype: torch.dtype, part: int = 0) -> Tensor:
        """The matrix (N, K), from the ``part``-th part on."""
        parts = [dequantize(*each, dtype) for each in self._divided()[part:]]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def weight_slots(
        self, name: str, part: int, share: Share, dim: int
    ) -> Iterator[tuple[str, WeightSlot]]:
        """Slots of the ``part``-th weight, the checkpoint's ``name``, divided along ``dim``.

        Raises:
            ConfigError: ranks would divide a block.
        """
        values, scales = self._divided()[part]
        if self.config.scale_name is None:
            yield f"{name}.weight", WeightSlot(values, share, dim, row_scales=scales)
            return
        yield f"{name}.weight", WeightSlot(values, share, dim)
        scale_share = share if dim == 0 else None
        if self.config.blocks:
            scale_share = _blocks_of(share, name)
        slot = WeightSlot(scales, scale_share, dim, is_scale=True)
        yield f"{name}.{self.config.scale_name}", slot

    def _divided(self) -> list[tuple[Tensor, Tensor]]:
        """Values and scales of each part."""
        values = torch.split(self.values, list(self.parts))
        return list(zip(values, torch.split(self.scales, list(self.scale_rows)), strict=True))


def _blocks_of(share: Share, name: str) -> Share:
    """The part of a weight's blocks that belongs to ``share`` of its rows or columns."""
    total = -(-share.total // BLOCK)
    if share.count == share.total:
        return Share(total, 0, total)
    if share.start % BLOCK or share.count % BLOCK:
        raise ConfigError(
            f"{name}: {share.count} of {share.total} rows or columns are no whole blocks of "
            f"{BLOCK}, which share a scale; choose fewer devices"
        )
    return Share(total, share.start // BLOCK, share.count // BLOCK)
