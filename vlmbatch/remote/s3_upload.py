"""Putting one file to S3: conditionally, in parts where it is large, going on where it was cut off.

A part that S3 has is not sent again, by this process or a later one: the upload's id is noted in a
file of ours. Until S3 is told that the upload is complete nobody sees any of it.
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from vlmbatch.remote.errors import RemoteError, RemoteForbiddenError, RemoteMissingError
from vlmbatch.remote.file_parts import FileParts
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.upload_log import UploadLog

S3_SCHEMES = ("s3", "s3a")
_MAX_PARTS = 10_000  # of S3; the smallest it takes has 5 MiB
_CHANGED = ("PreconditionFailed", "ConditionalRequestConflict")


class S3Upload:
    """The file ``source`` on its way to ``path``; ``sent`` is told of bytes that S3 has."""

    def __init__(
        self, path: RemotePath, source: Path, log: UploadLog, sent: Callable[[int], None]
    ) -> None:
        self._path = path
        self._parts = FileParts(source, _MAX_PARTS)
        self._log = log
        self._sent = sent
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
        if len(self._parts.numbers) <= 1:
            self._give_up_earlier()
            body = self._parts.read(1)
            reply = self._conditional("put_object", check, Body=body, **condition)
            self._sent(self._parts.size)
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
        if earlier is not None and earlier.get("file") == self._parts.identity:
            with suppress(RemoteMissingError):  # it was aborted, or is complete
                return earlier["id"], dict(self._parts_of(earlier["id"]))
        self._give_up_earlier()
        upload = str(self._call("create_multipart_upload")["UploadId"])
        self._log.set(self._path.url, {"id": upload, "file": self._parts.identity})
        return upload, {}

    def _parts_of(self, upload: str) -> Iterator[tuple[int, str]]:
        marker: dict[str, Any] = {}
        while True:
            reply = self._call("list_parts", UploadId=upload, **marker)
            for part in reply.get("Parts", ()):
                if part["Size"] == self._parts.length(part["PartNumber"]):
                    yield part["PartNumber"], part["ETag"]
            if not reply.get("IsTruncated"):
                return
            marker = {"PartNumberMarker": reply["NextPartNumberMarker"]}

    def _send(self, upload: str, there: dict[int, str]) -> list[dict[str, Any]]:
        """Send the parts that are not there; all of them, as S3 wants them listed."""
        for number in there:
            self._sent(self._parts.length(number))
        missing = [number for number in self._parts.numbers if number not in there]
        there |= self._parts.send(missing, partial(self._send_part, upload), self._sent)
        return [{"PartNumber": number, "ETag": there[number]} for number in self._parts.numbers]

    def _send_part(self, upload: str, number: int) -> str:
        body = self._parts.read(number)
        reply = self._call("upload_part", UploadId=upload, PartNumber=number, Body=body)
        return str(reply["ETag"])

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


def check_s3(path: RemotePath) -> None:
    """Find out whether S3 would take an object at ``path``.

    An upload is begun, of which nobody sees anything, and given up.

    Raises:
        RemoteMissingError: there is no such bucket.
        RemoteError: S3 would not, or cannot be reached.
    """
    bucket, key, _ = path.filesystem.split_path(path.path)
    place = {"Bucket": bucket, "Key": key}
    with path.errors():
        upload = path.filesystem.call_s3("create_multipart_upload", **place)["UploadId"]
    with suppress(RemoteForbiddenError), path.errors():  # who may put need not be let do this
        path.filesystem.call_s3("abort_multipart_upload", **place, UploadId=upload)
