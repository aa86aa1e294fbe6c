"""Putting one file to Google Cloud Storage: conditionally, going on where it was cut off.

What Google has of it is not sent again, by this process or a later one: the session's URL is noted
in a file of ours. Until the last byte has arrived nobody sees any of it.
https://cloud.google.com/storage/docs/resumable-uploads
https://cloud.google.com/storage/docs/request-preconditions
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from vlmbatch.remote.file_parts import FileParts
from vlmbatch.remote.filesystem import RemoteError, RemoteMissingError, RemotePath
from vlmbatch.remote.upload_log import UploadLog

GS_SCHEMES = ("gs", "gcs")
_MAX_PARTS = 2**31  # none: a part is what is read into memory


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
        try:
            found = self._send(expected)
        except RemoteError as error:
            if isinstance(error.__cause__, FileExistsError):  # which gcsfs makes of status 412
                self._log.set(self._path.url, None)
                check()
            raise
        self._log.set(self._path.url, None)
        return str(found["generation"])

    def _send(self, expected: str | None) -> dict[str, Any]:
        """Send what is not there; what Google says about the object."""
        session, reply = self._begun(expected)
        counted = 0
        while not isinstance(reply, dict):
            self._sent(reply - counted)
            counted = reply
            reply = self._send_part(session, reply)
        self._sent(self._parts.size - counted)
        return reply

    def _begun(self, expected: str | None) -> tuple[str, dict[str, Any] | int]:
        """The session to go on with, or a new one, and what is there of the file in it."""
        about = [*self._parts.identity, expected]
        earlier = self._log.get(self._path.url)
        if earlier is not None and earlier.get("file") == about:
            with suppress(RemoteMissingError):  # it has ended, after a week at the latest
                return earlier["id"], self._ask(earlier["id"], f"bytes */{self._parts.size}")
        session = _begin(self._path, {"ifGenerationMatch": expected or "0"})
        self._log.set(self._path.url, {"id": session, "file": about})
        return session, 0

    def _send_part(self, session: str, start: int) -> dict[str, Any] | int:
        data = self._parts.read_at(start)
        span = f"{start}-{start + len(data) - 1}" if data else "*"
        return self._ask(session, f"bytes {span}/{self._parts.size}", data)

    def _ask(self, session: str, content_range: str, data: bytes = b"") -> dict[str, Any] | int:
        """The object, when all of it is there, or the number of bytes that are."""
        headers = {"Content-Range": content_range, "Content-Length": str(len(data))}
        with self._path.errors():
            reply, body = self._path.filesystem.call("PUT", session, headers=headers, data=data)
        if body:
            found: dict[str, Any] = json.loads(body)
            return found
        return int(reply["Range"].rpartition("-")[2]) + 1 if "Range" in reply else 0


def _begin(path: RemotePath, condition: dict[str, str]) -> str:
    """The URL of a new session, in which an object can be sent.

    Raises:
        RemoteError: Google refuses, or cannot be reached.
    """
    bucket, key, _ = path.filesystem.split_path(path.path)
    with path.errors():
        reply, _ = path.filesystem.call(
            "POST",
            path.filesystem.base.replace("/storage/v1/", "/upload/storage/v1/") + "b/{}/o",
            bucket,
            json={"name": key},
            uploadType="resumable",
            **condition,
        )
    return str(reply["Location"])


def check_google(path: RemotePath) -> None:
    """Find out whether Google would take an object at ``path``.

    A session is begun, of which nobody sees anything, and left to end.

    Raises:
        RemoteMissingError: there is no such bucket.
        RemoteError: Google would not, or cannot be reached.
    """
    _begin(path, {})
