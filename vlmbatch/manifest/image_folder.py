"""A folder of images as a manifest: a row an image or a page of a PDF, its path the id."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from vlmbatch.config import ImageLimits, ManifestConfig
from vlmbatch.config.pages import PageRanges
from vlmbatch.errors import ErrorCode, ManifestError, RowError
from vlmbatch.images.loading.page_counter import PageCounter
from vlmbatch.images.pdf import MISSING as MISSING_LIBRARY
from vlmbatch.images.pdf import has_pdf_library
from vlmbatch.log import logger
from vlmbatch.manifest.ids import NamedRowError
from vlmbatch.manifest.image_tree import PatternTree, is_document_name
from vlmbatch.manifest.page_names import page_name
from vlmbatch.manifest.scan import Record, Scan
from vlmbatch.manifest.sidecars import read_sidecars
from vlmbatch.manifest.spool import spool

_SHOWN_KINDS = 5
_MAX_PAGES = 100_000


class ImageFolder:
    """The images that ``tree`` finds below ``base``, each with the columns of its ``sidecars``.

    What the first pass finds is kept in a temporary file: an image that comes later is not in this
    run, one that has gone is an error row. Of a PDF each page is a row.
    """

    def __init__(self, name: str, base: Path, tree: PatternTree, config: ManifestConfig) -> None:
        self.name = name
        self._base = base
        self._tree = tree
        self._sidecars = config.sidecars
        self._max_bytes = config.max_line_bytes
        self._pages = PageRanges(config.pages or "1-")
        self._given_pages = config.pages
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
        with closing(PageCounter(ImageLimits())) as counter:
            lines = chain.from_iterable(self._lines(path, counter) for path in self._tree.paths())
            return spool(islice(lines, limit), self.name)

    def _lines(self, path: str, counter: PageCounter) -> Iterator[bytes]:
        """JSON about an image, or about each page. A path may hold lone surrogates, which JSON
        escapes."""
        columns: dict[str, Any] = {}
        try:
            if self._sidecars:
                columns = read_sidecars(self._base / path, self._sidecars, self._max_bytes)
            if not is_document_name(path):
                yield _line(path=path, columns=columns)
                return
            for page in self._pages_of(path, counter):
                yield _line(path=path, page=page, columns=columns)
        except RowError as error:
            yield _line(path=path, error=[error.code, error.message])

    def _pages_of(self, path: str, counter: PageCounter) -> Iterable[int]:
        if not has_pdf_library():
            raise ManifestError(
                f"{self._base / path}: {MISSING_LIBRARY}; or name the images alone, such as with "
                f"'{self._base}/**/*.jpg'"
            )
        try:
            num_pages = counter.count(str(self._base / path))
        except RowError as error:
            if error.code == ErrorCode.IMAGE_TIMEOUT:
                raise
            return [1]  # whoever draws it meets the same, as an error of this row
        if num_pages == 0:
            return [1]
        if num_pages > _MAX_PAGES:
            raise RowError(
                ErrorCode.IMAGE_UNREADABLE,
                f"{self._base / path}: it has {num_pages} pages, over the limit of {_MAX_PAGES}",
            )
        pages = list(self._pages.of(num_pages))
        if not pages:
            logger.info(
                "%s: has %d pages, and none of --pages %s",
                *(self._base / path, num_pages, self._given_pages),
            )
        return pages

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
    path, page = found["path"], found.get("page")
    name = os.fsencode(path).decode(errors="backslashreplace")
    if "error" in found:
        code, message = found["error"]
        return NamedRowError(RowError(ErrorCode(code), message), name)
    # With a colon it could be taken for a URL.
    image = path if ":" not in path else f"./{path}"
    if page is None:
        return {"id": name, "image": image, **found["columns"]}
    own = {"id": page_name(name, page), "image": page_name(image, page), "doc": name, "page": page}
    return {**own, **found["columns"]}


def _line(**values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"
