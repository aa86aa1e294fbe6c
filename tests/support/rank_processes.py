"""Ranks that divide models among processes: ``answers`` has them forked in a process of its own.

There torch is imported once, and a GPU is looked at by the ranks alone.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlmbatch.config import EngineConfig
from vlmbatch.engine.loading import build_engine
from vlmbatch.engine.process_group import check_agreement
from vlmbatch.engine.rank import ALONE, Rank
from vlmbatch.errors import VlmbatchError
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.parallel import ParallelContext
from vlmbatch.models.processor import Processor
from vlmbatch.processes import anonymous_file, search_path
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.replica import Completion
from vlmbatch.types import Request


@dataclass
class Case:
    folder: Path
    model: ModelConfig
    processor: Processor
    engine: EngineConfig
    requests: list[Request]


@dataclass
class Outcome:
    """``logits``: (n, V) of each step, of rank 0 alone. ``kv_cache``: numbers a token takes there.

    ``kv_cache_tokens``: that there is room for.
    """

    tokens: dict[int, tuple[int, ...]]
    logits: list[Tensor]
    cached_tokens: int
    preemptions: int
    kv_cache: int
    kv_cache_tokens: int


def answer(case: Case, rank: Rank) -> Outcome:
    engine = build_engine(case.folder, case.model, case.engine, case.processor, rank=rank)
    model = engine.runner._model
    logits: list[Tensor] = []
    compute = model.compute_logits

    def recording(hidden: Tensor) -> Tensor:
        computed = compute(hidden)
        logits.append(computed.cpu())
        return computed

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
    return Outcome(
        tokens,
        logits,
        status.cached_tokens,
        status.preemptions,
        kv_cache,
        engine.kv_cache_tokens,
    )


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
    os.environ["CUDA_VISIBLE_DEVICES"] = str(index)
    made: dict[str, Outcome | str | int] = {}
    on_gpu = any(case.engine.device == "cuda" for case in cases.values())
    for (name, case), store in zip(cases.items(), stores, strict=True):
        if count == 1:
            made[name] = answer(case, ALONE)
            continue
        made[name] = answer(case, Rank(index, count, store))
        parallel = ParallelContext(index, count)
        made["refusal"] = refusal(parallel)
        made["least"] = parallel.least(10 - index, torch.device("cuda" if on_gpu else "cpu"))
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
    """``FOLDER``: of the cases in a folder, by the number of ranks, what each of these came to."""
    folder = Path(sys.argv[1])
    by_count: dict[int, dict[str, Case]] = pickle.loads((folder / "cases").read_bytes())
    for count, cases in by_count.items():
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


def answers(
    by_count: dict[int, dict[str, Case]], folder: Path
) -> dict[tuple[int, int], dict[str, Any]]:
    """By the number of ranks, and the rank: the outcome of each case, "refusal" and "least"."""
    (folder / "cases").write_bytes(pickle.dumps(by_count))
    ranks = subprocess.run(
        [
            *(sys.executable, "-P", "-c", "from rank_processes import main; main()"),
            folder,
        ],
        env={**os.environ, "PYTHONPATH": search_path(), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
        timeout=240,
    )
    assert ranks.returncode == 0, ranks.stderr
    return {
        (count, rank): pickle.loads((folder / f"{count}-{rank}").read_bytes())
        for count in by_count
        for rank in range(count)
    }
