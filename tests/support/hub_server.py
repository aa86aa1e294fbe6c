"""As much of the Hugging Face Hub's API as reading a dataset takes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import serving

_API = "/api/datasets/"
_REVISION = "(?:main|refs/convert/parquet)"
_RESOLVE = re.compile(f"resolve/{_REVISION}/(.*)")
_TREE = re.compile(f"tree/{_REVISION}(.*)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a response is one packet, for which nobody waits
    hub: HubServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        repository, _, rest = path.removeprefix(_API).removeprefix("/datasets/").partition("/")
        name, _, rest = rest.partition("/")
        repository = f"{repository}/{name}"
        if repository in self.hub.gated:
            self._refuse(403, "GatedRepo")
        elif repository not in self.hub.files:
            self._refuse(404, "RepoNotFound")
        elif found := _RESOLVE.fullmatch(rest):
            self._content(repository, found[1])
        elif found := _TREE.fullmatch(rest):
            folder = unquote(found[1].strip("/"))
            recursive = parse_qs(parts.query).get("recursive") == ["true"]
            self._json(self.hub.tree(repository, folder, recursive=recursive))
        else:
            self._json({"id": repository, "sha": "0" * 40})

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Content-Type"].startswith("application/json"):
            paths = json.loads(content)["paths"]
        else:
            paths = parse_qs(content.decode())["paths"]
        repository = "/".join(unquote(self.path).removeprefix(_API).split("/")[:2])
        every = self.hub.tree(repository, "", recursive=True)
        self._json([each for each in every if each["path"] in paths])

    def _content(self, repository: str, path: str) -> None:
        content = self.hub.files[repository][path]
        if not (given := self.headers.get("Range")):
            self._answer(200, content)
            return
        first, _, last = given.removeprefix("bytes=").partition("-")
        self._answer(206, content[int(first) : int(last) + 1])

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode())

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, b"{}", X_Error_Code=code)

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        pass


class HubServer:
    """``files``: the content of each dataset by path; ``gated``: datasets that nobody may read."""

    url = ""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.gated: set[str] = set()

    def tree(self, repository: str, folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, content in self.files[repository].items():
            if folder and not path.startswith(f"{folder}/"):
                continue
            names = path.removeprefix(f"{folder}/").split("/")
            above = path[: len(path) - len("/".join(names))]
            for count in range(1, len(names)):
                name = above + "/".join(names[:count])
                if recursive or count == 1:
                    found[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
            if recursive or len(names) == 1:
                oid = hashlib.sha1(content).hexdigest()
                found[path] = {"type": "file", "path": path, "oid": oid, "size": len(content)}
        return list(found.values())

    @contextlib.contextmanager
    def serving(self) -> Iterator[HubServer]:
        handler: Any = type("Own", (_Handler,), {"hub": self})
        with serving(handler) as self.url:
            yield self
