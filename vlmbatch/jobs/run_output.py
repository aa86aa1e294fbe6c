"""Where results go, and what an earlier run on the same output left to resume from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
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
from vlmbatch.config.option import option_values
from vlmbatch.durable.journal_writer import JournalWriter
from vlmbatch.durable.lock import LockHolder
from vlmbatch.durable.row_keys import RowKeyWriter, copy_row_keys, rows_match
from vlmbatch.durable.run_paths import holds_something
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import UsageError
from vlmbatch.jobs.fingerprint import fingerprint
from vlmbatch.manifest.manifest import ManifestInfo
from vlmbatch.manifest.schema import asked_columns, output_schema
from vlmbatch.output.carry_over import (
    JournalResults,
    OutputResults,
    PreviousResults,
    seed_unchanged,
    seed_without_errors,
)
from vlmbatch.output.changes import forbidden, refuse_changes
from vlmbatch.output.finished import finished_counts, finished_results
from vlmbatch.output.openai_lines import BatchLines, errors_path, is_batch_output
from vlmbatch.output.openai_writer import BatchResultWriter
from vlmbatch.output.other_parts import results_of_others
from vlmbatch.output.parquet_writer import ParquetResultWriter, ResultWriter
from vlmbatch.output.parts import PartInfo, other_run, read_part
from vlmbatch.output.shards import ShardedParquetWriter
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY, WorkFolder
from vlmbatch.stats import Pace
from vlmbatch.types import Result, Row

Rows = Callable[[], Iterator[Row]]  # one pass over the manifest


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
        self._policy = config.policy
        self._destination = destination
        self._manifest_rows = info.num_rows
        self._span = span
        if isinstance(destination, PartDestination):
            self._check_other_parts(destination, settings)
        with ExitStack() as resources:
            self._work = resources.enter_context(WorkFolder(destination.path))
            self.path = self._work.output
            self._record = self._begin(rows, settings)
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

    def _begin(self, rows: Rows, settings: dict[str, Any]) -> RunRecord:
        """The run to resume, or a new one in the folder's name."""
        policy, work = self._policy, self._work
        new = RunRecord.new(settings, fingerprint(settings), len(self._span), self._about())
        current = None if policy.overwrite else self._current_run()  # it may be past reading
        if current is None:
            paths = [self.path]
            if is_batch_output(self.path):
                paths.append(errors_path(self.path))
            for path in paths:
                if not policy.overwrite and holds_something(path):
                    raise UsageError(
                        f"output {path} exists, and no run on it is known: add --overwrite to "
                        "replace it, or choose another name"
                    )
            work.begin(new)
            return new
        unchanged = current.fingerprint == new.fingerprint
        if not unchanged:
            refuse_changes(self.path, current.changes(settings), incremental=policy.incremental)
        elif isinstance(self._destination, PartDestination):
            self._check_rows(current)
        if unchanged and policy.incremental:  # images are known by the rows' keys alone
            answered = current.num_rows if current.state == "complete" else 0
            unchanged = rows_match(work.keys_path(current), rows(), least=answered)
        if unchanged and not (policy.retry_failed and self._has_errors(current)):
            return current
        self._keep_answers(current, new, None if unchanged else rows())
        work.begin(new)  # only now: until here a crash leaves the earlier run as it was
        return new

    def _current_run(self) -> RunRecord | None:
        """The run that the output is of; a part tells of its own, also without a work folder."""
        current = self._work.current_run()
        if current is None and (found := read_part(self.path)) is not None:
            return found.record()
        return current

    def _about(self) -> dict[str, Any]:
        """What ``vlmbatch status`` shows of a run beside its settings."""
        destination = self._destination
        shard_rows = None
        part: dict[str, Any] = {}
        if isinstance(destination, FolderDestination):
            shard_rows = destination.shard_rows
        elif isinstance(destination, PartDestination):
            part = {"first_row": self._span.start, "manifest_rows": self._manifest_rows}
        return {
            **part,
            "model": self._config.session.model,
            "manifest": self._config.manifest.source,
            "shard_rows": shard_rows,
            "command": LockHolder.this_process().command,
            "options": [
                option_values(part)
                for part in (self._config.session, self._config.manifest, self._config.sampling)
            ],
        }

    def _has_errors(self, record: RunRecord) -> bool:
        """Whether an earlier run has, or may have, error rows."""
        return record.state != "complete" or bool(finished_counts(self.path).errors)

    def _keep_answers(
        self, earlier: RunRecord, new: RunRecord, changed: Iterator[Row] | None
    ) -> None:
        """Journal what ``new`` keeps of an earlier run; ``changed``: its rows, where others."""
        work = self._work
        old_keys, new_keys = work.keys_path(earlier), work.keys_path(new)
        with ExitStack() as resources:
            results = resources.enter_context(self._results_of(earlier))
            journal = resources.enter_context(closing(work.journal_writer(new)))
            if changed is None:
                seed_without_errors(results, journal)
                copy_row_keys(old_keys, new_keys)
            else:
                writer = resources.enter_context(closing(RowKeyWriter(new_keys)))
                others = resources.enter_context(self._results_of_other_parts(new))
                seed_unchanged([(results, old_keys), *others], changed, journal, writer)

    @contextmanager
    def _results_of_other_parts(self, new: RunRecord) -> Iterator[list[tuple[OutputResults, Path]]]:
        """Of a part, those whose answers may be kept as well: a row may come from any of them."""
        destination = self._destination
        if not isinstance(destination, PartDestination):
            yield []
            return

        def is_usable(record: RunRecord) -> bool:
            return not forbidden(record.changes(new.settings))

        with results_of_others(destination.folder, destination.part, is_usable) as others:
            yield others

    def _check_other_parts(self, destination: PartDestination, settings: dict[str, Any]) -> None:
        """Refuse a folder whose other parts are of a run with other settings."""
        if not self._policy.overwrite:
            other, changes = other_run(destination.folder, destination.part, settings)
            path = destination.folder / other.file_name
            refuse_changes(path, changes, incremental=self._policy.incremental)

    def _check_rows(self, current: RunRecord) -> None:
        """Refuse to go on with a part that has other rows, though its settings are the same."""
        first_row = current.about.get("first_row", 0)
        if (first_row, current.num_rows) != (self._span.start, len(self._span)):
            raise UsageError(
                f"output {self.path} has {current.num_rows} rows from row {first_row} on, expected "
                f"{len(self._span)} from {self._span.start}: it is of another version of vlmbatch, "
                f"{current.version}. Finish all parts with that version, or run all with "
                "--overwrite to start anew"
            )

    @contextmanager
    def _results_of(self, record: RunRecord) -> Iterator[PreviousResults]:
        if record.state == "complete":
            with finished_results(self.path, record.num_rows) as results:
                yield results
        else:
            with closing(self._work.journal(record)) as journal:
                yield JournalResults(journal)

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
