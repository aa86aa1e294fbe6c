"""How processes that divide a model meet, and make sure that they divide the same one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from vlmbatch.engine.rank import Rank
from vlmbatch.errors import ConfigError
from vlmbatch.models.parallel import ParallelContext

# Ranks of one machine talk through shared memory, the GPUs' links and this, never a network.
_INTERFACE = "lo"
# A rank that ends ends the others (see ``Followers``); weights may take long to load for one alone.
_TIMEOUT = timedelta(hours=2)


def join(rank: Rank, device: torch.device) -> ParallelContext:
    """Meet the other ranks: over NCCL on GPUs, of which each process sees its own; gloo on a CPU.

    It waits for all of them.
    """
    for library in ("NCCL", "GLOO"):
        os.environ.setdefault(f"{library}_SOCKET_IFNAME", _INTERFACE)
    on_gpu = device.type == "cuda"
    dist.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=FileStore(rank.store, rank.count),
        rank=rank.index,
        world_size=rank.count,
        timeout=_TIMEOUT,
        device_id=torch.device("cuda", torch.cuda.current_device()) if on_gpu else None,
    )
    return ParallelContext(rank.index, rank.count)


def check_agreement(parallel: ParallelContext, facts: Mapping[str, str]) -> None:
    """See that every rank has the same ``facts``, which are called by what they are of.

    Raises:
        ConfigError: on all ranks, where two of them differ: names both and what each has.
    """
    own = dict(facts)
    of_all: list[dict[str, str]] = [{} for _ in range(parallel.world_size)]
    dist.all_gather_object(of_all, own)
    first = of_all[0]
    for index, other in enumerate(of_all):
        for name in first.keys() | other.keys():
            here, there = first.get(name, "none"), other.get(name, "none")
            if here != there:
                raise ConfigError(
                    f"ranks cannot divide the model, as they differ in the {name}: {here} of rank "
                    f"0, {there} of rank {index}"
                )
