"""An engine on each of two GPUs: the answers of one, and no row lost with an engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from sample_model import MODEL, make_rows
from worker_processes import ENGINE, wait_until, worker_pids

NUM_ROWS = 400

pytestmark = [
    pytest.mark.whole_gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs"),
]


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_rows(NUM_ROWS, 7007, tmp_path_factory.mktemp("rows"))


def start(
    manifest: Path, output: Path, *options: str, what: str = "run"
) -> subprocess.Popen[bytes]:
    """With all GPUs of the machine in sight, of which ``options`` may name some."""
    command = [sys.executable, "-m", "vlmbatch", what, str(manifest), "-m", str(MODEL)]
    command += ["-o", str(output), "--dtype", "float32", "--attention-backend", "triton"]
    summary = str(output.with_suffix(".json"))
    variables = {name: os.environ[name] for name in os.environ if name != "CUDA_VISIBLE_DEVICES"}
    return subprocess.Popen([*command, "--summary-json", summary, "-q", *options], env=variables)


def figures(output: Path) -> Any:
    return json.loads(output.with_suffix(".json").read_text())


def texts(output: Path) -> list[str]:
    answers: list[str] = pq.read_table(output, columns=["text"])["text"].to_pylist()
    return answers


@pytest.fixture(scope="module")
def of_one(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    output = tmp_path_factory.mktemp("one") / "one.parquet"
    assert start(manifest, output, "--gpus", "1").wait(300) == 0
    assert "engines" not in figures(output)
    return texts(output)


@pytest.mark.parametrize("options", [(), ("--gpus", "2"), ("--gpus", "1,0")])
def test_answers_are_those_of_one(
    manifest: Path, of_one: list[str], tmp_path: Path, options: tuple[str, ...]
) -> None:
    output = tmp_path / "two.parquet"
    assert start(manifest, output, *options).wait(300) == 0
    assert texts(output) == of_one
    shares = [share["rows"] for share in figures(output)["engines"].values()]
    assert len(shares) >= 2 and min(shares) > NUM_ROWS // len(shares) // 4


def test_features_are_the_bytes_of_one(manifest: Path, tmp_path: Path) -> None:
    stored = []
    for gpus in ("1", "2"):
        output = tmp_path / gpus
        assert start(manifest, output, "--gpus", gpus, what="features").wait(300) == 0
        files = output.rglob("*.safetensors")
        stored.append({path.name: path.read_bytes() for path in files})
    assert stored[0] and stored[0] == stored[1]
    # One may be done before the other is loaded.
    shares = figures(tmp_path / "2")["engines"].values()
    assert len(shares) == 2 and sum(share["images"] for share in shares) >= len(stored[0])


def test_an_engine_that_is_killed_costs_no_row(
    manifest: Path, of_one: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "killed.parquet"
    run = start(manifest, output, "--gpus", "2")
    wait_until(lambda: len(worker_pids(run.pid, ENGINE)) == 2, 120)
    os.kill(min(worker_pids(run.pid, ENGINE)), signal.SIGKILL)
    assert run.wait(300) == 0
    assert texts(output) == of_one
