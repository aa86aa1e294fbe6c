"""The parts of a run joined into the file that one task would have written."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlmbatch.durable.lock import LockHolder
from vlmbatch.durable.row_keys import KEY_BYTES, copy_row_keys
from vlmbatch.durable.run_paths import RECORD_FILE, holds_something, work_folder_path
from vlmbatch.durable.run_record import RunRecord, read_record
from vlmbatch.errors import UsageError
from vlmbatch.manifest.parquet_file import LocalParquetFile
from vlmbatch.manifest.schema import column_prefix
from vlmbatch.output.all_parts import all_parts
from vlmbatch.output.finished import finished_counts
from vlmbatch.output.parquet_writer import ParquetTableWriter, row_groups
from vlmbatch.output.parts import PART_KEY, PartFile
from vlmbatch.output.reader import unreadable_output
from vlmbatch.output.work_folder import RUN_ID_KEY, WorkFolder
from vlmbatch.stats import RunStats
from vlmbatch.types import ErrorExample

_PARTS = "parts"  # in what a record is about: a digest of the parts that were joined


def merge(folder: Path, output: Path, stats: RunStats, *, overwrite: bool = False) -> None:
    """Join the parts in ``folder`` into the Parquet file ``output``, in the manifest's order.

    The file is what one run on the whole manifest writes, but for the run's id, and so is the work
    folder beside it. It appears whole or not at all. Holds two row groups in memory. ``stats``
    tells how it goes.

    Raises:
        UsageError: the parts are not those of one run, or ``output`` is something else.
        UnfinishedError: parts are missing; the message has their numbers.
        OutputLockedError: a part, or ``output``, is being written.
        OutputError: reading or writing failed.
    """
    stats.stage = "looking at the parts"
    parts = all_parts(folder)
    stats.rows_total = parts[0].info.manifest_rows
    schema = _schema(parts)
    digest = hashlib.sha256("".join(part.run_id for part in parts).encode()).hexdigest()
    with WorkFolder(output) as work:
        current = None if overwrite else work.current_run()
        if current is not None and current.about.get(_PARTS) == digest:
            if current.state == "complete":
                counts = finished_counts(work.output)
                stats.count_earlier(counts.num_rows, counts.errors, counts.error_examples)
                stats.finish()
                return
        elif not overwrite and (current is not None or holds_something(work.output)):
            raise UsageError(
                f"output {output} exists, or is of another run: add --overwrite to replace it, or "
                "choose another name"
            )
        record = _record(parts, schema, digest)
        work.begin(record)
        metadata = {**schema.metadata, RUN_ID_KEY.encode(): record.id.encode()}
        schema = schema.with_metadata(metadata)
        writer = ParquetTableWriter(work.output, schema, temporary=work.temporary_output)
        try:
            stats.stage = "joining the parts"
            stats.work_started = time.monotonic()
            for table in row_groups(_tables(parts, schema, stats)):
                writer.write(table)
            _copy_keys(parts, work.keys_path(record))
            writer.close()
        except BaseException:
            writer.abort()
            raise
        work.complete(record)
    stats.finish()


def _record(parts: Sequence[PartFile], schema: pa.Schema, digest: str) -> RunRecord:
    info = parts[0].info
    options = _options(parts)
    about = {
        **({} if options is None else {"options": options}),
        "model": schema.metadata.get(b"vlmbatch.model", b"").decode(),
        "manifest": info.manifest,
        "shard_rows": None,
        "command": LockHolder.this_process().command,
        _PARTS: digest,
    }
    return RunRecord.new(info.settings, parts[0].fingerprint, info.manifest_rows, about)


def _options(parts: Sequence[PartFile]) -> list[Any] | None:
    """What the parts' runs were given, by which ``vlmbatch verify`` repeats them; None where their
    work folders are gone."""
    for part in parts:
        record = read_record(work_folder_path(part.path) / RECORD_FILE)
        if record is not None and record.id == part.run_id and "options" in record.about:
            found: list[Any] = record.about["options"]
            return found
    return None


def _schema(parts: Sequence[PartFile]) -> pa.Schema:
    """That of all parts, without what is of each alone."""
    with _opened(parts[0]) as file:
        schema = file.schema_arrow
    metadata = {k: v for k, v in schema.metadata.items() if k != PART_KEY.encode()}
    return schema.with_metadata(metadata)


def _tables(parts: Sequence[PartFile], schema: pa.Schema, stats: RunStats) -> Iterator[pa.Table]:
    """The row groups of the parts, every row once and in order, counted in ``stats``."""
    prefix = column_prefix(schema.metadata)
    next_row = 0
    for part in parts:
        with _opened(part) as file:
            for group in range(file.num_row_groups):
                try:
                    table = file.read_row_group(group, use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    raise unreadable_output(part.path, error) from error
                expected = np.arange(next_row, next_row + table.num_rows)
                if not table.schema.equals(schema) or not np.array_equal(
                    table[f"{prefix}row_index"].to_numpy(), expected
                ):
                    raise UsageError(
                        f"{part.path} was changed by something else since it was written: run its "
                        "task again with --overwrite"
                    )
                _count(table, prefix, stats)
                next_row += table.num_rows
                yield table.replace_schema_metadata(schema.metadata)


def _count(table: pa.Table, prefix: str, stats: RunStats) -> None:
    codes = table[f"{prefix}error_code"].to_pylist()
    for code in Counter(filter(None, codes)):
        if code not in stats.error_examples:
            row = table.slice(codes.index(code), 1)
            index, name, message = (
                row[f"{prefix}{column}"][0].as_py()
                for column in ("row_index", "id", "error_message")
            )
            stats.error_examples[code] = ErrorExample(index, name, message)
    stats.errors.update(filter(None, codes))
    stats.rows_done += table.num_rows


def _copy_keys(parts: Sequence[PartFile], target: Path) -> None:
    """Join what --incremental knows rows by, where it is there for all of them."""
    sources = [work_folder_path(part.path) / f"keys-{part.run_id}" for part in parts]
    sizes = [path.stat().st_size if path.is_file() else -1 for path in sources]
    if sizes == [KEY_BYTES * part.num_rows for part in parts]:
        for source in sources:
            copy_row_keys(source, target)


def _opened(part: PartFile) -> LocalParquetFile:
    try:
        return LocalParquetFile(part.path)
    except (pa.ArrowException, OSError) as error:
        raise unreadable_output(part.path, error) from error
