"""Lines of a byte stream, in bounded memory."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Protocol

import zstandard

from vlmbatch.errors import ManifestError
from vlmbatch.manifest.compressed import WindowError

_SKIP_BYTES = 2**20


class Hasher(Protocol):
    """What hashlib's objects have in common."""

    def update(self, data: bytes, /) -> None: ...


class Line(NamedTuple):
    """A line. ``raw`` is cut short when it is not ``complete``."""

    number: int  # from 1, blank lines counted
    raw: bytes
    complete: bool


def read_lines(
    stream: BinaryIO,
    name: str,
    max_bytes: int,
    hasher: Hasher | None = None,
    *,
    with_blank: bool = False,
) -> Iterator[Line]:
    """Yield the lines that are not blank, or all; a line over ``max_bytes`` is skipped, not held.

    A byte order mark at the start is dropped. ``hasher`` sees every byte up to the last line
    yielded, line ends and blank lines included.

    Raises:
        ManifestError: the stream cannot be read or decompressed.
    """
    number = 0
    while True:
        try:
            raw = stream.readline(max_bytes + 1)
            if not raw:
                return
            number += 1
            if hasher is not None:
                hasher.update(raw)
            complete = len(raw) <= max_bytes or raw.endswith(b"\n")
            blank = raw.isspace()
            chunk = raw
            while not complete and chunk and not chunk.endswith(b"\n"):
                chunk = stream.readline(_SKIP_BYTES)
                blank = blank and (not chunk or chunk.isspace())
                if hasher is not None:
                    hasher.update(chunk)
        except (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError) as error:
            # Where is not known: good lines may stand before it in the part that has failed.
            raise ManifestError(
                f"{name}: cannot be decompressed: {error}; the file is damaged or cut short: "
                "fetch it or compress it again"
            ) from error
        except WindowError as error:
            raise ManifestError(f"{name}: cannot be decompressed: {error}") from error
        except OSError as error:
            raise ManifestError(f"{name}: cannot be read after line {number}: {error}") from error
        if number == 1 and raw.startswith(codecs.BOM_UTF8):
            raw = raw.removeprefix(codecs.BOM_UTF8)
            blank = not raw or raw.isspace()
        if with_blank or not blank:
            yield Line(number, raw, complete)
