"""The manifest: scanned once, then read row by row."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmbatch.config import Part
from vlmbatch.errors import ErrorCode, ManifestError, RowError
from vlmbatch.log import logger
from vlmbatch.manifest.columns import NamedColumns
from vlmbatch.manifest.division import rows_of_part, uses_within
from vlmbatch.manifest.first_pass import first_pass
from vlmbatch.manifest.huggingface import image_value
from vlmbatch.manifest.ids import SeenIds
from vlmbatch.manifest.json_columns import JsonColumns
from vlmbatch.manifest.openai_batch import BatchRowBuilder
from vlmbatch.manifest.rows import RowBuilder
from vlmbatch.manifest.sample import sampled_rows
from vlmbatch.manifest.scan import ManifestFile, Record, record_id
from vlmbatch.types import Row


@dataclass(frozen=True, slots=True)
class ManifestInfo:
    """What the first pass found. ``num_rows``: that ``rows`` gives out. ``sha256`` is the digest of
    the decompressed content; for a folder, of its files' names and digests. ``extra_schema``: of
    columns made of answers, and those that pass through. ``image_base``: the
    folder or URL where relative image paths start; None where no row has one. ``manifest_rows``:
    with those that a sample leaves out."""

    num_rows: int
    sha256: str
    extra_schema: pa.Schema
    files: tuple[str, ...]
    image_base: Path | str | None
    manifest_rows: int


class Manifest:
    """Rows in order, from one or more files, in bounded memory.

    ``scan`` is the first pass, ``rows`` the second, which must not overlap. ``last_image_uses`` is
    what ``ImageUses`` says after ``scan``, of the rows that ``select`` or a sample has chosen. The
    rows of a sample are numbered from 0; their ids and seeds are as in the whole manifest.
    ``json_columns``: that the output has of its answers.
    """

    last_image_uses: NDArray[np.int64] | None = None

    def __init__(
        self,
        files: Sequence[ManifestFile],
        builder: RowBuilder | BatchRowBuilder,
        limit: int | None,
        image_base: Path | str,
        *,
        streaming: bool,
        sample: tuple[int, int] | None = None,
        fetches_images: bool = False,
        json_columns: JsonColumns | None = None,
    ) -> None:
        """``sample``: its number of rows, and its seed. ``fetches_images``: rows may name some by
        URL."""
        self.fetches_images = fetches_images
        self.json_columns = json_columns
        self._files = files
        self._builder = builder
        self._image_base = image_base
        self._limit = limit
        self._streaming = streaming
        self._sample = sample
        self._sampled: NDArray[np.int64] | None = None  # by scan
        self._info: ManifestInfo | None = None
        self._rows_of_files: list[int] = []  # by scan
        self._selected: range | None = None
        self._all_image_uses: NDArray[np.int64] | None = None  # by scan, of the whole manifest

    @property
    def format(self) -> Literal["manifest", "openai"]:
        """What its lines are: rows of our own, or OpenAI's batch requests."""
        return "openai" if isinstance(self._builder, BatchRowBuilder) else "manifest"

    def scan(self) -> ManifestInfo:
        """Count the rows, hash the content, type the pass-through columns, compare the ids, see
        that columns that were given a name are there.

        Raises:
            ManifestError: nothing may run on this manifest; the message names file and line.
        """
        assert not self._streaming, "a stream can be read only once"
        found = first_pass(self._files, self._builder.columns, self._limit)
        self._rows_of_files = found.rows_of_files
        self.last_image_uses = found.last_image_uses
        num_rows = found.num_rows
        if self._sample is not None:
            self._sampled = sampled_rows(num_rows, *self._sample)
            self.last_image_uses = uses_within(self.last_image_uses, self._sampled)
            num_rows = len(self._sampled)
        self._all_image_uses = self.last_image_uses
        extra = found.extra_schema
        if self.json_columns is not None:
            extra = pa.schema([*self.json_columns.schema, *extra], extra.metadata)
        self._info = ManifestInfo(
            num_rows,
            found.sha256,
            extra,
            tuple(file.name for file in self._files),
            self._image_base if found.has_relative_images else None,
            found.num_rows,
        )
        return self._info

    def scanned(self) -> ManifestInfo:
        """What ``scan`` has found; scans where nobody has.

        Raises:
            ManifestError: as of ``scan``.
        """
        return self._info or self.scan()

    def rows_of(self, part: Part) -> range:
        """Which rows of the manifest are the part's; after ``scan``."""
        assert self._info is not None, "which rows a part has is known after the scan"
        return rows_of_part(part, self._info.num_rows, self._all_image_uses)

    def select(self, part: Part) -> range:
        """Let further passes give the rows of one part alone, and return which these are.

        They are numbered from 0; ids and seeds that come of a row's number are as in a run on the
        whole manifest. To be called after ``scan``, and again for another part.
        """
        assert self._sampled is None, "a sample has no parts"
        self._selected = self.rows_of(part)
        self.last_image_uses = uses_within(self._all_image_uses, self._selected)
        return self._selected

    def rows(self) -> Iterator[Row]:
        """Yield every row in order; what is wrong with one stands in its ``error``.

        Raises:
            ManifestError: the first line of a file is not a JSON object, or the manifest changed
                after ``scan``: before a row that it has not seen is given out.
        """
        limit = self._limit if self._info is None else len(self.rows_wanted)
        index = 0
        named = NamedColumns(self._builder.columns.renamed)
        rows = self._checked_stream(named) if self._streaming else self._all_rows()
        while limit is None or index < limit:
            row = next(rows, None)
            if row is None:
                break
            yield row
            index += 1
        if self._streaming:
            named.warn_of_unseen()
        if isinstance(self._builder, RowBuilder) and self._builder.is_prompt_unused:
            logger.warning("--prompt is for rows without a prompt: all have theirs, which are used")
        assert self._info is None or index == limit, "a file was not compared"

    def rows_with_values(self) -> Iterator[tuple[Row, dict[str, Any]]]:
        """Yield every row with the values it was built from, none where its line has none."""
        for number, index, file, (line, values) in self._wanted_records():
            if index == self._limit:
                return
            row = self._builder.build(index, file.name, line, values)
            if number != index:
                row = replace(row, index=number)
            yield row, {} if isinstance(values, RowError) else values

    def kept_inputs(self) -> Iterator[dict[str, Any]]:
        """The input columns of every row that the output keeps, as it keeps them; none of a line
        that has none. May be read beside ``rows``.

        Raises:
            ManifestError: the manifest cannot be read, or has fewer rows than ``scan`` found.
        """
        assert self._info is not None, "what a stream keeps is in its rows"
        columns = self._builder.columns
        num_read = 0
        for number, _, _, (_, values) in self._wanted_records(columns.kept):
            kept = {} if isinstance(values, RowError) else dict(values)
            kept = {name: value for name, value in kept.items() if name in columns.kept}
            if columns.image in kept:
                kept[columns.image] = image_value(kept[columns.image])
            yield kept
            num_read = number + 1
        if num_read < len(self.rows_wanted):
            raise self._changed(num_read)

    @property
    def rows_wanted(self) -> range:
        """Which rows passes after ``scan`` give out; before it, nobody knows the end."""
        if self._selected is not None:
            return self._selected
        return range(0 if self._info is None else self._info.num_rows)

    def _wanted_records(
        self, columns: Collection[str] | None = None
    ) -> Iterator[tuple[int, int, ManifestFile, Record]]:
        """Every record that is given out, with its number among these and in the manifest."""
        records = self._records(columns)
        if self._sampled is None:
            first = self.rows_wanted.start
            for index, file, record in records:
                yield index - first, index, file, record
            return
        for number, wanted in enumerate(self._sampled.tolist()):
            for index, file, record in records:
                if index == wanted:
                    yield number, index, file, record
                    break

    def ids(self) -> Iterator[str]:
        """The id of every row of the whole manifest or its sample, also after ``select``.

        Raises:
            ManifestError: the manifest cannot be read, or has changed.
        """
        assert self._info is not None, "ids of a stream come with its rows"
        column = self._builder.columns.id
        records = enumerate(chain.from_iterable(file.records([column]) for file in self._files))
        all_rows = range(self._info.num_rows)
        for wanted in all_rows if self._sampled is None else self._sampled.tolist():
            for index, (_, values) in records:
                if index == wanted:
                    yield record_id(values, column, index)
                    break

    def _records(
        self, columns: Collection[str] | None = None
    ) -> Iterator[tuple[int, ManifestFile, Record]]:
        """Every record from the first wanted on, with its number in the manifest."""
        first = self.rows_wanted.start
        index = 0
        for place, file in enumerate(self._files):
            if first and index + self._rows_of_files[place] <= first:
                index += self._rows_of_files[place]
                continue
            skip = max(0, first - index)
            index += skip
            for record in file.records(columns, skip):
                yield index, file, record
                index += 1

    def _all_rows(self) -> Iterator[Row]:
        return (row for row, _ in self.rows_with_values())

    def _checked_stream(self, named: NamedColumns) -> Iterator[Row]:
        """What ``scan`` refuses the whole manifest for is an error of the row in a stream."""
        columns = self._builder.columns
        seen = SeenIds()
        for row, values in self.rows_with_values():
            named.see(values)
            error = row.error
            is_known = seen.add(row.id)
            if reserved := next(filter(columns.is_reserved, row.extra), None):
                message = columns.reserved_message(reserved)
                if row.index == 0:
                    raise ManifestError(f"{row.file}:{row.line}: {message}")
                error = RowError(ErrorCode.MANIFEST_LINE_INVALID, message)
            elif is_known:
                error = RowError(
                    ErrorCode.ID_DUPLICATE, f'an earlier row has the id "{row.id}" too'
                )
            yield row if error is row.error else replace(row, error=error)

    def _changed(self, num_rows: int) -> ManifestError:
        assert self._info is not None
        return ManifestError(
            f"{self._files[-1].name}: changed while it was being read: it had "
            f"{self._info.num_rows} rows, now it has {num_rows}"
        )
