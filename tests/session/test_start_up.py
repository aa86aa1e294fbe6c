"""What starts while the weights are read, and what is left of it when they cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import environment
from model_folder import make_model_folder
from worker_processes import wait_until, worker_pids

import vlmbatch.jobs.run
from vlmbatch.config import FileDestination, ImageLoading, JobConfig, ManifestConfig, SessionConfig
from vlmbatch.errors import CheckpointError
from vlmbatch.stats import RunStats


def test_image_workers_start_beside_the_weights_and_end_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "<image>?", "image": "a.png"}) + "\n")
    model = str(make_model_folder(tmp_path / "model"))
    config = JobConfig(
        SessionConfig(model, image_loading=ImageLoading(workers=2)),
        ManifestConfig(str(tmp_path / "m.jsonl")),
        FileDestination(tmp_path / "out.parquet"),
    )

    def load_engine(config: object, inputs: object) -> None:
        wait_until(lambda: len(worker_pids(os.getpid())) == 2)
        raise CheckpointError("no such weights")

    monkeypatch.setattr(vlmbatch.jobs.run, "load_engine", load_engine)
    with pytest.raises(CheckpointError, match="no such weights"):
        vlmbatch.jobs.run.run(config, RunStats())
    assert worker_pids(os.getpid()) == set()


def test_a_run_imports_torch_and_no_more_of_it_than_it_needs() -> None:
    samples = Path(__file__).parents[2] / "samples"
    arguments = [str(samples / "manifest.jsonl"), "-m", str(samples / "tiny-llava"), "-o", "-"]
    code = f"""
import sys, torch
before = set(sys.modules)
from vlmbatch.cli import main
assert main(["run", *{arguments!r}, "--limit=1", "-q", "--image-workers=0"]) == 0
print(*sorted({{name.partition(".")[0] for name in set(sys.modules) - before}}), file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert {"transformers", "sympy"}.isdisjoint(done.stderr.split())
    assert "vlmbatch" in done.stderr.split()
