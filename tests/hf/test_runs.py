"""Runs, servers and programs that transformers answers: all else is as with our engine."""

from __future__ import annotations

import base64
import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import real_command
from hf_case import MAX_TOKENS, ROWS, Case, make_images
from hf_checkpoints import CONTEXT, KINDS
from PIL import Image
from server_process import serving

from vlmbatch import LLM, ImagePixelData, SamplingParams
from vlmbatch.errors import UsageError


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("model")
    KINDS["gemma3"].make(folder)
    return Case(folder, KINDS["gemma3"], make_images(tmp_path_factory.mktemp("images")))


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(output: Path) -> list[dict[str, Any]]:
    return list(pq.read_table(output).to_pylist())


@pytest.fixture
def many(case: Case, tmp_path: Path) -> Path:
    rows = [
        {**case.manifest_row(row), "id": f"{copy}-{index}"}
        for copy in range(4)
        for index, row in enumerate(ROWS)
    ]
    return write_manifest(tmp_path / "many.jsonl", rows)


def test_a_killed_run_is_resumed(case: Case, many: Path, tmp_path: Path) -> None:
    options = ("run", many, "-m", case.folder, "--max-tokens", 4, "--image-workers", 1)
    outputs = [tmp_path / "undisturbed.parquet", tmp_path / "killed.parquet"]
    undisturbed = real_command.start(*options, "-o", outputs[0])
    killed = real_command.start(*options, "-o", outputs[1], crash_at="journal.acknowledged")
    assert undisturbed.wait(120) == 0, undisturbed.stderr
    assert killed.wait(120) == -signal.SIGKILL
    again = real_command.start(*options, "-o", outputs[1])
    assert again.wait(120) == 0, again.stderr
    assert "done by an earlier run" in again.stderr
    assert read(outputs[1]) == read(outputs[0])
    other = real_command.run(*options, "-o", outputs[1], "--temperature", 1)
    assert other.returncode == 2
    assert "sampling.temperature" in other.stderr


def test_several_processes_answer_as_one(case: Case, tmp_path: Path) -> None:
    """In batches of one row, whose answers depend on no other row."""
    rows = [{**case.manifest_row(row), "id": f"{index}"} for index, row in enumerate(ROWS)]
    manifest = write_manifest(tmp_path / "manifest.jsonl", rows)
    options = ("run", manifest, "-m", case.folder, "--max-tokens", 4, "--image-workers", 1)
    outputs = [tmp_path / "one.parquet", tmp_path / "two.parquet"]
    for output, several in zip(outputs, ((), ("--replicas", 2)), strict=True):
        done = real_command.run(*options, "--max-num-seqs", 1, "-o", output, *several)
        assert done.returncode == 0, done.stderr
    assert "engines  replica 0: " in done.stderr
    assert read(outputs[1]) == read(outputs[0])


def test_a_run_is_stopped_within_a_batch(case: Case, many: Path, tmp_path: Path) -> None:
    """A batch of rows that take long does not hold it up."""
    output = tmp_path / "out.parquet"
    options = ("run", many, "-m", case.folder, "-o", output, "--image-workers", 0)
    long = ("--max-tokens", 400, "--ignore-eos", "--grace", 0, "--max-num-seqs", 2)
    run = real_command.start(*options, *long)
    work_folder = output.with_name("out.parquet.vlmbatch")
    run.wait_until(lambda: any(work_folder.glob("journal-*")))
    run.send_signal(signal.SIGTERM)
    assert run.wait(60) == 128 + signal.SIGTERM, run.stderr
    assert "stopped by SIGTERM" in run.stderr


def test_bad_rows_are_errors_of_their_own(case: Case, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows = [
        {"prompt": "<image>a", "image": "good.png"},
        {"prompt": "a", "image": "good.png"},
        {"prompt": "<image><image>a", "image": "good.png"},
        {"prompt": "<image>a"},
        {"prompt": "<image>a", "image": "bad.png"},
        {"prompt": "<image>a", "image": "none.png"},
        {"prompt": "<image>" + "a" * (CONTEXT - 10), "image": "good.png"},
        {"prompt": "a" * (CONTEXT + 10)},
        {"prompt": ""},
        {"prompt": "<start_of_image>a", "image": "good.png"},
    ]
    manifest = write_manifest(tmp_path / "m.jsonl", rows)
    output = tmp_path / "out.parquet"
    options = (manifest, "-m", case.folder, "--image-workers", 1)
    run = real_command.run("run", *options, "-o", output, "--max-tokens", 3)
    assert run.returncode == 1, run.stderr
    assert "no family of our own for model_type gemma3" in run.stderr
    found = read(output)
    assert [row["error_code"] for row in found] == [
        None,
        *["image_token_mismatch"] * 3,
        "image_unreadable",
        "image_missing",
        *["prompt_too_long"] * 2,
        None,
        None,
    ]
    assert found[2]["error_message"] == (
        "1 image: expected 1 <image> in the prompt, one for each, found 2"
    )
    # A token that starts the prompt, four and two around them for the image, four of its line ends.
    assert f"has {CONTEXT - 10 + 11} tokens, 4 of them" in found[6]["error_message"]
    assert f"the context of {CONTEXT}" in found[6]["error_message"]
    assert found[9]["text"] == found[0]["text"]

    errors = tmp_path / "errors.jsonl"
    checked = real_command.run("validate", *options, "--errors", errors)
    assert checked.returncode == 1
    assert "known to the run alone" in checked.stderr
    named = [json.loads(line) for line in errors.read_text().splitlines()]
    # But for the row of which only the processor knows that it is too long.
    assert [row["error_code"] for row in named] == [
        code
        for index, code in enumerate(row["error_code"] for row in found)
        if code is not None and index != 6
    ]


def test_a_program_gets_the_same_answers(case: Case) -> None:
    """Also one that loses interest in the middle."""
    params = SamplingParams(max_tokens=MAX_TOKENS)
    requests: list[Any] = [
        {
            "prompt": row.prompt,
            "multi_modal_data": [ImagePixelData(str(case.images[image])) for image in row.images],
        }
        for row in ROWS
    ]
    with LLM(case.folder, image_workers=0, max_num_seqs=4) as llm:
        outputs = llm.generate(requests, params)
        for row, output in zip(ROWS, outputs, strict=True):
            assert output.outputs[0].text == case.text(case.answer(case.inputs(row)))
        first = next(llm.stream(iter(requests * 9), params))
        assert first.error is None
        again = llm.generate(requests, params)
        assert [each.outputs for each in again] == [each.outputs for each in outputs]
        chat = llm.chat([{"role": "user", "content": "short"}], params)[0]
        inputs = case.chat_inputs(ROWS[5])
        assert chat.outputs[0].text == case.text(case.answer(inputs))
    with pytest.raises(UsageError, match="closed"):
        llm.generate("a")


def test_a_server_gets_the_same_answers(case: Case) -> None:
    url = "data:image/png;base64," + base64.b64encode(case.images[0].read_bytes()).decode()
    content = [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": "What is it?"},
    ]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": MAX_TOKENS}
    body |= {"model": "tiny", "temperature": 0}
    inputs = case.chat_inputs(ROWS[0])
    expected = case.text(case.answer(inputs))
    with serving("-m", str(case.folder), "--served-model-name", "tiny") as server:
        answer = json.loads(post(server.url, body))
        assert answer["choices"][0]["message"]["content"] == expected
        assert answer["usage"]["prompt_tokens"] == inputs["input_ids"].shape[1]
        lines = post(server.url, {**body, "stream": True}).decode().splitlines()
        chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        deltas = [each["choices"][0]["delta"].get("content") or "" for each in chunks]
        assert "".join(deltas) == expected
        assert len([delta for delta in deltas if delta]) > 1


def post(url: str, body: dict[str, Any]) -> bytes:
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        found: bytes = response.read()
    return found
