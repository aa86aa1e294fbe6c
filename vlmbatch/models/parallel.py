"""What layers know of the other devices that hold the rest of their weights."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from vlmbatch.errors import ConfigError
from vlmbatch.models.text_config import TextConfig


@dataclass(frozen=True, slots=True)
class Share:
    """The ``count`` of ``total`` rows or columns from ``start`` that one rank holds."""

    total: int
    start: int
    count: int


@dataclass(frozen=True, slots=True)
class ParallelContext:
    """Tensor parallelism (Shoeybi et al. 2019): this process's place among ``world_size``.

    Heads and feed-forward columns are divided; token embedding and head are whole on every rank.
    """

    rank: int = 0
    world_size: int = 1

    def share(self, groups: int, size: int = 1, *, repeat: bool = False) -> Share:
        """Split ``groups`` of ``size`` rows evenly; with ``repeat``, ranks may hold the same one.

        Raises:
            ConfigError: the groups cannot be divided over the ranks.
        """
        if groups % self.world_size == 0:
            count = groups // self.world_size * size
            return Share(groups * size, self.rank * count, count)
        if repeat and self.world_size % groups == 0:
            group = self.rank // (self.world_size // groups)
            return Share(groups * size, group * size, size)
        raise ConfigError(
            f"{groups} heads or columns cannot be divided over {self.world_size} devices; "
            "choose a number of devices that divides them"
        )

    def all_reduce(self, partial: Tensor) -> Tensor:
        """Sum ``partial`` over the ranks, in place. Call it only where there are several."""
        dist.all_reduce(partial)
        return partial

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Overwrite ``tensor`` with that of rank 0, of the same shape and dtype."""
        dist.broadcast(tensor, src=0)
        return tensor

    def least(self, number: int, device: torch.device) -> int:
        """The least of what the ranks give; ``device``: this rank's."""
        if self.world_size == 1:
            return number
        numbers = torch.tensor([number], device=device)
        dist.all_reduce(numbers, op=dist.ReduceOp.MIN)
        return int(numbers.item())


SINGLE_DEVICE = ParallelContext()


def own_heads(text: TextConfig, parallel: ParallelContext) -> TextConfig:
    """``text`` with the numbers of heads that a rank has: those that its KV cache holds."""
    return replace(
        text,
        num_heads=parallel.share(text.num_heads).count,
        num_kv_heads=parallel.share(text.num_kv_heads, repeat=True).count,
    )
