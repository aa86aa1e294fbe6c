"""Where results go, and what an earlier run on the same output left to resume from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, Self

import pyarrow as pa

from vlmbatch import __version__
from vlmbatch.config import (
    DurableDestination,
    FolderDestination,
    JobConfig,
    PartDestination,
)
from vlmbatch.durable.journal_writer import JournalWriter
from vlmbatch.durable.row_keys import RowKeyWriter
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.jobs.run_beginning import Rows, RunBeginning, check_other_parts
from vlmbatch.manifest.manifest import ManifestInfo
from vlmbatch.manifest.schema import asked_columns, output_schema
from vlmbatch.output.openai_lines import BatchLines, is_batch_output
from vlmbatch.output.openai_writer import BatchResultWriter
from vlmbatch.output.parquet_writer import ParquetResultWriter, ResultWriter
from vlmbatch.output.parts import PartInfo
from vlmbatch.output.shards import ShardedParquetWriter
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY, WorkFolder
from vlmbatch.stats import Pace
from vlmbatch.types import Result, Row


class Output(Protocol):
    """The place of one run's results; leaving its context keeps what makes the run resumable.

    ``journal`` is where results are made durable as they come, if anywhere. ``num_known``: rows
    that need no answering. ``folder``: on the output's disk, for what a run needs while it lasts.
    """

    @property
    def folder(self) -> Path | None: ...

    @property
    def writer(self) -> ResultWriter: ...

    @property
    def journal(self) -> JournalWriter | None: ...

    @property
    def num_known(self) -> int: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...

    def watch(self, rows: Iterator[Row]) -> Iterator[Row]:
        """The same rows, noted on their way."""
        ...

    def known(self, row: Row) -> Result | None:
        """The result of a row that needs no answering. Safe to call from many threads."""
        ...

    def commit(self) -> None:
        """All rows are written: make the output whole."""
        ...


class DurableOutput:
    """A file or a folder of shards, with the work folder that makes its run resumable.

    For OpenAI's batch requests a ``.jsonl`` file, with one of errors beside it; else Parquet.
    ``span``: which rows of the manifest ``rows`` are; of a part not all of them.

    ``quantization``: what is quantized, for the output's metadata. ``pace``: how fast rows were
    answered, which the record of the finished run keeps. ``complete``: an earlier
    run has finished it already, and nothing is opened for writing.

    Raises:
        OutputLockedError: another run is writing it.
        UsageError: it belongs to a run with other settings; the message names them.
        OutputError: by every method, when the file system refuses.
    """

    writer: ResultWriter
    journal: JournalWriter
    num_known: int

    def __init__(
        self,
        config: JobConfig,
        destination: DurableDestination,
        info: ManifestInfo,
        rows: Rows,
        settings: dict[str, Any],
        span: range,
        quantization: str | None = None,
        pace: Pace | None = None,
    ) -> None:
        self._config = config
        self._pace = pace
        self._quantization = quantization
        self._destination = destination
        self._manifest_rows = info.num_rows
        self._span = span
        if isinstance(destination, PartDestination):
            check_other_parts(config, destination, settings)
        with ExitStack() as resources:
            self._work = resources.enter_context(WorkFolder(destination.path))
            self.path = self._work.output
            beginning = RunBeginning(config, destination, self._work, span, info.num_rows)
            self._record = beginning.begin(rows, settings)
            self.complete = self._record.state == "complete"
            if not self.complete:
                prefix = config.manifest.column_prefix or ""
                asked = asked_columns(config.sampling, config.manifest.parse_json)
                self._open(resources, output_schema(info.extra_schema, prefix, asked))
            self._resources = resources.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._resources.close()

    @property
    def folder(self) -> Path:
        return self._work.path

    def watch(self, rows: Iterator[Row]) -> Iterator[Row]:
        for row in rows:
            self._keys.add(row)
            yield row

    def known(self, row: Row) -> Result | None:
        return self._earlier.result_of(row)

    def commit(self) -> None:
        self.journal.close()
        self._keys.close()
        self.writer.close()
        record = self._record
        if self._pace is not None:
            record = replace(record, about={**record.about, "pace": self._pace.points})
        self._work.complete(record)

    def _open(self, resources: ExitStack, schema: pa.Schema) -> None:
        record, work = self._record, self._work
        self._earlier = work.journal(record)
        resources.callback(self._earlier.close)
        self.num_known = len(self._earlier)
        metadata = {
            "vlmbatch.version": __version__,
            "vlmbatch.model": self._config.session.model,
            "vlmbatch.sampling": json.dumps(record.settings["sampling"]),
            "vlmbatch.manifest_sha256": record.settings["manifest"],
            FINGERPRINT_KEY: record.fingerprint,
            RUN_ID_KEY: record.id,
        }
        if self._quantization is not None:
            metadata["vlmbatch.quantization"] = self._quantization
        destination = self._destination
        if isinstance(destination, PartDestination):
            metadata |= self._part_info(destination, record).metadata()
        if isinstance(destination, FolderDestination):
            self.writer = ShardedParquetWriter(
                self.path, schema, metadata, destination.shard_rows, record.num_rows
            )
        elif is_batch_output(self.path):
            started = int(datetime.fromisoformat(record.started).timestamp())
            lines = BatchLines(record.id, started, self._config.session.model)
            self.writer = BatchResultWriter(self.path, lines, work.temporary_output)
        else:
            self.writer = ParquetResultWriter(
                self.path,
                schema,
                metadata,
                first_row=self._span.start,
                temporary=work.temporary_output,
            )
        resources.callback(self.writer.abort)
        self._keys = RowKeyWriter(work.keys_path(record))
        resources.callback(self._keys.close)
        self.journal = work.journal_writer(record)
        resources.callback(self.journal.close)

    def _part_info(self, destination: PartDestination, record: RunRecord) -> PartInfo:
        part = destination.part
        return PartInfo(
            part.number,
            part.count,
            self._span.start,
            self._manifest_rows,
            self._config.manifest.source,
            record.started,
            record.settings,
        )
