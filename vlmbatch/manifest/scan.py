"""What the first pass over a manifest gathers."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from vlmbatch.errors import RowError
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.ids import IdHashes, id_of_error, read_id, unknown_id
from vlmbatch.manifest.image_uses import ImageUses
from vlmbatch.manifest.passthrough import ExtraColumns

# The line (JSONL) or row (Parquet) number from 1, and its values or why there are none.
Record = tuple[int, dict[str, Any] | RowError]


class Scan:
    """Row count, ids, images and pass-through columns, summed over the files of a manifest."""

    def __init__(self, columns: Columns) -> None:
        self.columns = columns
        self.extras = ExtraColumns(columns)
        self.ids = IdHashes()
        self.images = ImageUses()
        self.has_relative_images = False
        self.num_rows = 0
        self._partition: Mapping[str, str | None] = {}

    @contextmanager
    def in_partition(self, values: Mapping[str, str | None]) -> Iterator[None]:
        """Give rows and files that come meanwhile these columns, where they have none."""
        self._partition = self.extras.partition = values
        try:
            yield
        finally:
            self._partition = self.extras.partition = {}

    def add_row(self, values: dict[str, Any] | RowError) -> None:
        """Count a row, its id and its image."""
        if self._partition and isinstance(values, dict):
            values = {**self._partition, **values}
        self.ids.add(record_id(values, self.columns.id, self.num_rows))
        images = () if isinstance(values, RowError) else self.columns.images_of(values)
        self.images.add(images[0] if images else None)
        self.has_relative_images = self.has_relative_images or any(map(_is_relative, images))
        self.num_rows += 1


def record_id(values: dict[str, Any] | RowError, id_column: str, index: int) -> str:
    """The id that the row will have in the output."""
    if isinstance(values, RowError):
        return id_of_error(values, id_column, index)
    try:
        return read_id(values, id_column, index)
    except RowError:
        return unknown_id(index)  # becomes an error row in the second pass


def _is_relative(image: Any) -> bool:
    """Whether an image is looked for by a path that starts from the manifest's folder."""
    if isinstance(image, dict) and image.get("bytes") is None:
        image = image.get("path")
    return isinstance(image, str) and not image.startswith(("/", "data:")) and "://" not in image


class ManifestFile(Protocol):
    """One file of a manifest. Every method starts at the head of the file."""

    name: str

    def scan(self, scan: Scan, limit: int | None) -> str:
        """Feed at most ``limit`` rows to ``scan``; the SHA-256 of the content they take."""
        ...

    def records(self, columns: Collection[str] | None = None, skip: int = 0) -> Iterator[Record]:
        """Yield every row behind the first ``skip``, with at least these columns (None: all)."""
        ...
