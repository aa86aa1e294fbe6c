"""Putting one file to Azure Blob Storage: conditionally, going on where it was cut off.

A block that Azure has is not sent again, by this process or a later one: blocks are named after the
file. Until the list of them is committed nobody sees any of it.
https://learn.microsoft.com/rest/api/storageservices/put-block-list
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmbatch.remote.errors import RemoteError, RemoteMissingError, http_status
from vlmbatch.remote.file_parts import FileParts
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.stores import CONNECT_SECONDS

AZ_SCHEMES = ("az", "abfs", "abfss")
_MAX_BLOCKS = 50_000
_PUT_SECONDS = 300
_CHANGED = (400, 409, 412)  # 400: another put has taken the blocks away


class AzureUpload:
    """The file ``source`` on its way to ``path``; ``sent`` is told of bytes that Azure has."""

    def __init__(self, path: RemotePath, source: Path, sent: Callable[[int], None]) -> None:
        self._path = path
        self._parts = FileParts(source, _MAX_BLOCKS)
        self._sent = sent
        self._name = hashlib.sha256(repr(self._parts.identity).encode()).hexdigest()[:32]

    def put(self, expected: str | None, check: Callable[[], None]) -> str:
        """Put it where the blob with the ETag ``expected`` is, or none; returns the new ETag.

        ``check`` raises where that is not so any more: it is asked before anything is sent, and
        when Azure has refused.

        Raises:
            ChangedError: by ``check``.
            RemoteError: Azure refuses, or cannot be reached.
        """
        from azure.core import MatchConditions

        check()
        there = uncommitted_blocks(self._path)
        missing = []
        for number in self._parts.numbers:
            if there.get(self._block(number)) == self._parts.length(number):
                self._sent(self._parts.length(number))
            else:
                missing.append(number)
        self._parts.send(missing, self._send_block, self._sent)
        condition: dict[str, Any] = {"match_condition": MatchConditions.IfMissing}
        if expected is not None:
            condition = {"match_condition": MatchConditions.IfNotModified, "etag": expected}
        blocks = [self._block(number) for number in self._parts.numbers]
        try:
            reply = _call(self._path, "commit_block_list", blocks, **condition)
        except RemoteError as error:
            if http_status(error) in _CHANGED:
                check()
            raise
        return str(reply["etag"])

    def _send_block(self, number: int) -> None:
        _call(self._path, "stage_block", self._block(number), self._parts.read(number))

    def _block(self, number: int) -> str:
        """A block's name, as long as that of any other of the blob."""
        return f"{self._name}-{number:05}"


def uncommitted_blocks(path: RemotePath) -> dict[str, int]:
    """The blocks of a blob that were sent and are seen by nobody, by name, with their bytes.

    Raises:
        RemoteMissingError: there is no such container.
        RemoteError: Azure cannot be asked.
    """
    try:
        _, blocks = _call(path, "get_block_list", "uncommitted")
    except RemoteMissingError as error:
        if getattr(error.__cause__, "error_code", None) == "ContainerNotFound":
            raise
        return {}
    return {block.id: block.size for block in blocks}


def _call(path: RemotePath, method: str, *arguments: Any, **options: Any) -> Any:
    from fsspec.asyn import sync

    filesystem = path.filesystem
    container, blob, _ = filesystem.split_path(path.path)
    timeouts = {"connection_timeout": CONNECT_SECONDS, "read_timeout": _PUT_SECONDS}

    async def call() -> Any:
        async with filesystem.service_client.get_blob_client(container, blob) as client:
            return await getattr(client, method)(*arguments, **timeouts, **options)

    with path.errors():
        return sync(filesystem.loop, call)
