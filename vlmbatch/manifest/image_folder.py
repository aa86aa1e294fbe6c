"""A folder of images as a manifest: a row an image, its path the id."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.log import logger
from vlmbatch.manifest.image_tree import ImageTree
from vlmbatch.manifest.scan import Record, Scan
from vlmbatch.manifest.sidecars import read_sidecars
from vlmbatch.manifest.spool import spool

_SHOWN_KINDS = 5


class ImageFolder:
    """The images that ``tree`` finds below ``base``, each with the columns of its ``sidecars``.

    What the first pass finds is kept in a temporary file: an image that comes later is not in this
    run, one that has gone is an error row. A sidecar has at most ``max_bytes``.
    """

    def __init__(
        self, name: str, base: Path, tree: ImageTree, sidecars: tuple[str, ...], max_bytes: int
    ) -> None:
        self.name = name
        self._base = base
        self._tree = tree
        self._sidecars = sidecars
        self._max_bytes = max_bytes
        self._open_found: Callable[[], BinaryIO] | None = None

    def scan(self, scan: Scan, limit: int | None) -> str:
        """Find at most ``limit`` images; the digest of their paths and sidecars.

        Raises:
            ManifestError: a folder cannot be read, or a column's name is reserved.
            OutputError: what is found does not fit the temporary folder.
        """
        hasher = hashlib.sha256()
        self._open_found = self._spooled(limit)
        with self._open_found() as found:
            for line, raw in enumerate(found, 1):
                hasher.update(raw)
                values = _values(raw)
                scan.add_row(values)
                if isinstance(values, dict):
                    shown = {**values, "image": values["id"]}  # an image's name may be no text
                    scan.extras.add_values(shown, len(raw), f"{self.name}:{line}")
        self._tell_what_is_left_out()
        return hasher.hexdigest()

    def records(self, columns: Collection[str] | None = None, skip: int = 0) -> Iterator[Record]:
        """Yield (number from 1, values) of what ``scan`` has found; all columns always."""
        if self._open_found is None:
            self._open_found = self._spooled(None)
        with self._open_found() as found:
            for line, raw in islice(enumerate(found, 1), skip, None):
                yield line, _values(raw)

    def _spooled(self, limit: int | None) -> Callable[[], BinaryIO]:
        return spool(map(self._found, islice(self._tree.paths(), limit)), self.name)

    def _found(self, path: str) -> bytes:
        """A line of JSON about an image. Its path may hold lone surrogates, which JSON escapes."""
        columns: dict[str, Any] = {}
        if self._sidecars:
            try:
                columns = read_sidecars(self._base / path, self._sidecars, self._max_bytes)
            except RowError as error:
                return json.dumps({"error": [error.code, error.message]}).encode() + b"\n"
        return json.dumps({"path": path, "columns": columns}).encode() + b"\n"

    def _tell_what_is_left_out(self) -> None:
        left_out = self._tree.left_out
        for suffix in self._sidecars:
            left_out.pop(suffix[suffix.rindex(".") :].lower(), None)
        if not left_out:
            return
        kinds = [f"{count} {suffix}" for suffix, count in left_out.most_common(_SHOWN_KINDS)]
        logger.info(
            "%s: %d files are no images by their names and are left out (%s)",
            self.name,
            left_out.total(),
            ", ".join([*kinds, "..."] if len(left_out) > _SHOWN_KINDS else kinds),
        )


def _values(raw: bytes) -> dict[str, Any] | RowError:
    found = json.loads(raw)
    if "error" in found:
        code, message = found["error"]
        return RowError(ErrorCode(code), message)
    path = found["path"]
    # With a colon it could be taken for a URL.
    image = path if ":" not in path else f"./{path}"
    row_id = os.fsencode(path).decode(errors="backslashreplace")
    return {"id": row_id, "image": image, **found["columns"]}
