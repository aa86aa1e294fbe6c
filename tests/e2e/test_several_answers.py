"""``--n``, ``--best-of-retries`` and ``--min-tokens`` in whole runs of the sample model."""

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
IMAGE = str(SAMPLES / "images/1001000001.jpg")
PROMPT = "USER: <image>\nWhat is to be seen? ASSISTANT:"
# The sample model is sure of all that it says, but for what a penalty takes from it.
SAMPLED = ("--temperature", 2, "--repetition-penalty", 50, "--ignore-eos", "--max-tokens", 12)
LOOPING = ("--best-of-retries", 2, "--ignore-eos", "--max-tokens", 80)


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(manifest: Path, output: Path, *options: object, status: int = 0) -> list[dict[str, Any]]:
    arguments = ["run", manifest, "-m", MODEL, "-o", output, "-q", "--image-workers", 0]
    assert call([*arguments, *options]) == status
    return [] if status == 2 else pq.read_table(output).to_pylist()


def rows_of(*more: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"prompt": PROMPT, "image": IMAGE, "seed": number} | row for number, row in enumerate(more)
    ]


def test_n(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write(
        tmp_path / "m.jsonl", rows_of({}, {"n": 2}, {"n": 1}, {"n": 0}, {"image": "no"})
    )
    output = tmp_path / "out.parquet"
    three, two, one, bad, failed = run(manifest, output, "--n", 3, *SAMPLED, status=1)
    for row, count in ((three, 3), (two, 2), (one, 1)):
        assert len(set(row["texts"])) == len(row["finish_reasons"]) == count
        assert row["text"] == row["texts"][0] and row["completion_tokens"] == 12 * count
    assert bad["error_message"] == "n must be from 1 to 128, got 0"
    assert bad["texts"] is failed["texts"] is None
    # What a row's answers are depends on nothing else.
    write(manifest, rows_of({}, {}, {"n": 5}))
    again = run(manifest, output, "--n", 3, *SAMPLED, "--incremental", "--max-num-seqs", 1)
    assert again[0]["texts"] == three["texts"]
    assert again[1]["texts"][:2] == two["texts"] and again[2]["texts"][0] == one["text"]
    passed = run(manifest, tmp_path / "plain.parquet", *SAMPLED)
    assert [row["text"] for row in passed] == [row["text"] for row in again]
    assert [row["n"] for row in passed] == [None, None, 5]

    for options, message in (
        (("--n", 3), "gives the same answer 3 times at --temperature 0"),
        (("--n", 3, "--temperature", 1, "--logprobs", 0), "--logprobs 0 contradict each other"),
        (("--n", 3, "--temperature", 1, "--write-text", tmp_path / "t"), "a row has one file"),
    ):
        run(manifest, tmp_path / "refused.parquet", *options, status=2)
        assert message in capsys.readouterr().err


def test_best_of_retries(tmp_path: Path) -> None:
    rows = rows_of({}, {"best_of_retries": 0}, {"max_tokens": 8})
    manifest = write(tmp_path / "m.jsonl", rows)
    output, summary = tmp_path / "out.parquet", tmp_path / "summary.json"
    found = run(manifest, output, *LOOPING, "--summary-json", summary)
    assert [(row["retries"], row["loops"]) for row in found] == [
        (2, True),
        (None, None),
        (0, False),
    ]
    figures = json.loads(summary.read_text())
    assert (figures["retried"], figures["looping"]) == (1, 1)
    write(manifest, rows[::-1])
    again = run(manifest, output, *LOOPING, "--incremental", "--max-num-seqs", 1)
    for name in ("text", "retries", "loops"):
        assert [row[name] for row in again] == [row[name] for row in found[::-1]]
    theirs = run(manifest, tmp_path / "hf.parquet", *LOOPING, "--engine", "transformers")
    assert [row["retries"] for row in theirs] == [0, None, 2]


def test_min_tokens(tmp_path: Path) -> None:
    rows = rows_of({}, {"min_tokens": 9}, {"min_tokens": 9, "stop": "star"}, {"min_tokens": 41})
    manifest = write(tmp_path / "m.jsonl", rows)
    for engine in ("vlmbatch", "transformers"):
        options = ("--max-tokens", 40, "--min-tokens", 25, "--stop", "92", "--engine", engine)
        early, own, stopped, bad = run(manifest, tmp_path / f"{engine}.parquet", *options, status=1)
        assert early["completion_tokens"] >= 25
        assert own["completion_tokens"] == 12 or own["completion_tokens"] >= 9
        assert stopped["completion_tokens"] >= 9
        message = "min_tokens must be from 0 to max_tokens, which is 40, got 41"
        assert bad["error_message"] == message


def test_a_batch_file(tmp_path: Path) -> None:
    body = {"prompt": "What?", "n": 2, "temperature": 2.0, "repetition_penalty": 50.0}
    body["ignore_eos"] = True
    line = {"custom_id": "a", "method": "POST", "url": "/v1/completions"}
    manifest, output = tmp_path / "m.jsonl", tmp_path / "out.jsonl"
    bad = line | {"custom_id": "b", "body": body | {"best_of": 3}}
    write(manifest, [line | {"body": body | {"max_tokens": 6}}, bad])
    arguments = ["run", manifest, "-m", MODEL, "-o", output, "-q", "--image-workers", 0]
    assert call(arguments) == 1
    first = json.loads(output.read_text())["response"]["body"]
    assert [choice["index"] for choice in first["choices"]] == [0, 1]
    assert len({choice["text"] for choice in first["choices"]}) == 2
    assert call([*arguments, "--retry-failed"]) == 1
    assert json.loads(output.read_text())["response"]["body"]["choices"] == first["choices"]


def test_python() -> None:
    params = SamplingParams(
        n=2, temperature=2.0, repetition_penalty=50.0, logprobs=0, max_tokens=5, ignore_eos=True
    )
    with LLM(str(MODEL), image_workers=0) as llm:
        several, tried = llm.generate(
            ["What?", "USER: Hello ASSISTANT:"],
            [params, SamplingParams(best_of_retries=1, ignore_eos=True, max_tokens=100)],
        )
    assert [output.index for output in several.outputs] == [0, 1]
    first, second = several.outputs
    assert first.text != second.text and second.logprobs is not None and len(second.logprobs) == 5
    assert (several.num_retries, tried.num_retries, len(tried.outputs)) == (0, 1, 1)
