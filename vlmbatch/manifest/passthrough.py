"""Arrow types for the columns that pass through to the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from vlmbatch.errors import ManifestError
from vlmbatch.manifest.column_types import InferredColumn, common_type
from vlmbatch.manifest.columns import Columns
from vlmbatch.manifest.huggingface import (
    features_metadata,
    image_feature,
    image_type,
    read_features,
)
from vlmbatch.manifest.stored_types import stored_type
from vlmbatch.manifest.text_columns import TextColumn

_BATCH_ROWS = 4096
_BATCH_BYTES = 32 * 2**20
MAX_COLUMNS = 1000


class ExtraColumns:
    """The union of the columns of all rows that the output has too, in order of first appearance.

    Columns of text, as of CSV, are typed by ``TextColumn``, columns of JSONL rows from their
    values, by batch: one without a common type is written as JSON text (see ``JSON_TEXT``). Columns
    of Parquet files keep their types, and what Hugging Face's datasets says of them.
    """

    def __init__(self, columns: Columns) -> None:
        self.partition: Mapping[str, str | None] = {}  # columns of rows and files without them
        self.inputs: set[str] = set()  # names of input columns that were met
        self._columns = columns
        self._inferred: dict[str, InferredColumn] = {}
        self._features: dict[str, Any] = {}
        self._texts: dict[str, TextColumn] = {}
        self._declared: dict[str, tuple[pa.DataType, str]] = {}
        self._rows = 0
        self._bytes = 0

    def add_values(self, values: dict[str, Any], num_bytes: int, where: str) -> None:
        """Take in one JSONL row, ``num_bytes`` long.

        Raises:
            ManifestError: a reserved name, or too many columns.
        """
        if self.partition:
            values = {**self.partition, **values}
        inputs, kept = self._columns.inputs, self._columns.kept
        inferred = self._inferred
        for name, value in values.items():
            if name in inputs:
                self.inputs.add(name)
                if name not in kept:
                    continue
            if name in self._texts:  # of a partition, and the row has its own
                continue
            column = inferred.get(name)
            if column is None:
                self._check_name(name, len(inferred), where)
                column = inferred[name] = InferredColumn(name)
            column.pending.append(value)
        self._rows += 1
        self._bytes += num_bytes
        if self._rows >= _BATCH_ROWS or self._bytes >= _BATCH_BYTES:
            self._flush()

    def add_cells(self, cells: Mapping[str, str], where: str) -> dict[str, TextColumn]:
        """Take in one row of text; returns its columns, which know their types after the scan.

        Inputs that are kept are given to ``add_values``.

        Raises:
            ManifestError: a reserved name, or too many columns.
        """
        found = {}
        for name, cell in cells.items():
            if name in self._columns.inputs:
                self.inputs.add(name)
                continue
            column = self._texts.get(name)
            if column is None:
                self._check_name(name, len(self._texts), where)
                column = self._texts[name] = TextColumn(name)
            column.add(cell)
            found[name] = column
        return found

    def add_schema(self, schema: pa.Schema, where: str) -> None:
        """Take in the columns of one Parquet file.

        Raises:
            ManifestError: a reserved name, or a type that cannot be written or contradicts
                another file's.
        """
        features = read_features(schema)
        lacking = [name for name in self.partition if name not in schema.names]
        for field in (*schema, *(pa.field(name, pa.string()) for name in lacking)):
            if field.name in self._columns.inputs:
                self.inputs.add(field.name)
                if field.name not in self._columns.kept:
                    continue
            is_image = field.name == self._columns.image
            try:
                data_type = (image_type if is_image else stored_type)(field.type)
            except pa.ArrowException as error:
                raise ManifestError(
                    f'{where}: column "{field.name}" has the type {field.type}, which cannot be '
                    f"written to the output: leave it out, or cast it to another ({error})"
                ) from error
            self._add_feature(field.name, features.get(field.name), data_type, is_image)
            known = self._declared.get(field.name)
            if known is None:
                self._check_name(field.name, len(self._declared), where)
                self._declared[field.name] = data_type, where
                continue
            try:
                self._declared[field.name] = common_type(known[0], data_type), known[1]
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ManifestError(
                    f'column "{field.name}" is {known[0]} in {known[1]} but {data_type} in '
                    f"{where}: the files of a folder must agree on their columns' types"
                ) from error

    @property
    def names(self) -> list[str]:
        """All columns that were met."""
        return [*self._declared, *self._texts, *self._inferred, *sorted(self.inputs)]

    def schema(self) -> pa.Schema:
        """The pass-through part of the output's schema."""
        self._flush()
        declared = [pa.field(name, known[0]) for name, known in self._declared.items()]
        texts = [pa.field(name, column.type) for name, column in self._texts.items()]
        inferred = [column.field() for column in self._inferred.values()]
        features = {name: one for name, one in self._features.items() if one is not None}
        return pa.schema([*declared, *texts, *inferred], features_metadata(features) or None)

    def _add_feature(self, name: str, feature: Any, data_type: pa.DataType, is_image: bool) -> None:
        """Take in the feature of a column in one file; files that disagree leave it without one."""
        if is_image:  # what is kept is an image whatever the manifest calls it
            feature = image_feature(data_type)
        if self._features.setdefault(name, feature) != feature:
            self._features[name] = None

    def _check_name(self, name: str, num_columns: int, where: str) -> None:
        if self._columns.is_reserved(name):
            raise ManifestError(f"{where}: {self._columns.reserved_message(name)}")
        if num_columns == MAX_COLUMNS:
            raise ManifestError(
                f'{where}: "{name}" is the {MAX_COLUMNS + 1}th pass-through column; {MAX_COLUMNS} '
                "are allowed: put values with names of their own into one object, such as "
                '"metadata": {...}'
            )

    def _flush(self) -> None:
        for column in self._inferred.values():
            column.flush()
        self._rows = self._bytes = 0
