"""One table from one engine and from several, on real models; and engines that are killed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import real_command
from checkpoints import make_checkpoint
from PIL import Image
from server_process import ServerProcess, chat_body, serving
from worker_processes import ENGINE, wait_until, worker_pids

from vlmbatch import LLM, ImagePixelData, SamplingParams

NUM_ROWS = 60


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model, and rows of which some share images, have two answers, or are errors."""
    folder = tmp_path_factory.mktemp("several")
    make_checkpoint("llama", "clip", folder / "model")
    rng = random.Random(0)
    for number in range(9):
        picture = Image.frombytes("RGB", (30, 20), rng.randbytes(1800))
        picture.save(folder / f"{number}.png")
    (folder / "3.png").write_bytes(b"no picture")
    with (folder / "manifest.jsonl").open("w") as file:
        for index in range(NUM_ROWS):
            row: dict[str, Any] = {
                "prompt": f"<image>What is {index}?",
                "image": f"{index % 9}.png",
            }
            row |= {"max_tokens": 1 + index % 12, "n": 1 + index % 2}
            if index % 3 == 1:
                row |= {"temperature": 0.9, "top_p": 0.9, "seed": index}
            if index % 5 == 2:
                row |= {"prompt": f"Say {index}", "image": None}
            if index % 7 == 3:
                row["stop"] = ["a", "0"]
            file.write(json.dumps(row) + "\n")
    return folder


def start(folder: Path, name: str, *options: object) -> Any:
    output = folder / f"{name}.parquet"
    return real_command.start(
        *("run", folder / "manifest.jsonl", "-m", folder / "model", "-o", output),
        *("--image-workers", 1, "--temperature", 0.5, "--n", 2, *options),
    )


@pytest.fixture(scope="module")
def of_one(folder: Path) -> Any:
    command = start(folder, "one")
    assert command.wait(120) == 1, command.stderr
    return pq.read_table(folder / "one.parquet")


def check_equal(folder: Path, name: str, of_one: Any) -> None:
    table = pq.read_table(folder / f"{name}.parquet")
    assert table.equals(of_one)
    ids = b"vlmbatch.run_id"
    metadata, expected = (dict(each.schema.metadata) for each in (table, of_one))
    assert metadata.pop(ids) != expected.pop(ids)
    assert metadata == expected


def test_an_engine_that_is_killed_changes_nothing(folder: Path, of_one: Any) -> None:
    texts = [text for row in of_one["texts"].to_pylist() for text in row or ()]
    assert len(set(texts)) > NUM_ROWS // 2, "answers can be told apart"
    command = start(folder, "two", "--replicas", 2, "--summary-json", folder / "two.json")
    command.wait_until(lambda: len(worker_pids(command.pid, ENGINE)) == 2)
    os.kill(max(worker_pids(command.pid, ENGINE)), signal.SIGKILL)
    assert command.wait(120) == 1, command.stderr
    assert "replica 1 has ended (signal 9: memory may be short): it is started" in command.stderr
    check_equal(folder, "two", of_one)
    summary = json.loads((folder / "two.json").read_text())
    assert [*summary["start"]] == ["seconds", "stages"], "what each of them did is not told"
    shares = summary["engines"]
    assert [*shares] == ["replica 0", "replica 1"]
    assert all(share["rows"] for share in shares.values())
    assert "engines  replica 0: " in command.stderr


def test_a_divided_model_gives_the_table_of_one_engine(folder: Path, of_one: Any) -> None:
    """With prompts in chunks, and a rank that is killed while it loads."""
    command = start(folder, "divided", "--tensor-parallel", 2, "--max-batched-tokens", 48)

    def ranks() -> set[int]:
        first = worker_pids(command.pid, ENGINE)
        return first.union(*(worker_pids(pid, ENGINE) for pid in first))

    command.wait_until(lambda: len(ranks()) == 2)
    started = ranks()
    os.kill(max(started), signal.SIGKILL)
    assert command.wait(120) == 1, command.stderr
    expected = "replica 0 has ended (rank 1 of 2: signal 9: memory may be short): it is started"
    assert expected in command.stderr
    check_equal(folder, "divided", of_one)
    assert not any(Path("/proc", str(pid)).exists() for pid in started)


def test_a_model_that_cannot_be_divided_is_refused(folder: Path) -> None:
    command = start(folder, "refused", "--tensor-parallel", 3)
    assert command.wait(120) == 2
    said = "--tensor-parallel 3: the model has 4 attention heads, which 3 does not divide"
    assert said in command.stderr


def test_from_python(folder: Path) -> None:
    """Calls one after another, one of them left in the middle, as with one engine."""
    images = [ImagePixelData(folder / f"{number}.png") for number in range(3)]
    prompts = [
        {"prompt": f"<image>{index}", "multi_modal_data": images[index % 3]} for index in range(12)
    ]
    params = SamplingParams(max_tokens=6)
    classes, told = SamplingParams(choices=("yes", "no")), SamplingParams(max_tokens=2, logprobs=1)
    endless = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}  # no answer follows it
    shapes = [SamplingParams(regex=r"[a-z]{3}\d|[A-Z]{9}"), SamplingParams(json_schema=endless)]
    shaped: list[list[str]] = []
    answers: list[list[tuple[int, ...]]] = []
    probabilities: list[list[float]] = []
    several: tuple[tuple[int, dict[str, Any]], ...] = (
        (0, {}),
        (2, {"replicas": 2}),
        (1, {"tensor_parallel_size": 2}),
    )
    for number, options in several:
        with LLM(folder / "model", image_workers=0, **options) as llm:
            unfinished = llm.generate(iter(prompts), params)
            next(unfinished)
            if "tensor_parallel_size" in options:  # a rank ends in the middle of a step
                (first,) = worker_pids(os.getpid(), ENGINE)
                (second,) = worker_pids(first, ENGINE)
                os.kill(second, signal.SIGKILL)
                assert len(list(unfinished)) == len(prompts) - 1
            unfinished.close()
            outputs = llm.generate(prompts, params)
            answers.append([output.outputs[0].token_ids for output in outputs])
            chosen = [output.outputs[0].choices for output in llm.generate(prompts[:4], classes)]
            outputs = llm.generate(prompts[:4], [*shapes, *shapes])
            shaped.append([str(each.error or each.outputs[0].text) for each in outputs])
            outputs = llm.generate(prompts[:4], told)
            tokens = [each for output in outputs for each in output.outputs[0].logprobs or ()]
            assert len(tokens) == 8
            probabilities.append([each["yes"] for each in chosen if each is not None])
            probabilities[-1] += [token.logprob for token in tokens]
            engines = worker_pids(os.getpid(), ENGINE)
            assert len(engines) == number
    assert answers[0] == answers[1] == answers[2]
    assert shaped[0] == shaped[1] == shaped[2]
    for text, message in zip(shaped[0][::2], shaped[0][1::2], strict=True):
        assert re.fullmatch(r"[a-z]{3}\d|[A-Z]{9}", text)
        assert "no token of the vocabulary may come next" in message
    assert len(set(probabilities[0])) > 1
    assert probabilities[1] == pytest.approx(probabilities[0], abs=1e-5)
    assert probabilities[2] == pytest.approx(probabilities[0], abs=1e-4)
    assert not worker_pids(os.getpid(), ENGINE)


def test_a_server_goes_on_without_an_engine_and_counts_for_each() -> None:
    with serving("--replicas", "2", "--image-workers", "0") as server:
        for _ in range(2):
            assert server_answer(server) == "92"
        name = 'engine_answered_total{engine="replica 0"}'
        assert server.metric("answered_total") == 2 == server.metric(name)
        os.kill(min(worker_pids(server.process.pid, ENGINE)), signal.SIGKILL)
        assert server_answer(server) == "92"
        other = name.replace("0", "1")
        wait_until(lambda: server.metric(other) == 1)


def server_answer(server: ServerProcess) -> str:
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(chat_body()).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        text: str = json.load(response)["choices"][0]["message"]["content"]
    return text
