"""``--logprobs``: a column of tokens and log-probabilities, wherever answers go and come back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from in_process import call

SAMPLES = Path(__file__).parents[2] / "samples"
MODEL = SAMPLES / "tiny-llava"
PROMPT = "USER: <image>\nWhat number is written? ASSISTANT:"
IMAGE = str(SAMPLES / "images/1001000001.jpg")


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(manifest: Path, output: Path | str, *options: object) -> int:
    return call(["run", manifest, "-m", MODEL, "-o", output, "-q", "--image-workers", 0, *options])


def test_runs_tell_log_probabilities(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": PROMPT, "image": IMAGE}
    manifest = write(tmp_path / "m.jsonl", [row, {"prompt": None}])
    output = tmp_path / "out.parquet"
    assert run(manifest, output, "--logprobs", 2) == 1
    answer, failed = pq.read_table(output).to_pylist()
    tokens = answer["logprobs"]
    assert len(tokens) == answer["completion_tokens"]
    assert "".join(token["token"] for token in tokens).removesuffix("</s>").strip() == "92"
    for token in tokens:
        likeliest, second = token["top_logprobs"]
        assert likeliest["token_id"] == token["token_id"]  # the answer is greedy
        assert likeliest["logprob"] == token["logprob"] > second["logprob"]
        assert math.exp(likeliest["logprob"]) + math.exp(second["logprob"]) <= 1.000001
    assert failed["logprobs"] is None

    assert run(manifest, "-", "--logprobs", 0) == 1
    streamed, failed = map(json.loads, capsys.readouterr().out.splitlines())
    assert failed["logprobs"] is None
    assert [token["top_logprobs"] for token in streamed["logprobs"]] == [[]] * len(tokens)
    assert [token["token"] for token in streamed["logprobs"]] == [t["token"] for t in tokens]

    # Answers that a new run keeps have theirs, through the journal and in the output.
    write(manifest, [{"prompt": None}, row])
    assert run(manifest, output, "--logprobs", 2, "--incremental") == 1
    assert [row["logprobs"] for row in pq.read_table(output).to_pylist()] == [None, tokens]
    # Another number of them is another run.
    assert run(manifest, output, "--logprobs", 1) == 2


def test_a_column_of_that_name_is_in_the_way_only_then(tmp_path: Path) -> None:
    manifest = write(tmp_path / "m.jsonl", [{"prompt": "a", "logprobs": 5}])
    options = ("--max-tokens", 1)
    assert run(manifest, tmp_path / "plain.parquet", *options) == 0
    assert pq.read_table(tmp_path / "plain.parquet")["logprobs"].to_pylist() == [5]
    assert run(manifest, tmp_path / "out.parquet", *options, "--logprobs", 1) == 2
    prefixed = (*options, "--logprobs", 1, "--column-prefix", "own_")
    assert run(manifest, tmp_path / "out.parquet", *prefixed) == 0
    (row,) = pq.read_table(tmp_path / "out.parquet").to_pylist()
    assert (row["logprobs"], len(row["own_logprobs"])) == (5, 1)


def test_batch_files_have_them_in_openais_forms(tmp_path: Path) -> None:
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/v1/completions", {"prompt": "What is it?", "logprobs": 2, "max_tokens": 3}),
        ("/v1/completions", {"prompt": "What is it?", "max_tokens": 3}),
    ]
    message = {"role": "user", "content": "What is it?"}
    chat = {"messages": [message], "max_tokens": 3, "logprobs": True}
    bodies += [("/v1/chat/completions", chat), ("/v1/chat/completions", chat | {"top_logprobs": 2})]
    manifest = write(
        tmp_path / "requests.jsonl",
        [
            {"custom_id": str(index), "method": "POST", "url": url, "body": body}
            for index, (url, body) in enumerate(bodies)
        ],
    )
    output = tmp_path / "results.jsonl"
    options = ("--ignore-eos", "--chat-template", "llava-1.5")
    assert run(manifest, output, *options) == 0

    def responses() -> list[Any]:
        lines = map(json.loads, output.read_text().splitlines())
        return [line["response"]["body"]["choices"][0] for line in lines]

    text, plain, own, top = responses()
    whole = [json.loads(line) for line in output.read_text().splitlines()]
    # Here, as it takes most of a second, which workers of other tests need not spend.
    from openai.types import Completion
    from openai.types.chat import ChatCompletion

    Completion.model_validate(whole[0]["response"]["body"])
    ChatCompletion.model_validate(whole[3]["response"]["body"])
    assert plain["logprobs"] is None
    assert len(text["logprobs"]["tokens"]) == len(text["logprobs"]["token_logprobs"]) == 3
    assert [len(each) for each in text["logprobs"]["top_logprobs"]] == [2] * 3
    assert text["logprobs"]["text_offset"][0] == 0
    assert [each["top_logprobs"] for each in own["logprobs"]["content"]] == [[]] * 3
    for token in top["logprobs"]["content"]:
        assert len(token["top_logprobs"]) == 2
        assert bytes(token["bytes"]).decode() == token["token"]
    before = responses()
    assert run(manifest, output, *options, "--limit", 4, "--overwrite", "--seed", 1) == 0
    write(manifest, [json.loads(line) for line in manifest.read_text().splitlines()][::-1])
    assert run(manifest, output, *options, "--limit", 4, "--seed", 1, "--incremental") == 0
    assert responses() == before[::-1]
