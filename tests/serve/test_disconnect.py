"""A client that leaves takes its request with it."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from server_process import ServerProcess, chat_body

LONG = {"ignore_eos": True, "max_tokens": 390}


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def send(server: ServerProcess, body: bytes, declared: int | None = None) -> socket.socket:
    address = urlsplit(server.url)
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    connection.sendall(
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % (declared or len(body)) + body
    )
    return connection


@pytest.mark.parametrize("stream", [False, True])
def test_its_blocks_are_free_at_once(server: ServerProcess, stream: bool) -> None:
    before = server.metric("generation_tokens_total")
    used = server.metric("kv_cache_used_tokens")
    connection = send(server, json.dumps(chat_body(stream=stream, **LONG)).encode())
    until(lambda: server.metric("requests_running") == 1)
    assert server.metric("kv_cache_used_tokens") > used
    if stream:
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    connection.close()
    until(lambda: server.metric("requests_running") == 0)
    assert server.metric("kv_cache_used_tokens") == used == 0
    assert server.metric("generation_tokens_total") - before < LONG["max_tokens"]


def test_leaving_before_the_body_is_whole(server: ServerProcess) -> None:
    left = 'requests_total{path="/v1/chat/completions",status="499"}'
    send(server, b"{}", declared=100).close()
    until(lambda: server.metric(left) >= 1)
