"""The command's beginning and its end."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import urllib.request
from collections.abc import Callable
from http.client import HTTPResponse
from pathlib import Path

import pytest
from in_process import call
from server_process import MODEL, ROOT, ServerProcess, chat_body, serving

from vlmbatch.models.chat import ChatTemplate

SAMPLE_MODEL = ROOT / MODEL
LONG = chat_body(stream=True, ignore_eos=True, max_tokens=390)


def begin_stream(server: ServerProcess) -> HTTPResponse:
    """A stream whose first event has come."""
    request = urllib.request.Request(
        f"{server.url}/v1/chat/completions",
        json.dumps(LONG).encode(),
        {"Content-Type": "application/json"},
    )
    response: HTTPResponse = urllib.request.urlopen(request, timeout=60)
    assert response.readline().startswith(b"data: ")
    return response


def test_sigterm_lets_requests_finish() -> None:
    with serving() as server, begin_stream(server) as response:
        server.process.send_signal(signal.SIGTERM)
        events = response.read().split(b"\n\n")
        assert b'"finish_reason":"length"' in events[-3]
        assert events[-2:] == [b"data: [DONE]", b""]
        assert server.process.wait(30) == 0


def test_requests_beyond_the_grace_time_are_given_up() -> None:
    with serving("--grace", "0") as server, begin_stream(server) as response:
        server.process.send_signal(signal.SIGINT)
        events = response.read().split(b"\n\n")
        assert b'"engine_stopped"' in events[-3]
        assert server.process.wait(30) == 128 + signal.SIGINT


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image-input-type", "image_features"], "pixel_values only"),
        (["--image-feature-size", "576"], "576"),
        (["--image-token-id", "32000"], "32000"),
        (["--allow-domain", "http://x/"], "--allow-domain http://x/"),
        (["--max-request-bytes", "much"], "'--max-request-bytes': must be a size"),
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
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]
    assert template.render(messages[1:2], 1) == "USER: <image>\nWhat is it? ASSISTANT:"
    assert template.render(messages, 1) == (
        "Be brief. USER: <image>\nWhat is it? ASSISTANT: A cat.</s>USER: Sure? ASSISTANT:"
    )
