"""A store that speaks as much of S3 as reading takes, and misbehaves where a key says so."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from functools import cache
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote, urlsplit

from loopback import serving

REGION = "us-east-1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a response is one packet, for which nobody waits
    store: ObjectServer

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.store.requests.append(f"{self.command} {path}")
        action = path.partition("/")[2].partition("/")[0]
        with contextlib.suppress(ConnectionError):
            if action == "forbidden":
                self._refuse(403, "AccessDenied", body)
            elif path in self.store.moved:
                self._answer(307, b"", Location=f"{self.store.url}/{self.store.moved[path]}")
            elif action == "stalls":
                self.store.ended.wait(30)
            elif self.store.failures.get(path, 0) > 0:
                self.store.failures[path] -= 1
                self._fail(action, path, body)
            elif path in self.store.objects:
                self._send(self.store.objects[path], body)
            else:
                self._refuse(404, "NoSuchKey", body)

    def _fail(self, action: str, path: str, body: bool) -> None:
        if action == "cut" and body:
            content = self.store.objects[path]
            self._answer(200, content[: len(content) // 2], Content_Length=str(len(content)))
            self.close_connection = True
        else:
            self._refuse(503, "SlowDown", body)

    def _send(self, content: bytes, body: bool) -> None:
        headers = {"ETag": f'"{_digest(content)}"', "Accept-Ranges": "bytes"}
        if not (given := self.headers.get("Range")):
            self._answer(200, content if body else b"", Content_Length=str(len(content)), **headers)
            return
        first, _, last = given.removeprefix("bytes=").partition("-")
        part = content[int(first) : int(last or len(content)) + 1]
        if not part:
            self._refuse(416, "InvalidRange", body)
            return
        end = int(first) + len(part) - 1
        headers["Content-Range"] = f"bytes {first}-{end}/{len(content)}"
        self._answer(206, part, **headers)

    def _refuse(self, status: int, code: str, body: bool) -> None:
        error = f"<Error><Code>{code}</Code><Message>{code}, says the store</Message></Error>"
        self._answer(status, error.encode() if body else b"")

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Length": str(len(content)), **named}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


class ObjectServer:
    """``objects`` by bucket and key. Of keys in the folders ``forbidden`` and ``stalls`` every
    request ends so; of those in ``cut`` and ``busy``, as many as ``failures`` says."""

    url = ""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures: dict[str, int] = {}
        self.moved: dict[str, str] = {}  # where requests for an object are redirected to
        self.requests: list[str] = []
        self.ended = threading.Event()

    @contextlib.contextmanager
    def serving(self) -> Iterator[ObjectServer]:
        handler: Any = type("Own", (_Handler,), {"store": self})
        with serving(handler) as self.url:
            try:
                yield self
            finally:
                self.ended.set()


@cache
def _digest(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def access(url: str) -> dict[str, str]:
    """The environment in which ``s3://`` is the store at ``url``."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": REGION,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
