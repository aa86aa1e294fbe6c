"""Runs in FP8: what they say of themselves, and how right the sample models' answers stay."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fp8_checkpoints import Format, write_fp8
from held_out_rows import MAX_TOKENS, SAMPLES, HeldOut, as_on_a_gpu
from real_command import run
from sample_model import answer

from vlmbatch.config import EngineConfig

NUM_ROWS = {"llava": 60, "qwen": 44}
NUM_LOGITS, NUM_RUN, NUM_CUT_UP = 22, 10, 8  # rows
FP8 = EngineConfig(quantize="fp8")
FP8_KV = EngineConfig(kv_cache_dtype="fp8")
BOTH = EngineConfig(quantize="fp8", kv_cache_dtype="fp8")


@pytest.fixture(scope="module", params=["llava", "qwen"])
def held_out(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HeldOut:
    folder = tmp_path_factory.mktemp("held-out")
    held_out: HeldOut = getattr(HeldOut, request.param)(NUM_ROWS[request.param], folder)
    held_out.encode_once()
    return held_out


def test_accuracy_is_at_most_a_point_lower(held_out: HeldOut) -> None:
    exact = held_out.accuracy(EngineConfig())
    assert exact >= 0.95
    with as_on_a_gpu():
        for settings in (FP8, FP8_KV, BOTH):
            assert held_out.accuracy(settings) >= exact - 0.01


def test_logits_are_near_those_of_float32(held_out: HeldOut) -> None:
    exact = held_out.first_logits(EngineConfig(), NUM_LOGITS)
    plain = [held_out.first_logits(settings, NUM_LOGITS) for settings in (FP8_KV, FP8)]
    with as_on_a_gpu():
        multiplied = [held_out.first_logits(settings, NUM_LOGITS) for settings in (FP8, BOTH)]
    cache, weights, activations, everything = (
        float((logits - exact).norm() / exact.norm()) for logits in (*plain, *multiplied)
    )
    assert 0.01 < cache < 0.04
    assert 0.01 < weights < 0.04
    assert weights < activations < 0.06
    assert everything < 0.06


def test_answers_do_not_depend_on_how_the_work_is_cut_up(held_out: HeldOut) -> None:
    """What attends reads e4m3 whether it is of this step or of one before."""
    requests = held_out.requests[:NUM_CUT_UP]
    twice = [*requests, *requests]

    def tokens(**options: Any) -> list[list[int]]:
        return answer(held_out.engine(replace(FP8_KV, **options)), twice)[0]

    expected = tokens()
    assert expected[:NUM_CUT_UP] == expected[NUM_CUT_UP:], "the second found the first's blocks"
    assert tokens(max_batched_tokens=48) == expected
    assert tokens(max_batched_tokens=300, kv_cache_tokens=320) == expected, "preempted"
    assert tokens(max_num_seqs=3, enable_prefix_caching=False) == expected


@pytest.mark.parametrize("kind", ["compressed-tensors", "fp8"])
def test_published_formats_are_answered_and_named(
    held_out: HeldOut, kind: Format, tmp_path: Path
) -> None:
    model, _ = write_fp8(held_out.model, tmp_path, kind)
    output, summary = tmp_path / "a.parquet", tmp_path / "summary.json"
    command = ["run", held_out.manifest, "-m", model, "-o", output, "--max-tokens", MAX_TOKENS]
    assert run(*command, "--limit", NUM_RUN, "--summary-json", summary).returncode == 0
    texts = pq.read_table(output)["text"].to_pylist()
    pairs = zip(texts, held_out.expected[:NUM_RUN], strict=True)
    assert sum(a == b for a, b in pairs) >= 0.95 * NUM_RUN
    scales = "a block of 128x128" if kind == "fp8" else "an output channel"
    said = f"linear layers of the decoder in FP8 (e4m3), a scale {scales}, as the checkpoint has"
    metadata = pq.read_schema(output).metadata
    assert metadata[b"vlmbatch.quantization"].decode().startswith(said)
    assert json.loads(summary.read_text())["quantization"].startswith(said)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    path = tmp_path / "m.jsonl"
    shutil.copytree(SAMPLES / "images", tmp_path / "images")
    lines = (SAMPLES / "manifest.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    return path


def test_a_quantized_run_is_another_run(manifest: Path, tmp_path: Path) -> None:
    model, output = SAMPLES / "tiny-llava", tmp_path / "a.parquet"
    command = ["run", manifest, "-m", model, "-o", output]
    done = run(*command, "--quantize", "fp8", "--summary-json", tmp_path / "s.json")
    assert done.returncode == 0
    layers = "linear layers of the decoder in FP8 (e4m3)"
    said = f"{layers}, a scale an output channel, by --quantize fp8"
    assert said in done.stderr
    assert pq.read_schema(output).metadata[b"vlmbatch.quantization"].decode() == said
    assert json.loads((tmp_path / "s.json").read_text())["quantization"] == said
    refused = run(*command)
    assert refused.returncode == 2
    assert "quantize: " in refused.stderr
    assert run(*command, "--quantize", "fp8").returncode == 0


def test_a_run_with_keys_and_values_in_fp8_is_another_run(manifest: Path, tmp_path: Path) -> None:
    model, output = SAMPLES / "tiny-llava", tmp_path / "a.parquet"
    command = ["run", manifest, "-m", model, "-o", output]
    options = ["--kv-cache-dtype", "fp8", "--summary-json", tmp_path / "s.json"]
    done = run(*command, *options)
    assert done.returncode == 0
    said = "KV cache in FP8 (e4m3), a scale a layer and KV head"
    assert said in done.stderr
    assert pq.read_schema(output).metadata[b"vlmbatch.quantization"].decode() == said
    assert json.loads((tmp_path / "s.json").read_text())["quantization"] == said
    refused = run(*command)
    assert refused.returncode == 2
    assert "kv_cache_dtype: " in refused.stderr
    done = run(*command, *options, "--quantize", "fp8", "--overwrite")
    assert done.returncode == 0
    linear = "linear layers of the decoder in FP8 (e4m3), a scale an output channel"
    assert json.loads((tmp_path / "s.json").read_text())["quantization"].startswith(linear)
    assert json.loads((tmp_path / "s.json").read_text())["quantization"].endswith(f"; {said}")


def test_without_the_option_nothing_is_said(manifest: Path, tmp_path: Path) -> None:
    output, summary = tmp_path / "a.parquet", tmp_path / "s.json"
    done = run(
        "run", manifest, "-m", SAMPLES / "tiny-llava", "-o", output, "--summary-json", summary
    )
    assert done.returncode == 0 and "FP8" not in done.stderr
    assert b"vlmbatch.quantization" not in pq.read_schema(output).metadata
    assert "quantization" not in json.loads(summary.read_text())


def test_quantized_weights_are_not_quantized_again(manifest: Path, tmp_path: Path) -> None:
    quantized, _ = write_fp8(SAMPLES / "tiny-llava", tmp_path, "fp8")
    done = run("run", manifest, "-m", quantized, "-o", "-", "--quantize", "fp8")
    assert done.returncode == 2
    assert "--quantize fp8: the checkpoint has linear layers of the decoder in FP8" in done.stderr


def test_transformers_does_not_quantize(manifest: Path) -> None:
    command = ["run", manifest, "-m", SAMPLES / "tiny-llava", "-o", "-"]
    done = run(*command, "--engine", "transformers", "--quantize", "fp8")
    assert done.returncode == 2
    assert "--quantize fp8 cannot be used here" in done.stderr
