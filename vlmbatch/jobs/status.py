"""What a run on an output has done, read from its files without disturbing it."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from vlmbatch.durable.journal_writer import list_segments
from vlmbatch.durable.lock import LockHolder, lock_holder
from vlmbatch.durable.run_paths import (
    LOCK_FILE,
    RECORD_FILE,
    holds_something,
    output_of,
    work_folder_path,
)
from vlmbatch.durable.run_record import RunRecord, read_record
from vlmbatch.errors import OutputError, UsageError
from vlmbatch.manifest.parquet_file import read_footer
from vlmbatch.output.finished import finished_counts
from vlmbatch.output.journal_counts import read_journal_counts
from vlmbatch.output.openai_lines import check_no_errors, is_batch_output
from vlmbatch.output.parts import read_part
from vlmbatch.output.reader import OutputCounts
from vlmbatch.output.shards import list_shards
from vlmbatch.output.work_folder import is_output_of, read_commit

# starting: a process has the output, and no new run has begun yet (or the last is just ending).
# gone, replaced: the run was complete, but where its output was is nothing, or something else.
State = Literal["starting", "running", "interrupted", "complete", "gone", "replaced"]

_ATTEMPTS = 5  # to read all of it with no run starting or ending meanwhile


@dataclass(frozen=True, slots=True)
class RunStatus:
    """The latest run on ``output``; None is what is not known.

    ``errors`` and ``error_examples`` are by code, the most frequent first. ``settings`` are those
    that decide the answers.
    """

    output: Path | str
    state: State
    rows_total: int | None = None
    rows_done: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    error_examples: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    manifest: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    version: str | None = None
    started: str | None = None  # ISO 8601, UTC
    command: str | None = None
    updated: str | None = None  # when a row was last made durable, or the output written
    shards_done: int | None = None  # None: the output is one file
    shards_total: int | None = None
    manifest_rows: int | None = None  # of all parts, where this is one
    merged: bool = False  # the output is of parts that were joined
    holder: LockHolder | None = None  # the process that has the output now
    unput: bool = False  # it is all here, and yet to be put at its URL

    @classmethod
    def of_record(
        cls, output: Path | str, state: State, record: RunRecord, counts: OutputCounts
    ) -> RunStatus:
        """What is known of a run from its record, and by counting its rows."""
        errors = dict(counts.errors.most_common())
        return cls(
            output,
            state,
            record.num_rows,
            counts.num_rows,
            errors,
            {code: str(counts.error_examples[code]) for code in errors},
            settings=record.settings,
            version=record.version,
            started=record.started,
            model=record.about.get("model"),
            manifest=record.about.get("manifest"),
            command=record.about.get("command"),
            manifest_rows=record.about.get("manifest_rows"),
            merged="parts" in record.about,
        )

    @property
    def is_running(self) -> bool:
        """Whether a process has the output now."""
        return self.holder is not None

    @property
    def is_complete(self) -> bool:
        return self.state == "complete" and not self.unput

    @property
    def num_errors(self) -> int:
        return sum(self.errors.values())

    @property
    def rows_left(self) -> int | None:
        return None if self.rows_total is None else self.rows_total - self.rows_done

    @property
    def next_step(self) -> str:
        """What the user may do now."""
        rows = "row" if self.num_errors == 1 else "rows"
        retry = f"--retry-failed to answer the {self.num_errors:,} error {rows} again"
        if self.holder is not None:
            return _wait_or_stop(self.holder)
        if self.state in ("gone", "replaced"):
            how = " with --overwrite" if self.state == "replaced" else ""
            return f"run the command again{how}: it starts anew"
        if self.merged and self.errors:
            return (
                f"run the tasks of the parts again with {retry}, then merge them with --overwrite"
            )
        without = " without --overwrite" if "--overwrite" in (self.command or "") else ""
        if self.unput:
            return f"run the same command again{without} to put the output at its URL"
        if self.state == "interrupted":
            more = f"; add {retry}" if self.errors else ""
            return f"run the same command again{without} to resume{more}"
        if self.errors and self.started is None and self.manifest_rows is None:
            return "--overwrite to start anew: without its work folder the run cannot be resumed"
        if self.errors:
            return f"run the same command again{without} with {retry}"
        return "nothing: every row is answered"


def read_status(path: Path) -> RunStatus:
    """The status of the latest run on ``path``: an output, or the work folder of one.

    Writes nothing and keeps no run waiting. Holds a byte a row.

    Raises:
        UsageError: there is neither an output of ours nor a run, or a shard is missing.
        OutputError: something that is there cannot be read.
    """
    output = output_of(path if path.name not in ("", "..") else path.resolve())
    if not output.name:
        raise _nothing_at(path)
    record_path = work_folder_path(output) / RECORD_FILE
    for attempt in range(_ATTEMPTS):
        record = read_record(record_path)
        try:
            status = _status_of(output, record)
        except OutputError as error:
            meanwhile = isinstance(error.__cause__, FileNotFoundError)
            if not meanwhile or attempt == _ATTEMPTS - 1:
                raise
        else:
            if read_record(record_path) == record:
                break
    return status


def _status_of(output: Path, record: RunRecord | None) -> RunStatus:
    holder = lock_holder(work_folder_path(output) / LOCK_FILE)
    if record is None:
        if holder is not None:
            return RunStatus(output, "starting", command=holder.command, holder=holder)
        return _status_by_output(output)
    state: State
    if is_output_of(output, record):
        state, counts = "complete", finished_counts(output)
    elif record.state == "complete":
        state, counts = "replaced" if holds_something(output) else "gone", OutputCounts()
    else:
        state = "interrupted"
        counts = read_journal_counts(
            work_folder_path(output),
            record.run_id,
            record.num_rows,
            record.about.get("first_row", 0),
        )
    if holder is not None:
        state = "running" if state == "interrupted" else "starting"
    status = RunStatus.of_record(output, state, record, counts)
    status = replace(status, updated=_last_write(output), holder=holder)
    shard_rows = record.about.get("shard_rows")
    if shard_rows is not None:
        status = replace(
            status,
            shards_done=sum(shard.run_id == record.id for shard in list_shards(output)),
            shards_total=max(1, -(-record.num_rows // shard_rows)),
        )
    return status


def _status_by_output(output: Path) -> RunStatus:
    """By what the output says of itself, where there is no work folder."""
    check_no_errors(output)
    if is_batch_output(output) and read_commit(output) is not None:
        counts = finished_counts(output)
        return _with_counts(RunStatus(output, "complete", counts.num_rows), counts)
    shards = list_shards(output) if output.is_dir() else []
    path = shards[0].path if shards else output
    metadata = _metadata(path) if path.is_file() else {}
    version = metadata.get("vlmbatch.version")
    if version is None:
        raise _nothing_at(output)
    counts = finished_counts(output)
    part = read_part(output)
    status = RunStatus(
        output,
        "complete",
        counts.num_rows,
        manifest_rows=None if part is None else part.info.manifest_rows,
        model=metadata.get("vlmbatch.model"),
        settings={"sampling": json.loads(metadata.get("vlmbatch.sampling", "{}"))},
        version=version,
        shards_done=len(shards) or None,
        shards_total=len(shards) or None,
    )
    return _with_counts(status, counts)


def _with_counts(status: RunStatus, counts: OutputCounts) -> RunStatus:
    errors = dict(counts.errors.most_common())
    examples = {code: str(counts.error_examples[code]) for code in errors}
    return replace(status, rows_done=counts.num_rows, errors=errors, error_examples=examples)


def _metadata(path: Path) -> Mapping[str, str]:
    try:
        metadata = read_footer(path).metadata or {}
    except (pa.ArrowInvalid, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise OutputError(f"{path} cannot be read: {error.strerror}") from error
        return {}  # not Parquet
    return {key.decode(): value.decode() for key, value in metadata.items()}


def _last_write(output: Path) -> str | None:
    paths = [output, *(path for _, path in list_segments(work_folder_path(output)))]
    times = []
    for path in paths:
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    if not times:
        return None
    return datetime.fromtimestamp(max(times), UTC).isoformat(timespec="seconds")


def _wait_or_stop(holder: LockHolder) -> str:
    if holder.host != socket.gethostname():
        return f"wait until it ends, or stop it on {holder.host}: it can be resumed"
    return f"wait until it ends, or stop it with `kill {holder.pid}`: it can be resumed"


def _nothing_at(path: Path) -> UsageError:
    what = "was not written by vlmbatch" if path.exists() else "does not exist"
    return UsageError(
        f"{path} {what}, and no run on it is known: give the output of a run, a file or a folder"
    )
