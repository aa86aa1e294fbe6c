"""``vlmbatch plan``: the same counts as a run, without a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import call
from sample_model import MODEL, ROOT

from vlmbatch.manifest.sample import sampled_rows
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.choices import ChoiceTree

MANIFEST = ROOT / "samples/manifest.jsonl"


def planned(capfd: pytest.CaptureFixture[str], status: int, *options: Any) -> Any:
    assert call(["plan", *options, "-m", MODEL, "--json", "-q"]) == status
    return json.loads(capfd.readouterr().out)


def test_counts_are_those_of_a_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary = tmp_path / "s.json"
    run = ["run", MANIFEST, "-m", MODEL, "-o", tmp_path / "o.parquet", "--ignore-eos", "-q"]
    assert call([*run, "--max-tokens", 5, "--limit", 20, "--summary-json", summary]) == 1
    capfd.readouterr()
    figures = json.loads(summary.read_text())
    found = planned(capfd, 1, MANIFEST, "--max-tokens", 5, "--limit", 20)
    assert found["rows"] == 20
    # Headers alone are read: what is wrong further on is found by the run, or by validate.
    by_header = {k: v for k, v in figures["errors_by_code"].items() if k != "image_unreadable"}
    assert found["errors"] == by_header
    unreadable = figures["errors_by_code"]["image_unreadable"]
    assert found["generated_tokens"] == figures["completion_tokens"] + 5 * unreadable
    assert found["image_tokens"] == figures["image_tokens"] + 100 * unreadable


def test_no_answer_is_longer_than_the_context_that_is_asked_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"prompt": "USER: word ASSISTANT:"}) + "\n")
    found = planned(capfd, 0, manifest, "--max-model-len", 50)
    assert found["prompt_tokens"] + found["generated_tokens"] == found["context"] == 50


def test_a_sample_stands_for_the_whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.jsonl"
    rows = [{"prompt": "USER: word ASSISTANT:", "max_tokens": 9} for _ in range(400)]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    whole = planned(capfd, 0, manifest, "--gpu", "h100,a10", "--price-per-hour", "3.6")
    part = planned(capfd, 0, manifest, "--sample", 40, "--gpu", "h100,a10", "--price-per-hour", 3.6)
    assert len(sampled_rows(400, 40, 0)) == part["rows_looked_at"] == 40
    assert part["rows"] == whole["rows"] == 400
    assert [gpu["seconds"] for gpu in part["gpus"]] == pytest.approx(
        [gpu["seconds"] for gpu in whole["gpus"]]
    )
    for gpu in whole["gpus"]:
        assert gpu["cost"] == pytest.approx(gpu["seconds"] / 1000)
    assert whole["generated_tokens"] == 9 * 400


def test_classes_and_several_answers_are_known(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"prompt": "USER: word ASSISTANT:", "max_tokens": 9}) + "\n")
    assert planned(capfd, 0, manifest, "--n", 3)["generated_tokens"] == 27
    classes = ["red square", "red circle", "blue"]
    tree = ChoiceTree.of(classes, Tokenizer.load(MODEL), (), 0)
    scored = len(tree.branches())
    assert scored > 1
    options = ["--choices", ",".join(classes)]
    assert planned(capfd, 0, manifest, *options)["generated_tokens"] == scored
    assert call(["plan", manifest, "-m", MODEL, *options]) == 0
    assert f"{scored} scored for classes ({scored} a row)" in capfd.readouterr().out


def test_memory_follows_the_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(json.dumps({"prompt": "word"}) + "\n")
    plain = planned(capfd, 0, manifest)
    files = sum(path.stat().st_size for path in MODEL.glob("*.safetensors"))
    assert plain["weight_bytes"] == files
    double = planned(capfd, 0, manifest, "--dtype", "float32")["weight_bytes"]
    half = planned(capfd, 0, manifest, "--dtype", "bfloat16")["weight_bytes"]
    assert double == pytest.approx(2 * half, rel=0.01) and half <= files <= double * 1.01
    assert planned(capfd, 0, manifest, "--quantize", "fp8")["weight_bytes"] < files
    few = planned(capfd, 0, manifest, "--kv-cache-tokens", 700, "--gpu", "h100")["gpus"][0]
    assert few["kv_cache_tokens"] == 700 and few["seconds"] is not None
    many = planned(capfd, 0, manifest, "--kv-cache-tokens", 10**12, "--gpu", "h100")["gpus"][0]
    assert many["seconds"] is None and many["kv_cache_tokens"] < 10**12


def test_what_is_too_long_or_behind_a_url(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = tmp_path / "m.jsonl"
    rows = [
        {"prompt": "USER: word ASSISTANT:"},
        {"prompt": "word " * 1000},
        {"prompt": "USER: <image> ASSISTANT:", "image": "https://images.example.org/a.npy"},
    ]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--allow-domain", "images.example.org", "--image-input-type", "image_features"]
    found = planned(capfd, 1, manifest, *options)
    assert (found["over_context"], found["unknown"]) == (1, 1)
    assert found["errors"] == {"prompt_too_long": 1}
    assert call(["plan", manifest, "-m", MODEL, *options]) == 1
    text = capfd.readouterr().out
    assert "1 rows, for a context of 512 tokens" in text
    assert "1 rows with features behind URLs" in text


def test_an_empty_manifest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("")
    found = planned(capfd, 0, manifest)
    assert (found["rows"], found["gpus"][0]["rows_per_second"]) == (0, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--gpu", "h900"], "no GPU 'h900' is known; there are: h100, h200"),
        (["--gpu", ""], "gpu must not be empty"),
        (["--answer-tokens", "0"], "must be at least 1, got 0"),
        (["--price-per-hour", "-1"], "must be at least 0"),
        (["--sample", "0"], "must be at least 1, got 0"),
    ],
)
def test_refused(options: list[str], message: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["plan", MANIFEST, "-m", MODEL, *options]) == 2
    assert message in capfd.readouterr().err
