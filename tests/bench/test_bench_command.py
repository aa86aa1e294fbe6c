"""``vlmbatch bench`` as a program of its own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_command import FastCommands
from real_command import run
from s3_server import S3Server

from vlmbatch.bench.bench import _device_name
from vlmbatch.bench.engines import BenchEngines

SMALL_CONFIG = {
    "model_type": "llava",
    "image_token_index": 500,
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "llama",
        "vocab_size": 2000,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 256,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": 56,
        "patch_size": 14,
    },
}


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    return folder


def bench(temporary: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    variables["TMPDIR"] = str(temporary)
    return run("bench", "--device", "cpu", *arguments, variables=variables)


def test_the_sample_model(temporary: Path, tmp_path: Path) -> None:
    figures = tmp_path / "bench.json"
    arguments = ["--workloads", "vqa,classify", "--rows", "16", "--json", str(figures)]
    arguments.append("--json-answers")
    done = bench(temporary, *arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("tiny-llava: float32 on CPU, ")
    assert [line.split()[0] for line in lines[1:4]] == ["workload", "vqa", "classify"]
    assert "classify: warming up" in done.stderr
    written = json.loads(figures.read_text())
    assert written["json_answers"] is True
    measured = written["workloads"]
    assert list(measured) == ["vqa", "classify"]
    vqa, classify = measured["vqa"], measured["classify"]
    assert (vqa["rows"], vqa["images"], vqa["errors"]) == (16, 2, 0)
    assert (vqa["prompt_tokens"], vqa["max_tokens"]) == (117, 16)
    assert (classify["rows"], classify["images"], classify["prompt_tokens"]) == (16, 16, 124)
    for workload in measured.values():
        assert workload["seconds"] > 0
        assert workload["rows_per_second"] == pytest.approx(16 / workload["seconds"])
        assert 0 < workload["bounds"]["serial_share"] < 1
        assert workload["peak_rss"] > 50_000_000
    assert classify["cached_tokens"] == 0  # every image is new
    assert 14 * 80 < vqa["cached_tokens"] <= 14 * 101  # seven questions more about each of two
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("ranks", "named"),
    [
        ("1", "2 engines"),
        pytest.param("2", "2 engines of 2 ranks", marks=pytest.mark.soak),  # four processes
    ],
)
def test_several_engines_compute_an_image_once(temporary: Path, ranks: str, named: str) -> None:
    several = ["--replicas", "2", "--tensor-parallel", ranks, "--image-workers", "0"]
    done = bench(temporary, *several, "--workloads", "vqa", "--rows", "16", "--json", "-")
    assert done.returncode == 0, done.stderr
    assert f"tiny-llava: float32 on CPU, {named}, " in done.stderr
    figures = json.loads(done.stdout)
    vqa = figures["workloads"]["vqa"]
    assert (figures["num_engines"], vqa["rows"], vqa["errors"]) == (2, 16, 0)
    assert 14 * 80 < vqa["cached_tokens"] <= 14 * 101


def test_random_weights_and_start_of_a_process(
    temporary: Path, tmp_path: Path, s3: S3Server
) -> None:
    """With figures that go to a store."""
    s3.client.create_bucket(Bucket="figures")
    config = tmp_path / "config.json"
    config.write_text(json.dumps(SMALL_CONFIG))
    arguments = ["--model", str(config), "--random-weights", "--startup", "--image-workers", "0"]
    arguments += ["--workloads", "classify", "--rows", "3", "--json", "s3://figures/a/bench.json"]
    done = bench(temporary, *arguments, **s3.variables)
    assert done.returncode == 0, done.stderr
    figures = json.loads(s3.read("figures", "a/bench.json"))
    assert figures["random_weights"] is True
    assert figures["workloads"]["classify"]["prompt_tokens"] == 16 + 24
    assert all(0 < seconds < 100 for seconds in figures["process_start_seconds"])
    assert len(figures["process_start_seconds"]) == 2
    assert "from process start to the first row" in done.stdout
    process = figures["workloads"]["classify"]["process"]
    assert process["rows_per_second"] == pytest.approx(3 / process["answering"], rel=0.02)
    assert 0 < process["answering"] < process["seconds"]
    assert "as a whole `vlmbatch run` process" in " ".join(done.stdout.split())
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "ranks", "named"),
    [(1, 1, "CPU"), (1, 2, "CPU, 1 engine of 2 ranks"), (2, 2, "CPU, 2 engines of 2 ranks")],
)
def test_engines_are_named(number: int, ranks: int, named: str) -> None:
    device = torch.device("cpu")
    replica: Any = None
    engines = BenchEngines(replica, number, 0, (device,), ranks=ranks)
    assert _device_name(device, engines) == named


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workloads", "nap"], "no workload 'nap'"),
        (["--json", "no/such/folder.json"], "there is no folder"),
        (["--json", "s3://bucket"], "--json s3://bucket names a bucket: give a file in it"),
        (["--json", "https://example.org/a.json"], "web servers take no files"),
        (["--rows", "0"], "--rows"),
    ],
)
def test_refusals(
    commands: FastCommands, temporary: Path, arguments: list[str], message: str
) -> None:
    variables = {"TMPDIR": str(temporary)}
    command = commands.start("bench", "--device", "cpu", *arguments, variables=variables)
    assert command.wait() == 2
    assert message in command.stderr
    assert "Traceback" not in command.stderr
    assert list(temporary.iterdir()) == []
