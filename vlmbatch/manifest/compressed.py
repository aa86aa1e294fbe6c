"""Opening plain, gzip and Zstandard files as streams of bytes."""

from __future__ import annotations

import gzip
import io
from typing import TYPE_CHECKING, BinaryIO, cast

import zstandard

from vlmbatch.manifest.stored_file import StoredFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BUFFER_BYTES = 2**20
# A kilobyte of Zstandard input holds at most about 32 MB of output, which is kept at once.
_ZSTD_INPUT_BYTES = 1024
_ZSTD_HEADER_BYTES = 18
_ZSTD_MAX_WINDOW = 2**27  # bytes; what the library takes, and then holds


class WindowError(Exception):
    """A Zstandard frame needs more memory than is given to it; the message says what to do."""


def open_stream(stored: StoredFile) -> BinaryIO:
    """Open a file for reading, decompressed when its name ends in .gz or .zst.

    Raises:
        ManifestError: it cannot be opened.
    """
    raw = stored.open()
    if stored.name.lower().endswith(".gz"):
        return cast(BinaryIO, io.BufferedReader(_GzipReader(raw), BUFFER_BYTES))
    if stored.name.lower().endswith(".zst"):
        return cast(BinaryIO, io.BufferedReader(_ZstdReader(raw), BUFFER_BYTES))
    return raw


class _GzipReader(gzip.GzipFile):
    """Closes what it reads, as it does where it is given a path."""

    def __init__(self, raw: BinaryIO) -> None:
        super().__init__(fileobj=raw, mode="rb")
        self._raw = raw

    def close(self) -> None:
        super().close()
        self._raw.close()


class _ZstdReader(io.RawIOBase):
    """Decompress frame after frame. Unlike zstandard's own reader, notice a file cut short."""

    def __init__(self, raw: BinaryIO) -> None:
        self._raw = raw
        self._frame: zstandard.ZstdDecompressionObj | None = None
        self._head = b""  # of the frame
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._output:
            chunk = self._input or self._raw.read(_ZSTD_INPUT_BYTES)
            if not chunk:
                if self._frame is not None:
                    raise EOFError("the Zstandard stream ends in the middle of a frame")
                return 0
            if self._frame is None:
                self._frame = zstandard.ZstdDecompressor(
                    max_window_size=_ZSTD_MAX_WINDOW
                ).decompressobj()
                self._head = b""
            if len(self._head) < _ZSTD_HEADER_BYTES:
                self._head += chunk[:_ZSTD_HEADER_BYTES]
            try:
                self._output = memoryview(self._frame.decompress(chunk))
            except zstandard.ZstdError as error:
                self._check_window(error)
                raise
            self._input = b""
            if self._frame.eof:
                self._input = self._frame.unused_data
                self._frame = None
        target = memoryview(buffer)
        count = min(len(target), len(self._output))
        target[:count] = self._output[:count]
        self._output = self._output[count:]
        return count

    def _check_window(self, error: zstandard.ZstdError) -> None:
        """Raise WindowError if that is why the frame cannot be decompressed."""
        try:
            window = zstandard.get_frame_parameters(self._head).window_size
        except zstandard.ZstdError:
            return  # no frame at all
        if window > _ZSTD_MAX_WINDOW:
            raise WindowError(
                f"it was compressed with a window of {window // 2**20} MiB "
                f"(--long={window.bit_length() - 1} or --ultra), and {_ZSTD_MAX_WINDOW // 2**20} "
                f"MiB are the most that is held: compress it again with "
                f"--long={_ZSTD_MAX_WINDOW.bit_length() - 1} or less"
            ) from error

    def close(self) -> None:
        self._raw.close()
        super().close()
