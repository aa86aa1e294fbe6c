"""What starts while the weights are read, and what is left of it when they cannot be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from command_line import environment
from model_folder import make_model_folder
from worker_processes import wait_until, worker_pids

import vlmbatch.jobs.row_feed
import vlmbatch.jobs.run
import vlmbatch.session.replica
from vlmbatch.config import FileDestination, ImageLoading, JobConfig, ManifestConfig, SessionConfig
from vlmbatch.errors import CheckpointError
from vlmbatch.stages.prepare import start_preparing
from vlmbatch.stats import RunStats


def test_rows_are_prepared_beside_the_weights_and_given_up_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(threading.enumerate())
    prepared = threading.Event()
    (tmp_path / "m.jsonl").write_text(json.dumps({"prompt": "<image>?", "image": "a.png"}) + "\n")
    model = str(make_model_folder(tmp_path / "model"))
    config = JobConfig(
        SessionConfig(model, image_loading=ImageLoading(workers=2)),
        ManifestConfig(str(tmp_path / "m.jsonl")),
        FileDestination(tmp_path / "out.parquet"),
    )

    def prepare(*given: Any, **more: Any) -> object:
        prepared.set()
        return start_preparing(*given, **more)

    monkeypatch.setattr(vlmbatch.jobs.row_feed, "start_preparing", prepare)

    def load_engine(config: object, inputs: object) -> None:
        wait_until(lambda: len(worker_pids(os.getpid())) == 2)
        assert prepared.wait(10)
        raise CheckpointError("no such weights")

    monkeypatch.setattr(vlmbatch.session.replica, "load_engine", load_engine)
    with pytest.raises(CheckpointError, match="no such weights"):
        vlmbatch.jobs.run.run(config, RunStats())
    assert worker_pids(os.getpid()) == set()
    assert set(threading.enumerate()) <= before


def in_a_fresh_process(code: str, *options: str) -> set[str]:
    """Run ``code``, which may call ``answer()``: a row by the sample model; what it prints."""
    samples = Path(__file__).parents[2] / "samples"
    arguments = [str(samples / "manifest.jsonl"), "-m", str(samples / "tiny-llava"), "-o", "-"]
    head = f"""
import sys
from vlmbatch.cli import main

def answer():
    assert main(["run", *{arguments!r}, "--limit=1", "-q", *{options!r}]) == 0

def say(*words):
    print(*words, file=sys.stderr)
"""
    command = [sys.executable, "-c", head + code]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_a_plain_run_imports_nothing_of_what_others_need() -> None:
    """Of chats, of transformers, of the server, of what is fetched; and no tables are computed."""
    imported = in_a_fresh_process("answer(); say(*sys.modules)", "--image-workers=0")
    assert {"pyarrow.parquet", "tokenizers", "torch"} <= imported
    assert imported.isdisjoint(
        {
            *("jinja2", "vlmbatch.models.chat", "vlmbatch.models.template_sandbox"),
            *("transformers", "vlmbatch.hf.processor", "vlmbatch.hf.replica"),
            *("huggingface_hub", "vlmbatch.images.fetch", "httpcore", "fsspec", "llguidance"),
            *("starlette", "uvicorn", "vlmbatch.serve.server", "vlmbatch.bench.bench"),
            *("pyarrow.compute", "pyarrow.dataset", "pandas", "multiprocessing.pool"),
            *("triton", "torchvision", "sympy", "torch._dynamo", "torch._inductor"),
        }
    )


@pytest.mark.parametrize(
    ("driver", "options", "torch"),
    [
        (False, [], "unloaded"),
        (True, ["--device=cpu"], "unloaded"),
        (True, [], "loaded"),  # it says how many workers there are to be
    ],
)
def test_image_workers_do_not_wait_for_torch_on_a_cpu(
    driver: bool, options: list[str], torch: str
) -> None:
    code = f"""
import os
import vlmbatch.session.load as load

def opened(*arguments):
    say("loaded" if "torch" in sys.modules else "unloaded")
    os._exit(0)  # all that is asked

load.open_images = opened
load.may_have_cuda = lambda: {driver}
answer()
"""
    assert in_a_fresh_process(code, *options) == {torch}
