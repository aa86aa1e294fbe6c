"""A finished part in a store, by its footer and a few of its columns: it is not fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from vlmbatch.config import Part
from vlmbatch.durable.run_paths import INSIDE, RECORD_FILE
from vlmbatch.durable.run_record import RunRecord, parse_record
from vlmbatch.errors import OutputError
from vlmbatch.manifest.parquet_file import OwnedParquetFile
from vlmbatch.manifest.schema import RESULT_SCHEMA, column_prefix
from vlmbatch.output.parts import PartFile, part_of_footer
from vlmbatch.output.reader import OutputCounts, count_errors
from vlmbatch.output.remote.commit import read_remote_footer
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.objects import open_object
from vlmbatch.remote.versions import read_object

T = TypeVar("T")

_ERROR_CODE = RESULT_SCHEMA.get_field_index("error_code")
_THREADS = 16  # that wait for the store


@dataclass(frozen=True, slots=True)
class StoredPart:
    """The part ``file`` in ``folder``.

    Raises:
        RemoteError: by every method, when the store cannot be asked.
    """

    folder: RemotePath
    file: PartFile
    footer: pq.FileMetaData

    def record(self) -> RunRecord:
        """That of its run, as it was put beside the part; what the part itself knows, if none was.

        Raises:
            OutputError: it is damaged.
        """
        state = self.folder.child(f"{INSIDE}/{self.file.part.file_name}")
        raw = read_object(state.child(f"run-{self.file.run_id}.json"))
        return (
            self.file.record() if raw is None else parse_record(raw, f"{self.file}: {RECORD_FILE}")
        )

    def counts(self) -> OutputCounts:
        """Its rows and errors.

        Raises:
            OutputError: it cannot be read.
        """
        counts = OutputCounts(self.file.num_rows)
        groups = [group for group in range(self.footer.num_row_groups) if self._has_errors(group)]
        if not groups:
            return counts
        prefix = column_prefix(self.footer.metadata)
        path = self.folder.child(self.file.part.file_name)
        try:
            with path.errors(), OwnedParquetFile(pa.PythonFile(open_object(path), "r")) as file:
                for group in groups:
                    count_errors(counts, partial(_columns, file, group, prefix))
        except pa.ArrowException as error:
            raise OutputError(f"{path.url} cannot be read: {error}") from error
        return counts

    def _has_errors(self, group: int) -> bool:
        """Whether a row group has, or may have, error rows."""
        rows = self.footer.row_group(group)
        statistics = rows.column(_ERROR_CODE).statistics
        return statistics is None or statistics.null_count != rows.num_rows


def _columns(file: pq.ParquetFile, group: int, prefix: str, names: Sequence[str]) -> pa.Table:
    table = file.read_row_group(group, [f"{prefix}{name}" for name in names], use_threads=False)
    return table.rename_columns(names)


def read_stored_part(folder: RemotePath, part: Part) -> StoredPart | None:
    """The finished part of that name; None where there is none.

    Raises:
        RemoteError: the store cannot be asked.
    """
    footer = read_remote_footer(folder.child(part.file_name))
    found = None if footer is None else part_of_footer(folder.url.rstrip("/"), part, footer)
    return None if found is None else StoredPart(folder, found, footer)


def read_stored_parts(
    folder: RemotePath, parts: Iterable[Part], read: Callable[[StoredPart | None], T]
) -> list[T]:
    """What ``read`` makes of each of ``parts``, asked for several at a time."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(lambda part: read(read_stored_part(folder, part)), parts))
