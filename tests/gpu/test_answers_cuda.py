"""The sample model's answers on the GPU: the same however steps are made up, cached or repeated."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from sample_model import MODEL, SampleModel, answer, make_rows, one_row_an_image

from vlmbatch.attention import make_backend
from vlmbatch.config import EngineConfig
from vlmbatch.engine import batch, shared_prefix
from vlmbatch.engine.shared_prefix import PrefixTiles

NUM_ROWS = 400
SETTINGS = {
    "as it is": {},
    "no graphs": {"cuda_graphs": False},
    "no prefix cache": {"enable_prefix_caching": False},
    "few sequences": {"max_num_seqs": 7},
    "short steps": {"max_batched_tokens": 40},
    "short steps without graphs or prefix cache": {
        "max_batched_tokens": 33,
        "cuda_graphs": False,
        "enable_prefix_caching": False,
    },
}
DRY_POOLS = {
    "as it is": {},
    "no graphs": {"cuda_graphs": False},
    "no prefix cache": {"enable_prefix_caching": False, "max_batched_tokens": 200},
}
EXACT = EngineConfig(device="cuda", dtype="float32", attention_backend="triton")
FAST = EngineConfig(device="cuda", dtype="bfloat16", attention_backend="flash-attn")


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> SampleModel:
    return SampleModel.open(make_rows(NUM_ROWS, 7007, tmp_path_factory.mktemp("rows")))


@pytest.fixture(scope="module")
def expected(sample: SampleModel) -> list[list[int]]:
    """Those of the CPU's engine."""
    tokens, errors = answer(sample.engine(EngineConfig(device="cpu")), sample.requests)
    assert not errors
    return tokens


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_float32_answers_are_the_cpus(
    settings: dict[str, int], sample: SampleModel, expected: list[list[int]]
) -> None:
    engine = sample.engine(replace(EXACT, **settings))
    assert answer(engine, sample.requests) == (expected, {})


@pytest.mark.parametrize("name", ["as it is", "no graphs", "short steps"])
def test_shared_prefixes_change_no_answer(
    name: str, sample: SampleModel, expected: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Questions about one image share its 100 tokens, fewer than would pay in earnest.

    Most answers end within three tokens, which leaves few steps of several rows of one image:
    here they continue past their end.
    """
    steps: list[PrefixTiles | None] = []

    def noted(*args: Any) -> PrefixTiles | None:
        steps.append(shared_prefix.find_shared_prefixes(*args))
        return steps[-1]

    monkeypatch.setattr(shared_prefix, "_MIN_TOKENS", 32)
    monkeypatch.setattr(shared_prefix, "_MIN_SAVED", 500)
    monkeypatch.setattr(batch, "find_shared_prefixes", noted)
    engine = sample.engine(replace(EXACT, **SETTINGS[name]))
    tokens, errors = answer(engine, sample.endless_requests(NUM_ROWS, max_tokens=48))
    assert not errors
    assert starts_of(tokens, expected) == expected
    assert sum(found is not None for found in steps) >= 40


@pytest.mark.parametrize("settings", DRY_POOLS.values(), ids=DRY_POOLS)
def test_a_pool_that_runs_dry_changes_no_answer(
    settings: dict[str, int], sample: SampleModel, expected: list[list[int]]
) -> None:
    """Answers continue past their end, so that sequences need a block that they lacked at first."""
    engine = sample.engine(replace(EXACT, kv_cache_tokens=800, **settings))
    tokens, errors = answer(engine, sample.endless_requests(60))
    assert not errors
    assert engine.scheduler.num_preemptions > 0
    assert starts_of(tokens, expected[:60]) == expected[:60]


def test_auto_in_float32_is_triton(sample: SampleModel, expected: list[list[int]]) -> None:
    engine = sample.engine(EngineConfig(device="cuda", dtype="float32"))
    assert make_backend("auto", "cuda", torch.float32).name == "triton"
    assert answer(engine, sample.requests) == (expected, {})


@pytest.mark.parametrize("backend", ["flash-attn", "triton"])
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_in_bfloat16_they_are_but_for_near_ties(
    settings: dict[str, int], backend: str, sample: SampleModel, expected: list[list[int]]
) -> None:
    engine = sample.engine(replace(FAST, attention_backend=backend, **settings))
    tokens, errors = answer(engine, sample.requests)
    assert not errors
    same = sum(ours == theirs for ours, theirs in zip(tokens, expected, strict=True))
    assert same / NUM_ROWS >= 0.97


def test_answers_are_repeated_by_the_same_engine(sample: SampleModel) -> None:
    """Graphs are captured by then and prefixes cached: no round changes another."""
    engine = sample.engine(EXACT)
    rounds = [answer(engine, requests) for requests in (sample.requests, sample.requests[::-1])]
    again = answer(sample.engine(EXACT), sample.requests)
    assert rounds[0] == again
    assert rounds[1][0][::-1] == again[0]


def test_2000_images_and_no_two_rows_mixed(tmp_path: Path) -> None:
    """Through the whole command: worker processes, both caches, each answer beside the CPU's."""
    manifest = one_row_an_image(make_rows(9000, 50_000, tmp_path), 2000)
    tables = []
    for device in ("cuda", "cpu"):
        output = tmp_path / f"{device}.parquet"
        command = [sys.executable, "-m", "vlmbatch", "run", str(manifest), "-m", str(MODEL)]
        command += ["-o", str(output), "-q", "--device", device, "--dtype", "float32"]
        subprocess.run([*command, "--image-workers", "4"], check=True)
        tables.append(pq.read_table(output))
    gpu, cpu = tables
    assert gpu["row_index"].to_pylist() == list(range(2000))
    assert gpu["id"].to_pylist() == cpu["id"].to_pylist()
    assert gpu["text"].to_pylist() == cpu["text"].to_pylist()
    answers = zip(gpu["text"].to_pylist(), gpu["answer"].to_pylist(), strict=True)
    assert sum(a == b for a, b in answers) >= 0.98 * 2000


def starts_of(tokens: list[list[int]], answers: list[list[int]]) -> list[list[int]]:
    """Of each row's tokens as many as its answer has."""
    return [ours[: len(theirs)] for ours, theirs in zip(tokens, answers, strict=True)]
