"""A stand-in for the Hugging Face Hub's API of data sets, as far as huggingface_hub asks for it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

Files = dict[str, bytes]
_REPO = r"datasets/(?P<name>[^/]+/[^/]+?)"


@dataclass
class Dataset:
    """``commits``: all files of each by its hash, the last one last."""

    private: bool = True
    commits: dict[str, Files] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.commit({".gitattributes": b"*.parquet filter=lfs"})

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> Files:
        return self.commits[self.head]

    def commit(self, add: Files, remove: frozenset[str] = frozenset()) -> str:
        old = self.files if self.commits else {}
        files = {path: data for path, data in {**old, **add}.items() if path not in remove}
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        return sha


@dataclass
class Hub:
    """``before_commit`` is called before a commit is looked at. ``uploads``: of large files."""

    url: str = ""
    user: str = "ann"
    datasets: dict[str, Dataset] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    before_commit: Callable[[], object] = lambda: None
    before_upload: Callable[[], object] = lambda: None


@contextmanager
def hub_server() -> Iterator[Hub]:
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class RefusalError(Exception):
    """Ends a request with something else than JSON of what was asked."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status = status
        self.code = code


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: object) -> None:
        pass

    def handle_request(self) -> None:
        parts = urlsplit(self.path)
        path = unquote(parts.path).strip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = self._chunks()
        try:
            for method, pattern, handle in _ROUTES:
                found = re.fullmatch(pattern, path)
                if found is not None and method in (self.command, "*"):
                    self._reply(
                        handle(self, body=body, query=parse_qs(parts.query), **found.groupdict())
                    )
                    return
            raise RefusalError(404, "")
        except RefusalError as answer:
            self.send_response(answer.status)
            self.send_header("X-Error-Code", answer.code)
            self.send_header("X-Error-Message", answer.code)
            self.send_header("Content-Length", "0")
            self.end_headers()
        except ConnectionError:
            self.close_connection = True

    def _chunks(self) -> bytes:
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _reply(self, value: Any) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        if isinstance(value, bytes):
            self.send_header("ETag", f'"{_blob_id(value)}"')
            self.send_header("X-Repo-Commit", self.revision)
            self.send_header("Content-Type", "application/octet-stream")
        else:
            self.send_header("Content-Type", "application/json")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _dataset(self, name: str) -> Dataset:
        if name not in self.hub.datasets:
            raise RefusalError(404, "RepoNotFound")
        return self.hub.datasets[name]

    def whoami(self, **_: Any) -> Any:
        return {"type": "user", "name": self.hub.user, "orgs": [{"name": "lab"}]}

    def info(self, name: str, **_: Any) -> Any:
        found = self._dataset(name)
        return {"id": name, "sha": found.head, "private": found.private, "siblings": []}

    def auth_check(self, name: str, **_: Any) -> Any:
        self._dataset(name)
        if name.partition("/")[0] not in (self.hub.user, "lab"):
            raise RefusalError(403, "")
        return {}

    def tree(self, name: str, revision: str, folder: str | None = None, **_: Any) -> Any:
        files = self._dataset(name).commits[revision]
        below = {
            path: data
            for path, data in files.items()
            if folder is None or path.startswith(f"{folder}/")
        }
        if not below:
            raise RefusalError(404, "EntryNotFound")
        return [
            {"type": "file", "path": path, "oid": _blob_id(data), "size": len(data)}
            for path, data in below.items()
        ]

    def create(self, body: bytes, **_: Any) -> Any:
        values = json.loads(body)
        name = f"{values.get('organization') or self.hub.user}/{values['name']}"
        private = values.get("private", values.get("visibility") == "private")
        self.hub.datasets.setdefault(name, Dataset(private=private))
        return {"url": f"{self.hub.url}/datasets/{name}", "name": name}

    def valid(self, **_: Any) -> Any:
        return {"errors": [], "warnings": []}

    def preupload(self, body: bytes, name: str, **_: Any) -> Any:
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".parquet") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def batch(self, body: bytes, name: str, **_: Any) -> Any:
        objects = []
        for item in json.loads(body)["objects"]:
            found = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.hub.large:
                href = f"{self.hub.url}/large/{item['oid']}"
                found["actions"] = {"upload": {"href": href}}
            objects.append(found)
        return {"transfer": "basic", "objects": objects}

    def upload(self, body: bytes, oid: str, **_: Any) -> Any:
        self.hub.before_upload()
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self.hub.uploads.append(oid)
        return {}

    def commit(self, body: bytes, name: str, **_: Any) -> Any:
        self.hub.before_commit()
        found = self._dataset(name)
        add: Files = {}
        remove = set()
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    if value.get("parentCommit", found.head) != found.head:
                        raise RefusalError(412, "")
                case "file":
                    add[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    add[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    remove.add(value["path"])
        sha = found.commit(add, frozenset(remove))
        return {"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{sha}", "commitOid": sha}

    def resolve(self, name: str, revision: str, file: str, **_: Any) -> bytes:
        files = self._dataset(name).commits[revision]
        if file not in files:
            raise RefusalError(404, "EntryNotFound")
        self.revision = revision
        return files[file]


_ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", "api/whoami-v2", _Handler.whoami),
    ("POST", "api/repos/create", _Handler.create),
    ("POST", "api/validate-yaml", _Handler.valid),
    ("GET", f"api/{_REPO}", _Handler.info),
    ("GET", f"api/{_REPO}/auth-check(/write)?", _Handler.auth_check),
    ("GET", f"api/{_REPO}/tree/(?P<revision>[^/]+)(/(?P<folder>.+))?", _Handler.tree),
    ("POST", f"api/{_REPO}/preupload/main", _Handler.preupload),
    ("POST", f"api/{_REPO}/commit/main", _Handler.commit),
    ("POST", f"{_REPO}.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT", "large/(?P<oid>.+)", _Handler.upload),
    ("*", f"{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)", _Handler.resolve),
]

for _method in ("GET", "POST", "PUT", "HEAD"):
    setattr(_Handler, f"do_{_method}", _Handler.handle_request)


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
