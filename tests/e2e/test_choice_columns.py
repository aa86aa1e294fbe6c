"""``--choices``: columns of the class, its confidence and all classes' probabilities."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from in_process import call

from vlmbatch import LLM, SamplingParams

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = SAMPLES / "tiny-llava"
ROW: dict[str, Any] = {
    "prompt": "USER: <image>\nWhat number is written? ASSISTANT:",
    "image": str(SAMPLES / "images/1001000001.jpg"),
}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(manifest: Path, output: Path, *options: object) -> int:
    return call(["run", manifest, "-m", MODEL, "-o", output, "-q", "--image-workers", 0, *options])


def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        ROW,
        ROW | {"choices": ["17", "9", "92"]},
        ROW | {"choices": "17"},
        ROW | {"choices": None},
        ROW | {"choices": []},
        ROW | {"choices": ["17, 92"]},
        ROW | {"choices": '["17", "9, 2"]'},
    ]
    manifest, output = write(tmp_path / "m.jsonl", rows), tmp_path / "out.parquet"
    assert run(manifest, output, "--choices", "17,29, 92") == 1
    first, own, bad, null, empty, whole, text = pq.read_table(output).to_pylist()
    assert [row["choice"] for row in (first, own, null)] == ["92"] * 3
    assert first["text"] == "92" and first["finish_reason"] == "stop"
    assert [each["choice"] for each in first["choices"]] == ["17", "29", "92"]
    assert [each["choice"] for each in own["choices"]] == ["17", "9", "92"]
    for row in (first, own):
        assert sum(each["probability"] for each in row["choices"]) == pytest.approx(1)
        assert row["confidence"] == row["choices"][2]["probability"] > 0.9
    assert bad["error_message"] == "choices must be from 2 to 256 classes, got 1"
    assert "choices is an empty list" in empty["error_message"] and empty["choice"] is None
    assert whole["error_message"] == bad["error_message"]
    assert [each["choice"] for each in text["choices"]] == ["17", "9, 2"]
    assert bad["choice"] is bad["confidence"] is bad["choices"] is None

    write(manifest, rows[::-1])
    assert run(manifest, output, "--choices", "17,29, 92", "--incremental") == 1
    assert pq.read_table(output)["choices"].to_pylist()[::-1][:2] == [
        first["choices"],
        own["choices"],
    ]
    assert run(manifest, output, "--choices", "17,92") == 2
    refused = tmp_path / "refused.parquet"
    assert run(manifest, refused, "--choices", "17,92", "--engine", "transformers") == 2
    assert "--choices cannot be used where transformers answers" in capsys.readouterr().err
    assert run(manifest, refused, "--choices", '[" 17", "92", "17"]') == 2
    assert "'17' has the same tokens as ' 17'" in capsys.readouterr().err
    assert not refused.exists()


def test_without_the_option_a_column_passes_through(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.jsonl", [{"prompt": "a", "choices": ["x", "y"]}])
    assert run(manifest, tmp_path / "out.parquet", "--max-tokens", 1) == 0
    assert pq.read_table(tmp_path / "out.parquet")["choices"].to_pylist() == [["x", "y"]]


def test_python() -> None:
    prompt = {"prompt": ROW["prompt"], "multi_modal_data": {"image": ROW["image"]}}
    with LLM(str(MODEL), image_workers=0) as llm:
        classes = SamplingParams(choices=["17", "92"])
        asked, plain = llm.generate([prompt, prompt], [classes, SamplingParams(max_tokens=1)])
    (output,) = asked.outputs
    assert output.choices is not None
    assert (output.text, list(output.choices)) == ("92", ["17", "92"])
    assert sum(output.choices.values()) == pytest.approx(1)
    assert plain.outputs[0].choices is None
