"""Putting one file to Google Cloud Storage: conditionally, going on where it was cut off.

What Google has of it is not sent again, by this process or a later one: the session's URL is noted
in a file of ours. Until the last byte has arrived nobody sees any of it.
https://cloud.google.com/storage/docs/resumable-uploads
https://cloud.google.com/storage/docs/request-preconditions
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from vlmbatch.remote.errors import RemoteError, RemoteFailedError, RemoteMissingError, http_status
from vlmbatch.remote.file_parts import FileParts
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.upload_log import UploadLog

GS_SCHEMES = ("gs", "gcs")
_MAX_PARTS = 2**31  # there is no limit
_COMPLETE = (200, 201)  # 308 while bytes are missing


class GoogleUpload:
    """The file ``source`` on its way to ``path``; ``sent`` is told of bytes that Google has."""

    def __init__(
        self, path: RemotePath, source: Path, log: UploadLog, sent: Callable[[int], None]
    ) -> None:
        self._path = path
        self._parts = FileParts(source, _MAX_PARTS)
        self._log = log
        self._sent = sent

    def put(self, expected: str | None, check: Callable[[], None]) -> str:
        """Put it where the object of the generation ``expected`` is, or none; returns the new one.

        ``check`` raises where that is not so any more: it is asked before anything is sent, and
        when Google has refused.

        Raises:
            ChangedError: by ``check``.
            RemoteError: Google refuses, or cannot be reached.
        """
        check()
        condition = {"ifGenerationMatch": expected or "0"}
        try:
            if len(self._parts.numbers) <= 1:
                found = self._send_whole(condition)
            else:
                found = self._send_parts(condition, check)
        except RemoteError as error:
            # gcsfs makes the former of the latter, not in all its versions.
            if isinstance(error.__cause__, FileExistsError) or http_status(error) == 412:
                self._log.set(self._path.url, None)
                check()
            raise
        self._log.set(self._path.url, None)
        return str(found["generation"])

    def _send_whole(self, condition: dict[str, str]) -> dict[str, Any]:
        boundary = uuid4().hex
        start = (
            f"--{boundary}\r\nContent-Type: application/json\r\n\r\n"
            f"{json.dumps({'name': _key(self._path)})}\r\n"
            f"--{boundary}\r\nContent-Type: application/octet-stream\r\n\r\n"
        )
        _, _, body = _request(
            self._path,
            "POST",
            _uploads_url(self._path),
            data=start.encode() + self._parts.read(1) + f"\r\n--{boundary}--\r\n".encode(),
            headers={"Content-Type": f"multipart/related; boundary={boundary}"},
            uploadType="multipart",
            **condition,
        )
        self._sent(self._parts.size)
        found: dict[str, Any] = json.loads(body)
        return found

    def _send_parts(self, condition: dict[str, str], check: Callable[[], None]) -> dict[str, Any]:
        """Send what is not there; what Google says about the object."""
        session, reply = self._begun(condition)
        there = 0
        while not isinstance(reply, dict):
            self._sent(reply - there)
            there = reply
            if there + self._parts.part_bytes >= self._parts.size:
                check()  # before the last one, with which the object is seen
            reply = self._send_part(session, there)
            if reply == there:
                raise RemoteFailedError(f"{self._path.url}: takes no more than {there} bytes")
        self._sent(self._parts.size - there)
        if int(reply["size"]) != self._parts.size:
            raise RemoteError(
                f"{self._path.url} has {reply['size']} bytes, expected {self._parts.size}: remove "
                "it, and run the same command again"
            )
        return reply

    def _begun(self, condition: dict[str, str]) -> tuple[str, dict[str, Any] | int]:
        """The session to go on with, or a new one, and what is there of the file in it."""
        about = [*self._parts.identity, condition]
        earlier = self._log.get(self._path.url)
        if earlier is not None and earlier.get("file") == about:
            with suppress(RemoteMissingError):  # it has ended, after a week at the latest
                return earlier["id"], self._ask(earlier["id"], f"bytes */{self._parts.size}")
        session = _begin(self._path, condition)
        self._log.set(self._path.url, {"id": session, "file": about})
        return session, 0

    def _send_part(self, session: str, start: int) -> dict[str, Any] | int:
        data = self._parts.read_at(start)
        span = f"bytes {start}-{start + len(data) - 1}/{self._parts.size}"
        return self._ask(session, span, data)

    def _ask(self, session: str, content_range: str, data: bytes = b"") -> dict[str, Any] | int:
        """The object, when all of it is there, or the number of bytes that are."""
        headers = {"Content-Range": content_range, "Content-Length": str(len(data))}
        status, reply, body = _request(self._path, "PUT", session, headers=headers, data=data)
        if status in _COMPLETE:
            found: dict[str, Any] = json.loads(body)
            return found
        return int(reply["Range"].rpartition("-")[2]) + 1 if "Range" in reply else 0


def _begin(path: RemotePath, condition: dict[str, str]) -> str:
    """The URL of a new session, in which an object can be sent."""
    _, reply, _ = _request(
        path,
        "POST",
        _uploads_url(path),
        json={"name": _key(path)},
        uploadType="resumable",
        **condition,
    )
    return str(reply["Location"])


def _request(
    path: RemotePath, method: str, url: str, **arguments: Any
) -> tuple[int, Mapping[str, str], bytes]:
    """Status, headers and content of the reply, after the attempts that gcsfs makes."""
    from fsspec.asyn import sync

    filesystem = path.filesystem
    with path.errors():
        status, headers, _, body = sync(
            filesystem.loop, filesystem._request, method, url, **arguments
        )
    return status, headers, body


def _uploads_url(path: RemotePath) -> str:
    bucket, _, _ = path.filesystem.split_path(path.path)
    base: str = path.filesystem.base  # ends in /storage/v1/
    return f"{base.replace('/storage/v1/', '/upload/storage/v1/')}b/{quote(bucket, safe='')}/o"


def _key(path: RemotePath) -> str:
    _, key, _ = path.filesystem.split_path(path.path)
    return str(key)


def check_google(path: RemotePath) -> None:
    """Find out whether Google would take an object at ``path``.

    A session is begun, of which nobody sees anything, and left to end.

    Raises:
        RemoteMissingError: there is no such bucket.
        RemoteError: Google would not, or cannot be reached.
    """
    _begin(path, {})
