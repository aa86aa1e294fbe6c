"""``vlmbatch run`` on batch files: as users type it, killed and resumed."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import real_command
from fast_command import FastCommands
from in_process import call
from model_folder import make_model_folder
from openai.types import Completion
from openai.types.chat import ChatCompletion

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "samples/tiny-llava"
CHAT = "/v1/chat/completions"
COMPLETION = "/v1/completions"
NUM_ROWS = 60
OUTPUT_POINTS = [f"output.{what}" for what in ("synced", "renamed", "published")]


def line(custom_id: str, body: dict[str, Any], url: str = CHAT) -> str:
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": url, "body": body}) + "\n"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def without_run(lines: list[dict[str, Any]]) -> list[Any]:
    """What two runs on the same requests have in common."""
    text = re.sub("[0-9a-f]{32}", "RUN", json.dumps(lines))
    return json.loads(re.sub('"created": [0-9]+', '"created": 0', text))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_folder(tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def requests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every tenth cannot be answered."""
    path = tmp_path_factory.mktemp("requests") / "requests.jsonl"
    with path.open("w") as file:
        for index in range(NUM_ROWS):
            body: dict[str, Any] = {"prompt": f"What is {index}?"}
            if index % 10 == 7:
                body["best_of"] = 2
            file.write(line(f"row-{index}", body, COMPLETION))
    return path


class BatchRun:
    """One output, and the command that is run on it as often as it takes."""

    def __init__(self, commands: FastCommands, folder: Path, requests: Path, model: Path) -> None:
        self.output = folder / "results.jsonl"
        self.errors = folder / "results.errors.jsonl"
        self.computed: list[int] = []
        self.acknowledged: set[int] = set()
        self._commands = commands
        self._arguments = [requests, "-m", model, "-o", self.output]

    def run(self, *options: object, crash_at: str = "", **around: Any) -> int:
        around = {"group_rows": 4, "max_num_seqs": 8, "write_behind": True, **around}
        arguments = ["run", *self._arguments, "--image-workers", 0, "--max-tokens", 4, *options]
        command = self._commands.start(*arguments, crash_at=crash_at, **around)
        status = command.wait()
        assert "Traceback" not in command.stderr, command.stderr
        self.computed = command.computed
        if not options:
            assert not self.acknowledged.intersection(self.computed)
        self.acknowledged.update(command.acknowledged)
        return status

    def lines(self) -> tuple[list[Any], list[Any]]:
        return without_run(read(self.output)), without_run(read(self.errors))

    def files(self) -> set[str]:
        return {path.name for path in self.output.parent.iterdir()}


@pytest.fixture
def new_run(
    commands: FastCommands, tmp_path_factory: pytest.TempPathFactory, requests: Path, model: Path
) -> Callable[..., BatchRun]:
    def new(manifest: Path = requests) -> BatchRun:
        return BatchRun(commands, tmp_path_factory.mktemp("run"), manifest, model)

    return new


@pytest.fixture
def expected(new_run: Callable[..., BatchRun]) -> tuple[list[Any], list[Any]]:
    run = new_run()
    assert run.run() == 1
    answers, errors = run.lines()
    failed = [f"row-{index}" for index in range(NUM_ROWS) if index % 10 == 7]
    assert [item["custom_id"] for item in errors] == failed
    ids = [item["custom_id"] for item in answers]
    assert ids == [f"row-{index}" for index in range(NUM_ROWS) if index % 10 != 7]
    assert all(item["response"]["body"]["choices"][0]["text"] for item in answers)
    return answers, errors


def test_a_run_killed_anywhere_is_finished_by_running_it_again(new_run, expected):
    points = [f"journal.acknowledged:{number}" for number in (1, 5, 11)]
    points += [f"{point}:{visit}" for point in OUTPUT_POINTS for visit in (1, 2)]
    for point in points:
        run = new_run()
        assert run.run(crash_at=point) == -signal.SIGKILL
        if point == "output.renamed:1":
            assert run.errors.exists() and not run.output.exists()
        assert run.run() == 1
        assert run.lines() == expected, point
        assert run.files() == {
            "results.jsonl",
            "results.errors.jsonl",
            "results.jsonl.vlmbatch",
        }
        if point.startswith("output"):
            assert run.computed == []


def test_failed_requests_are_answered_again(new_run, expected):
    """Killed between the names of the two files: then one is the old run's, one the new one's."""
    run = new_run()
    run.run()
    for point in ("", "output.renamed:1", "output.synced:2"):
        if point:
            assert run.run("--retry-failed", crash_at=point) == -signal.SIGKILL
            assert run.run() == 1
        else:
            assert run.run("--retry-failed") == 1
        assert run.computed == []
        assert run.lines() == expected


def test_only_changed_requests_are_answered_anew(new_run, requests, tmp_path):
    manifest = tmp_path / "requests.jsonl"
    lines = requests.read_text().splitlines(keepends=True)
    manifest.write_text("".join(lines))
    run = new_run(manifest)
    run.run()
    lines[7] = line("row-7", {"prompt": "What is 7?"}, COMPLETION)
    manifest.write_text("".join([line("new", {"prompt": "New?"}, COMPLETION), *lines[:20]]))
    assert run.run() == 2
    assert run.run("--incremental") == 1
    assert sorted(run.computed) == [0, 8]
    assert [item["custom_id"] for item in run.lines()[0]][:3] == ["new", "row-0", "row-1"]
    assert [item["custom_id"] for item in run.lines()[1]] == ["row-17"]


def test_no_errors_no_file_of_them(new_run, tmp_path):
    manifest = tmp_path / "requests.jsonl"
    manifest.write_text(line("a", {"prompt": "a"}, COMPLETION))
    run = new_run(manifest)
    assert run.run() == 0
    assert run.files() == {"results.jsonl", "results.jsonl.vlmbatch"}
    assert run.run() == 0 and run.computed == []


def test_nothing_but_errors_and_nothing_at_all(new_run, tmp_path):
    manifest = tmp_path / "requests.jsonl"
    for text, status in ((line("a", {"best_of": 2, "prompt": "a"}, COMPLETION), 1), ("", 0)):
        manifest.write_text(text)
        run = new_run(manifest)
        for _ in range(2):  # a complete run stays complete, though its file names no run
            assert run.run() == status
            assert run.output.read_text() == ""
            assert run.errors.exists() == bool(text)
        assert run.run("--retry-failed") == status


def test_files_of_others_are_not_replaced(new_run):
    run = new_run()
    run.errors.write_text("mine\n")
    assert run.run() == 2
    assert run.errors.read_text() == "mine\n"
    assert run.run("--overwrite") == 1
    assert len(read(run.errors)) == 6


@contextmanager
def standard_input(path: Path) -> Iterator[None]:
    """Have this process read ``path`` as its standard input."""
    kept = os.dup(0)
    with path.open("rb") as file:
        os.dup2(file.fileno(), 0)
    try:
        yield
    finally:
        os.dup2(kept, 0)
        os.close(kept)


@pytest.fixture(scope="module")
def sample_requests(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The sample manifest's answerable questions as a batch file, and their answers by id."""
    path = tmp_path_factory.mktemp("samples") / "requests.jsonl"
    answers = {}
    with path.open("w") as file:
        for text in (ROOT / "samples/manifest.jsonl").read_text().splitlines():
            row = json.loads(text)
            if row["answer"] is None or row.get("image") is None:
                continue
            answers[row["id"]] = row["answer"]
            place = ROOT / "samples" / row["image"]
            url = os.path.relpath(place, path.parent)
            if len(answers) % 2:
                url = "data:image/png;base64," + base64.b64encode(place.read_bytes()).decode()
            question = row["prompt"].partition("\n")[2].removesuffix(" ASSISTANT:")
            content = [
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "text", "text": question},
            ]
            message = {"role": "user", "content": content}
            file.write(line(row["id"], {"model": "tiny-llava", "messages": [message]}))
    assert len(answers) > 20
    return path, answers


def test_the_sample_model_answers_a_batch_that_is_killed(sample_requests, tmp_path, capsys):
    """The real command; its bodies are those that the official client reads."""
    requests, answers = sample_requests
    with requests.open("a") as file:
        file.write(line("text", {"prompt": "USER: Hello ASSISTANT:", "max_tokens": 2}, COMPLETION))
        file.write(line("bad", {"messages": []}))
    output = tmp_path / "results.jsonl"
    arguments = ["run", requests, "-m", MODEL, "-o", output, "--image-workers", 0]
    killed = real_command.run(*arguments, crash_at="output.renamed:1")
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    assert call(arguments) == 1
    assert "results.errors.jsonl" in capsys.readouterr().err
    *chats, text = read(output)
    for item in chats:
        assert item["response"]["status_code"] == 200 and item["error"] is None
        body = ChatCompletion.model_validate(item["response"]["body"], strict=True)
        assert body.choices[0].message.content == answers.pop(item["custom_id"])
        assert body.usage is not None and body.usage.prompt_tokens_details is not None
        assert body.usage.prompt_tokens_details.image_tokens == 100
        assert body.model == MODEL.name
    assert answers == {}
    completed = Completion.model_validate(text["response"]["body"], strict=True)
    assert completed.usage is not None and completed.usage.completion_tokens <= 2
    [error] = read(tmp_path / "results.errors.jsonl")
    assert error["custom_id"] == "bad"
    assert error["response"]["body"]["error"]["type"] == "invalid_request_error"
    assert call(["status", output]) == 1
    assert f"{len(chats) + 2} of {len(chats) + 2} done, 0 left" in capsys.readouterr().out


def test_requests_to_parquet_and_to_standard_output(commands, requests, model, tmp_path):
    output = tmp_path / "out.parquet"
    common = ["-m", model, "--image-workers", 0, "--max-tokens", 4]
    assert commands.run("run", requests, "-o", output, *common).wait() == 1
    table = pq.read_table(output)
    assert table["id"].to_pylist() == [f"row-{index}" for index in range(NUM_ROWS)]
    assert set(table["url"].to_pylist()) == {COMPLETION}
    assert table["error_code"].to_pylist()[7] == "request_invalid"
    piped = commands.run("run", requests, "-o", "-", *common)
    assert piped.wait() == 1
    lines = [json.loads(text) for text in piped.stdout.splitlines()]
    assert [item["custom_id"] for item in lines] == table["id"].to_pylist()
    assert [item["response"]["status_code"] for item in lines].count(400) == 6


def test_an_allowed_host_at_a_private_address_is_not_connected_to(commands, tmp_path):
    """The name is allowed, and is this machine's."""
    manifest, output = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    part = {"type": "image_url", "image_url": {"url": "http://localhost:9/a.png"}}
    manifest.write_text(line("a", {"messages": [{"role": "user", "content": [part]}]}))
    arguments = ["run", manifest, "-m", MODEL, "-o", output, "--image-workers", 0]
    for options, message in (
        ([], "images are not fetched; --allow-domain localhost would allow it"),
        (["--allow-domain", "other.example", "--overwrite"], "localhost is not allowed"),
        (["--allow-domain", "localhost", "--retry-failed"], "localhost has the loopback address"),
    ):
        assert commands.run(*arguments, *options).wait() == 1
        [failed] = read(tmp_path / "results.errors.jsonl")
        error = failed["response"]["body"]["error"]
        assert error["code"] == "image_forbidden"
        assert message in error["message"]


def test_a_plain_manifest_may_name_images_of_allowed_hosts(commands, tmp_path):
    """As far as the fetcher, which finds that the host is this machine."""
    manifest, output = tmp_path / "m.jsonl", tmp_path / "out.parquet"
    row = {"prompt": "USER: <image>x ASSISTANT:", "image": "http://localhost:9/a.png"}
    manifest.write_text(json.dumps(row))
    arguments = ["run", manifest, "-m", MODEL, "-o", output, "--image-workers", 0]
    for options, message in (
        ([], "images are not fetched; --allow-domain localhost would allow it"),
        (["--allow-domain", "localhost", "--retry-failed"], "localhost has the loopback address"),
    ):
        assert commands.run(*arguments, *options).wait() == 1
        [failed] = pq.read_table(output).to_pylist()
        assert failed["error_code"] == "image_forbidden"
        assert message in failed["error_message"]


def test_a_jsonl_file_is_for_batches_alone(commands, model, tmp_path):
    manifest = tmp_path / "manifest.jsonl"
    manifest.write_text('{"prompt": "a"}\n')
    output = tmp_path / "results.jsonl"
    refused = commands.run("run", manifest, "-m", model, "-o", output)
    assert refused.wait() == 2
    assert "does not hold OpenAI's batch requests" in refused.stderr
    manifest = manifest.rename(tmp_path / "results.errors.jsonl")
    refused = commands.run("run", manifest, "-m", model, "-o", output, "--overwrite")
    assert refused.wait() == 2
    assert "is the manifest itself" in refused.stderr
    assert manifest.exists()


def test_a_stream_of_requests_needs_to_be_told(tmp_path, capsys):
    """The first line of a stream cannot be looked at twice."""
    requests = tmp_path / "requests.jsonl"
    requests.write_text(line("a", {"prompt": "USER: Hi ASSISTANT:", "max_tokens": 1}, COMPLETION))
    for options, status in (["--errors", "-"], 1), (["--format", "openai"], 0):
        with standard_input(requests):
            assert call(["validate", "-", "-m", MODEL, *options]) == status
        assert ("--format openai" in capsys.readouterr().out) == (status == 1)
