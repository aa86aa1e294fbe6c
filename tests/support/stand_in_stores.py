"""What gcsfs and adlfs are to a put: requests of their services, on objects in memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from fsspec.asyn import get_loop

from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.stores import Store

BUCKET = "bucket"


class StandIn:
    """``objects``: version and content by key. ``before`` is called with each request that writes,
    and may raise in its place. ``tag``: how versions read, by number."""

    key_of_version = "etag"

    def __init__(self) -> None:
        self.loop = get_loop()
        self.objects: dict[str, tuple[str, bytes]] = {}
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda request: None
        self._numbers = itertools.count(1)

    def split_path(self, path: str) -> tuple[str, str, None]:
        bucket, _, key = path.partition("/")
        return bucket, key, None

    def invalidate_cache(self, path: str) -> None:
        pass

    def info(self, path: str) -> dict[str, Any]:
        version, content = self.objects[self._there(path)]
        return {"type": "file", "size": len(content), self.key_of_version: version}

    def store(self, key: str, content: bytes) -> str:
        """Put an object, whatever is there; its version."""
        version = f"v{next(self._numbers)}"
        self.objects[key] = version, content
        return version

    def _there(self, path: str) -> str:
        key = self.split_path(path)[1]
        if key not in self.objects:
            raise FileNotFoundError(path)
        return key

    def _note(self, request: str) -> None:
        self.before(request)
        self.requests.append(request)

    def _version(self, key: str) -> str:
        return self.objects[key][0] if key in self.objects else "0"


class StatusError(Exception):
    """What the libraries raise for a status that is no success."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(code)
        self.status_code = status
        self.error_code = code


class Google(StandIn):
    """gcsfs. A session takes what follows what it has, and is checked as a whole."""

    key_of_version = "generation"
    base = "http://store/storage/v1/"

    def __init__(self) -> None:
        super().__init__()
        self._sessions: dict[str, tuple[str, str, bytearray]] = {}

    async def _request(
        self,
        method: str,
        url: str,
        headers: Any = None,
        data: bytes = b"",
        json: Any = None,
        **parameters: Any,
    ) -> tuple[int, dict[str, str], None, bytes]:
        if method == "POST":
            if url != f"http://store/upload/storage/v1/b/{BUCKET}/o":
                raise FileNotFoundError(url)
            self._note(parameters["uploadType"])
            return self._begin(headers, data, json, **parameters)
        self._note(headers["Content-Range"])
        if url not in self._sessions:
            raise FileNotFoundError(url)
        key, condition, content = self._sessions[url]
        span, _, size = headers["Content-Range"].removeprefix("bytes ").partition("/")
        if span != "*":
            assert span == f"{len(content)}-{len(content) + len(data) - 1}"
            content += data
        if len(content) < int(size):
            there = {"Range": f"bytes=0-{len(content) - 1}"} if content else {}
            return 308, there, None, b""
        return self._put(key, bytes(content), condition)

    def _begin(
        self, headers: Any, data: bytes, about: Any, uploadType: str, ifGenerationMatch: str = ""
    ) -> tuple[int, dict[str, str], None, bytes]:
        if uploadType == "resumable":
            url = f"http://store/session-{next(self._numbers)}"
            self._sessions[url] = about["name"], ifGenerationMatch, bytearray()
            return 200, {"Location": url}, None, b""
        boundary = headers["Content-Type"].partition("boundary=")[2].encode()
        _, start, content, end = data.split(b"--" + boundary)
        assert end == b"--\r\n"
        key = json.loads(start.partition(b"\r\n\r\n")[2])["name"]
        content = content.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n")
        return self._put(key, content, ifGenerationMatch)

    def _put(
        self, key: str, content: bytes, condition: str
    ) -> tuple[int, dict[str, str], None, bytes]:
        if self._version(key) != condition:
            raise FileExistsError(key)
        generation = self.store(key, content)
        reply = {"generation": generation, "size": str(len(content))}
        return 200, {}, None, json.dumps(reply).encode()


class Azure(StandIn):
    """adlfs."""

    def __init__(self) -> None:
        super().__init__()
        self.service_client = SimpleNamespace(get_blob_client=self._client)
        self.blocks: dict[str, dict[str, bytes]] = {}

    def _client(self, container: str, blob: str) -> _Blob:
        if container != BUCKET:
            raise StatusError(404, "ContainerNotFound")
        return _Blob(self, blob)


class _Blob:
    def __init__(self, store: Azure, name: str) -> None:
        self._store = store
        self._name = name
        self._blocks = store.blocks.setdefault(name, {})

    async def __aenter__(self) -> _Blob:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    async def get_block_list(self, kind: str, **_: Any) -> tuple[list[Any], list[Any]]:
        assert kind == "uncommitted"
        if not self._blocks and self._name not in self._store.objects:
            raise StatusError(404, "BlobNotFound")
        blocks = [SimpleNamespace(id=name, size=len(data)) for name, data in self._blocks.items()]
        return [], blocks

    async def stage_block(self, name: str, data: bytes, **_: Any) -> None:
        self._store._note(name.rpartition("-")[2])
        self._blocks[name] = data

    async def commit_block_list(
        self, names: list[str], match_condition: str, etag: str = "0", **_: Any
    ) -> dict[str, str]:
        self._store._note("commit")
        assert (match_condition == "missing") == (etag == "0")
        if not set(names) <= set(self._blocks):
            raise StatusError(400, "InvalidBlockList")
        if self._store._version(self._name) != etag:
            raise StatusError(409 if etag == "0" else 412, "ConditionNotMet")
        content = b"".join(self._blocks[name] for name in names)
        self._blocks.clear()
        return {"etag": self._store.store(self._name, content)}


def place_in(scheme: str, filesystem: StandIn, path: str = f"{BUCKET}/a b") -> RemotePath:
    """An object of the stand-in."""
    found: Any = filesystem
    return RemotePath(f"{scheme}://{path}", found, path, Store())
