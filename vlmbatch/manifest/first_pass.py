"""The first pass over a manifest: rows counted, content hashed, columns typed, ids compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from vlmbatch.errors import ManifestError
from vlmbatch.log import logger
from vlmbatch.manifest.columns import Columns, missing_message, passed_over_image
from vlmbatch.manifest.scan import ManifestFile, Scan, record_id


@dataclass(frozen=True, slots=True)
class FirstPass:
    """What it found. ``rows_of_files``: how many each file has, within the limit. ``sha256``: of
    the decompressed content; of several files, of their names and digests. ``extra_schema``: of
    columns that pass through. ``last_image_uses``: as of ``ImageUses``."""

    rows_of_files: list[int]
    sha256: str
    extra_schema: pa.Schema
    has_relative_images: bool
    last_image_uses: NDArray[np.int64] | None

    @property
    def num_rows(self) -> int:
        return sum(self.rows_of_files)


def first_pass(files: Sequence[ManifestFile], columns: Columns, limit: int | None) -> FirstPass:
    """Read at most ``limit`` rows of the files, in order.

    Raises:
        ManifestError: nothing may run on this manifest; the message names file and line.
    """
    scan = Scan(columns)
    digests = []
    rows_of_files = []
    for file in files:
        before = scan.num_rows
        left = None if limit is None else limit - before
        digests.append(file.scan(scan, left))
        rows_of_files.append(scan.num_rows - before)
    names = scan.extras.names
    for option, name in columns.renamed.items():
        if names and name not in names:
            raise ManifestError(missing_message(option, name, names))
    if message := passed_over_image(columns, names):
        logger.warning("%s", message)
    if repeated := scan.ids.repeated():
        _refuse_duplicates(files, columns.id, repeated, scan.num_rows)
    return FirstPass(
        rows_of_files,
        _combined(files, digests),
        scan.extras.schema(),
        scan.has_relative_images,
        scan.images.last_uses(),
    )


def _refuse_duplicates(
    files: Sequence[ManifestFile], id_column: str, repeated: frozenset[int], num_rows: int
) -> None:
    """Look again at the ids whose hashes collide; only equal ids are an error."""
    seen: dict[str, str] = {}
    index = 0
    for file in files:
        for line, values in file.records([id_column]):
            if index == num_rows:
                return
            row_id = record_id(values, id_column, index)
            index += 1
            if hash(row_id) not in repeated:
                continue
            where = f"{file.name}:{line}"
            if row_id in seen:
                raise ManifestError(
                    f'duplicate id "{row_id}": {seen[row_id]} and {where}. Ids must differ '
                    "(a row without one has its index, counted from 0)"
                )
            seen[row_id] = where


def _combined(files: Sequence[ManifestFile], digests: Sequence[str]) -> str:
    if len(digests) == 1:
        return digests[0]
    hasher = hashlib.sha256()
    for file, digest in zip(files, digests, strict=True):
        hasher.update(f"{Path(file.name).name}\0{digest}\n".encode(errors="surrogateescape"))
    return hasher.hexdigest()
