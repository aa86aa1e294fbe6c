"""Ranks that divide models among processes: ``main``, given a folder.

``FOLDER/cases`` holds what they answer; ``FOLDER/COUNT-RANK`` what each came to. Torch is imported
once, before the ranks are forked.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from vlmbatch.config import EngineConfig
from vlmbatch.engine.loading import build_engine
from vlmbatch.engine.process_group import check_agreement
from vlmbatch.engine.rank import ALONE, Rank
from vlmbatch.errors import VlmbatchError
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.family import Processor
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.processes import anonymous_file
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.replica import Completion
from vlmbatch.types import Request

COUNTS = (1, 2, 4)


@dataclass
class Case:
    folder: Path
    model: ModelConfig
    processor: Processor
    engine: EngineConfig
    requests: list[Request]


@dataclass
class Outcome:
    """``logits``: (n, V) of each step, of rank 0 alone. ``kv_cache``: numbers a token takes."""

    tokens: dict[int, tuple[int, ...]]
    logits: list[Tensor]
    cached_tokens: int
    preemptions: int
    kv_cache: int


def answer(case: Case, rank: Rank) -> Outcome:
    engine = build_engine(case.folder, case.model, case.engine, case.processor, rank=rank)
    model = engine.runner._model
    logits: list[Tensor] = []
    compute = model.compute_logits

    def recording(hidden: Tensor) -> Tensor:
        logits.append(compute(hidden))
        return logits[-1]

    model.compute_logits = recording  # type: ignore[method-assign]
    replica = LocalReplica(engine, case.processor.tokenizer)
    for request in case.requests:
        replica.submit(request)
    tokens = {}
    while replica.num_unfinished:
        for event in replica.poll():
            assert isinstance(event, Completion), event
            tokens[event.index] = event.token_ids
    status = replica.status
    layers = engine.runner._kv_cache.layers
    kv_cache = sum(layer.key[0].numel() + layer.value[0].numel() for layer in layers)
    return Outcome(tokens, logits, status.cached_tokens, status.preemptions, kv_cache)


def refusal(parallel: ParallelContext) -> str:
    """What ranks are told of which one has another model."""
    facts = {"weights": "2 files"} | ({"device": "H100"} if parallel.rank else {"device": "H200"})
    try:
        check_agreement(parallel, facts)
    except VlmbatchError as error:
        return str(error)
    return "none"


def _rank(cases: dict[str, Case], stores: list[str], index: int, count: int, to: Path) -> None:
    torch.set_num_threads(1)
    made: dict[str, Outcome | str] = {}
    for (name, case), store in zip(cases.items(), stores, strict=True):
        if count == 1:
            made[name] = answer(case, ALONE)
            continue
        made[name] = answer(case, Rank(index, count, store))
        made["refusal"] = refusal(ParallelContext(index, count))
        torch.distributed.destroy_process_group()
    (to / f"{count}-{index}").write_bytes(pickle.dumps(made))


def _forked(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    except BaseException:  # noqa: BLE001  a fork never returns
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)


def main() -> None:
    folder = Path(sys.argv[1])
    cases: dict[str, Case] = pickle.loads((folder / "cases").read_bytes())
    for count in COUNTS:
        stores = [f"/proc/{os.getpid()}/fd/{anonymous_file(name)}" for name in cases]
        ranks = [partial(_rank, cases, stores, index, count, folder) for index in range(count)]
        left = {_forked(rank) for rank in ranks}
        while left:
            pid, status = os.wait()
            left.remove(pid)
            if status:
                for other in left:
                    os.kill(other, signal.SIGKILL)
                sys.exit(1)
