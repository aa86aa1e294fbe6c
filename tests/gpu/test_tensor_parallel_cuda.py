"""A model divided over two GPUs: the logits and answers of one, and one memory for both."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from rank_cases import FAMILIES, make_case
from rank_processes import Outcome, answers
from sample_model import make_rows
from test_several_gpus import start, texts
from worker_processes import ENGINE, wait_until, worker_pids

from vlmbatch.config import EngineConfig

NUM_ROWS = 400

pytestmark = [
    pytest.mark.whole_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Any]:
    folder = tmp_path_factory.mktemp("ranks")
    engine = EngineConfig(
        device="cuda", dtype="float32", max_num_seqs=4, max_batched_tokens=40, cuda_graphs=False
    )
    cases = {name: make_case(name, folder / name, engine) for name in FAMILIES}
    return answers({1: cases, 2: cases}, folder)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_those_of_one_gpu(name: str, outcomes: Any) -> None:
    """The host is a step ahead: tokens that a step awaits come from the other GPU."""
    one: Outcome = outcomes[1, 0][name]
    first: Outcome = outcomes[2, 0][name]
    second: Outcome = outcomes[2, 1][name]
    assert first.tokens == second.tokens
    assert first.kv_cache_tokens == second.kv_cache_tokens
    # Towers and decoders of one GPU choose other kernels: by the sizes of their layers.
    torch.testing.assert_close(first.logits[0], one.logits[0], atol=1e-2, rtol=1e-2)


def texts_of(manifest: Path, output: Path, *options: str) -> list[str]:
    run = start(manifest, output, *options)
    assert run.wait(300) == 0
    return texts(output)


def test_answers_are_those_of_one_gpu_also_after_a_rank_was_killed(tmp_path: Path) -> None:
    manifest = make_rows(NUM_ROWS, 7007, tmp_path)
    one = texts_of(manifest, tmp_path / "one.parquet", "--gpus", "1")
    divided = texts_of(manifest, tmp_path / "divided.parquet", "--tensor-parallel", "2")
    differing = sum(a != b for a, b in zip(one, divided, strict=True))
    assert differing <= NUM_ROWS // 100, "sums over ranks are rounded otherwise"

    output = tmp_path / "killed.parquet"
    run = start(manifest, output, "--tensor-parallel", "2")

    def followers() -> set[int]:
        first = worker_pids(run.pid, ENGINE)
        return set().union(*(worker_pids(pid, ENGINE) for pid in first))

    wait_until(lambda: len(followers()) == 1, 120)
    os.kill(min(followers()), signal.SIGKILL)
    assert run.wait(300) == 0
    assert pq.read_table(output, columns=["text"])["text"].to_pylist() == divided
