"""How the command starts, and how it stops."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import environment, installed_in
from in_process import call
from server_process import MODEL, ROOT, chat_body, data_url

from vlmbatch.errors import UsageError
from vlmbatch.models.chat import ChatTemplate
from vlmbatch.serve.server import bind, listen

SAMPLE_MODEL = ROOT / MODEL
OPTIONS = ("-m", SAMPLE_MODEL, "--served-model-name", MODEL)
LONG = chat_body(stream=True, ignore_eos=True, max_tokens=390)

# The founding document's server and its client, as they stand there.
FOUNDING_COMMAND = """
    --model llava-hf/llava-1.5-7b-hf \\
    --image-input-type pixel_values \\
    --image-token-id 32000 \\
    --image-input-shape 1,3,336,336 \\
    --image-feature-size 576 \\
    --chat-template template_llava.jinja
"""
FOUNDING_CLIENT = """
from openai import OpenAI
openai_api_key = "EMPTY"
openai_api_base = "http://localhost:8000/v1"
client = OpenAI(
    api_key=openai_api_key,
    base_url=openai_api_base,
)
chat_response = client.chat.completions.create(
    model="llava-hf/llava-1.5-7b-hf",
    messages=[{
        "role": "user",
        "content": [
            {"type": "text", "text": "What's in this image?"},
            {"type": "image_url", "image_url": {"url": image_url}},
        ],
    }],
)
print("Chat response:", chat_response)
"""


def served(ask: Callable[[str], bytes], *options: object) -> tuple[int, bytes]:
    """The exit status of a server in this process, and what ``ask`` got from it at its URL.

    ``ask`` has to stop it.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # A daemon: where the server fails to start, it asks in vain.
    answer: list[bytes] = []
    client = threading.Thread(
        target=lambda: answer.append(ask(f"http://127.0.0.1:{port}")), daemon=True
    )
    client.start()
    options = ("--port", port, "--image-workers", 0, *options)
    status = call(["serve", *options])
    client.join(30)
    assert len(answer) == 1
    return status, answer[0]


def wait_until_listening(url: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{url}/health", timeout=60).close()
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        else:
            return


def stream_and_signal(url: str, *numbers: signal.Signals) -> bytes:
    """The events of a stream; the signals are sent after its first one."""
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(LONG).encode(),
        {"Content-Type": "application/json"},
    )
    wait_until_listening(url)
    with urllib.request.urlopen(request, timeout=60) as response:
        assert response.readline().startswith(b"data: ")
        for number in numbers:
            os.kill(os.getpid(), number)
        events: bytes = response.read()
        return events


def test_the_founding_example(capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((SAMPLE_MODEL / "config.json").read_text())
    command, client = FOUNDING_COMMAND.replace("\\\n", ""), FOUNDING_CLIENT
    for name, ours in (
        ("llava-hf/llava-1.5-7b-hf", str(SAMPLE_MODEL)),
        ("32000", str(config["image_token_index"])),
        ("336,336", "80,80"),
        ("576", "100"),
        ("template_llava.jinja", str(ROOT / "configs/llava-1.5.jinja")),
    ):
        assert name in command
        command, client = command.replace(name, ours), client.replace(name, ours)

    def ask(url: str) -> bytes:
        try:
            wait_until_listening(url)
            exec(client.replace("http://localhost:8000", url), {"image_url": data_url()})
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
        return b""

    assert served(ask, *command.split())[0] == 0
    assert capsys.readouterr().out.startswith("Chat response: ChatCompletion(id='chatcmpl-")


def test_sigterm_lets_requests_finish() -> None:
    status, events = served(lambda url: stream_and_signal(url, signal.SIGTERM), *OPTIONS)
    *_, last, done, rest = events.split(b"\n\n")
    assert b'"finish_reason":"length"' in last
    assert (done, rest) == (b"data: [DONE]", b"")
    assert status == 0


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        (["--grace", 0], [signal.SIGINT]),
        ([], [signal.SIGINT, signal.SIGTERM]),
    ],
)
def test_requests_are_given_up_beyond_the_grace_time_and_on_a_second_signal(
    options: list[object], numbers: list[signal.Signals]
) -> None:
    status, events = served(lambda url: stream_and_signal(url, *numbers), *OPTIONS, *options)
    assert b'"engine_stopped"' in events.split(b"\n\n")[-3]
    assert status in {128 + number for number in numbers}  # either may be delivered first


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_demo(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "samples/demo_serve.sh"],
        env=environment(VLMBATCH=str(installed_in(tmp_path)), OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["choices"][0]["message"]["content"] == "92"


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """What the command says when it does not start."""
    for name in [name for name in os.environ if name.startswith("VLMBATCH_")]:
        monkeypatch.delenv(name)

    def message(*arguments: object) -> str:
        assert call(["serve", "--port", "0", *arguments]) == 2
        return capfd.readouterr().err

    return message


def test_a_model_without_a_template_needs_one(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(SAMPLE_MODEL, folder)
    (folder / "chat_template.jinja").unlink()
    assert "no chat template; give one with --chat-template FILE" in refused("-m", folder)


def test_a_port_in_use_is_refused_before_the_model_is_read(refused: Callable[..., str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused("-m", "no-such-model", "--port", port)
    assert f"cannot listen on 127.0.0.1 port {port}" in message


def test_of_two_servers_that_load_at_once_one_is_told_that_the_port_is_in_use() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("127.0.0.1", port) as second:
            listen(first)
            with pytest.raises(UsageError, match=f"cannot listen on 127.0.0.1 port {port}: "):
                listen(second)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-input-type", "image_features"], "pixel_values only"),
        (["--image-feature-size", "576"], "576"),
        (["--image-token-id", "32000"], "32000"),
        (["--allow-domain", "http://x/"], "--allow-domain http://x/"),
        (["--max-request-bytes", "much"], "'--max-request-bytes': must be a size"),
        (["--max-request-bytes", "0"], "at least 1024, got 0"),
        (["--request-timeout", "0"], "above 0"),
    ],
)
def test_options_that_cannot_be_are_refused(
    refused: Callable[..., str], arguments: list[str], message: str
) -> None:
    assert message in refused("-m", SAMPLE_MODEL, *arguments)


@pytest.mark.parametrize("name", ["starlette", "uvicorn", "prometheus_client"])
def test_a_missing_package_is_named_with_the_command(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    message = refused("-m", SAMPLE_MODEL)
    assert f"the server needs {name}: run pip install 'vlmbatch[serve]'" in message


def test_the_template_of_llava_renders_its_prompt() -> None:
    template = ChatTemplate.load(ROOT / "configs/llava-1.5.jinja", {"eos_token": "</s>"})
    parts = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert template.render(messages[1:2], 1) == "USER: <image>\nWhat is it? ASSISTANT:"
    assert template.render(messages, 1) == (
        "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    )
