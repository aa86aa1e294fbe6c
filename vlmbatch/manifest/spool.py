"""What a first pass has seen and the second reads again: a temporary file without a name."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable
from typing import IO, TYPE_CHECKING, BinaryIO, cast

from vlmbatch.errors import OutputError
from vlmbatch.manifest.compressed import BUFFER_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


def spool(chunks: Iterable[bytes], name: str) -> Callable[[], BinaryIO]:
    """Copy ``chunks`` to a temporary file; what is returned opens it at its start, as often as
    wanted and beside other readers. ``name`` is of what is copied.

    Raises:
        OutputError: it does not fit the temporary folder, or ``chunks`` raises OSError.
    """
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the manifest
        for chunk in chunks:
            file.write(chunk)
        file.flush()
    except OSError as error:
        raise OutputError(
            f"{name} could not be copied to {tempfile.gettempdir()} ({error.strerror}): "
            "free some space there, or set TMPDIR to a folder on another disk"
        ) from error
    return lambda: cast(BinaryIO, io.BufferedReader(_SpoolReader(file), BUFFER_BYTES))


class _SpoolReader(io.RawIOBase):
    """Reads a file from its start; others may read it meanwhile."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._offset = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        count = os.preadv(self._file.fileno(), [buffer], self._offset)
        self._offset += count
        return count
