"""Putting one file to S3: conditionally, in parts where it is large, going on where it was cut off.

A part that S3 has is not sent again, by this process or a later one: the upload's id is noted in a
file of ours. Until S3 is told that the upload is complete nobody sees any of it.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from vlmbatch.errors import UsageError
from vlmbatch.remote.filesystem import (
    RemoteError,
    RemoteForbiddenError,
    RemoteMissingError,
    RemotePath,
)

S3_SCHEMES = ("s3", "s3a")
PART_BYTES = 8 * 2**20
_MAX_PARTS = 10_000  # of S3; the smallest it takes has 5 MiB
_THREADS = 4
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict")


class UploadLog:
    """Uploads that are under way, by URL, in a JSON file: of each its id and what it is of."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def get(self, url: str) -> dict[str, Any] | None:
        found = self._read().get(url)
        return found if isinstance(found, dict) else None

    def set(self, url: str, upload: dict[str, Any] | None) -> None:
        """Note one, or that there is none any more.

        Raises:
            OSError: the file cannot be written.
        """
        uploads = self._read()
        uploads.pop(url, None)
        if upload is not None:
            uploads[url] = upload
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        temporary.write_text(json.dumps(uploads))
        temporary.replace(self.path)

    def _read(self) -> dict[str, Any]:
        try:
            uploads = json.loads(self.path.read_bytes())
        except (FileNotFoundError, ValueError):  # cut off by a crash: at worst all is sent again
            return {}
        return uploads if isinstance(uploads, dict) else {}


class S3Upload:
    """The file ``source`` on its way to ``path``; ``sent`` is told of bytes that S3 has."""

    def __init__(
        self, path: RemotePath, source: Path, log: UploadLog, sent: Callable[[int], None]
    ) -> None:
        self._path = path
        self._source = source
        self._log = log
        self._sent = sent
        status = source.stat()
        self._size = status.st_size
        self._part_bytes = max(PART_BYTES, -(-self._size // _MAX_PARTS))
        self._file = [self._size, status.st_mtime_ns, status.st_ino, self._part_bytes]
        bucket, key, _ = path.filesystem.split_path(path.path)
        self._place = {"Bucket": bucket, "Key": key}

    def put(self, expected: str | None, check: Callable[[], None]) -> str:
        """Put it where the object with the ETag ``expected`` is, or none; returns the new ETag.

        ``check`` raises where that is not so any more: it tells what S3's refusal was about, and is
        asked besides before a large file is sent, or is seen.

        Raises:
            ChangedError: by ``check``.
            RemoteError: S3 refuses, or cannot be reached.
        """
        condition = {"IfNoneMatch": "*"} if expected is None else {"IfMatch": expected}
        check()
        if self._size <= self._part_bytes:
            self._give_up_earlier()
            body = self._source.read_bytes()
            reply = self._conditional("put_object", check, Body=body, **condition)
            self._sent(self._size)
            return str(reply["ETag"])
        upload, there = self._begun()
        parts = self._send(upload, there)
        check()
        reply = self._conditional(
            "complete_multipart_upload",
            check,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
            **condition,
        )
        self._log.set(self._path.url, None)
        return str(reply["ETag"])

    def _begun(self) -> tuple[str, dict[int, str]]:
        """The upload to go on with, or a new one: its id, and the ETags of parts that are there."""
        earlier = self._log.get(self._path.url)
        if earlier is not None and earlier.get("file") == self._file:
            with suppress(RemoteMissingError):  # it was aborted, or is complete
                return earlier["id"], dict(self._parts_of(earlier["id"]))
        self._give_up_earlier()
        upload = str(self._call("create_multipart_upload")["UploadId"])
        self._log.set(self._path.url, {"id": upload, "file": self._file})
        return upload, {}

    def _parts_of(self, upload: str) -> Iterator[tuple[int, str]]:
        marker: dict[str, Any] = {}
        while True:
            reply = self._call("list_parts", UploadId=upload, **marker)
            for part in reply.get("Parts", ()):
                if part["Size"] == self._length(part["PartNumber"]):
                    yield part["PartNumber"], part["ETag"]
            if not reply.get("IsTruncated"):
                return
            marker = {"PartNumberMarker": reply["NextPartNumberMarker"]}

    def _send(self, upload: str, there: dict[int, str]) -> list[dict[str, Any]]:
        """Send the parts that are not there; all of them, as S3 wants them listed."""
        for number in there:
            self._sent(self._length(number))
        count = -(-self._size // self._part_bytes)
        missing = [number for number in range(1, count + 1) if number not in there]
        todo, done = deque(missing), SimpleQueue[tuple[int, str | BaseException]]()

        def send() -> None:
            while todo:
                with suppress(IndexError):  # another thread has taken the last one
                    number = todo.popleft()
                    try:
                        done.put((number, self._send_part(upload, number)))
                    except BaseException as error:  # noqa: BLE001  raised again on the main thread
                        done.put((number, error))

        for _ in range(min(_THREADS, len(missing))):
            Thread(target=send, name="put", daemon=True).start()  # no signal waits for them
        for _ in missing:
            number, result = done.get()
            if isinstance(result, BaseException):
                todo.clear()
                raise result
            there[number] = result
            self._sent(self._length(number))
        return [{"PartNumber": number, "ETag": there[number]} for number in range(1, count + 1)]

    def _send_part(self, upload: str, number: int) -> str:
        with self._source.open("rb") as file:
            file.seek((number - 1) * self._part_bytes)
            body = file.read(self._part_bytes)
        reply = self._call("upload_part", UploadId=upload, PartNumber=number, Body=body)
        return str(reply["ETag"])

    def _length(self, number: int) -> int:
        """The bytes of a part, counted from 1."""
        return min(self._part_bytes, self._size - (number - 1) * self._part_bytes)

    def _give_up_earlier(self) -> None:
        """Let S3 forget an upload of another file, whose parts cost until then."""
        earlier = self._log.get(self._path.url)
        if earlier is not None:
            with suppress(RemoteMissingError, RemoteForbiddenError):
                self._call("abort_multipart_upload", UploadId=earlier.get("id"))
            self._log.set(self._path.url, None)

    def _conditional(self, method: str, check: Callable[[], None], **arguments: Any) -> Any:
        """As ``_call``, with a condition that is to hold."""
        try:
            return self._call(method, **arguments)
        except RemoteError as error:
            code = _error_code(error)
            if code in _CHANGED:
                check()
            if code != "NotImplemented":
                raise
        check()  # a store with S3's API that knows no conditions
        return self._call(
            method, **{name: value for name, value in arguments.items() if "Match" not in name}
        )

    def _call(self, method: str, **arguments: Any) -> Any:
        with self._path.errors():
            return self._path.filesystem.call_s3(method, **self._place, **arguments)


def _error_code(error: RemoteError) -> str | None:
    """S3's own code for what it has refused."""
    cause = error.__cause__
    while cause is not None:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            code = response.get("Error", {}).get("Code")
            return None if code is None else str(code)
        cause = cause.__cause__
    return None


def check_writable(path: RemotePath) -> None:
    """Find out whether S3 would take an object at ``path``; of other stores nothing can be known.

    An upload is begun, of which nobody sees anything, and given up.

    Raises:
        UsageError: there is no such bucket.
        RemoteError: S3 would not, or cannot be reached.
    """
    if path.scheme not in S3_SCHEMES:
        return
    bucket, key, _ = path.filesystem.split_path(path.path)
    place = {"Bucket": bucket, "Key": key}
    try:
        with path.errors():
            upload = path.filesystem.call_s3("create_multipart_upload", **place)["UploadId"]
    except RemoteMissingError as error:
        raise UsageError(f"{path.url}: there is no bucket {bucket}; create it first") from error
    with suppress(RemoteForbiddenError), path.errors():  # who may put need not be let do this
        path.filesystem.call_s3("abort_multipart_upload", **place, UploadId=upload)
