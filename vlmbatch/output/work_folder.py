"""The folder beside an output that lets a run be finished by running it again.

    out.parquet.vlmbatch/
      lock             held by the run that writes the output
      run.json         which run this is, with all its settings, and whether it is complete
      journal-000001   finished rows, until the output is complete
      keys-...         a digest of every row's content, for --incremental

In a folder that is a disk of its own it is inside, as ``out/_vlmbatch/``, and those of the parts of
a manifest are ``out/_vlmbatch/part-00000-of-00016/`` and so on; see ``run_paths``.
A run begins when ``run.json`` names it, and is complete when the output carries its id: each is the
rename of one file. What other runs left is no part of it, and goes at the next opportunity.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa

from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.durable_file import FILES, FileSystem, reported
from vlmbatch.durable.journal import Journal
from vlmbatch.durable.journal_frames import HEADER_BYTES, segment_header
from vlmbatch.durable.journal_writer import JournalWriter, list_segments
from vlmbatch.durable.lock import OutputLock, lock_holder, locked_error
from vlmbatch.durable.run_paths import (
    LOCK_FILE,
    RECORD_FILE,
    folders_to_make,
    real_output,
    temporary_path,
    work_folder_path,
)
from vlmbatch.durable.run_record import RunRecord, read_record, write_record
from vlmbatch.errors import OutputError
from vlmbatch.manifest.parquet_file import read_footer
from vlmbatch.output.openai_lines import HEAD_BYTES, errors_path, is_batch_output, line_head

RUN_ID_KEY = "vlmbatch.run_id"
FINGERPRINT_KEY = "vlmbatch.run_fingerprint"

_SHARDS = "part-*.parquet"


def check_unlocked(output: Path) -> None:
    """Refuse an output that another run is writing, before any work is done for it.

    Raises:
        OutputLockedError: the message names the process.
        OutputError: the lock cannot be read.
    """
    if (holder := lock_holder(work_folder_path(output) / LOCK_FILE)) is not None:
        raise locked_error(output, holder if holder.pid else None)


class WorkFolder:
    """The work folder of one output, created when missing and locked until ``close``.

    ``output`` is what a link of that name leads to.

    Raises:
        UsageError: by the constructor, when that is nothing.
        OutputLockedError: another run writes this output.
        OutputError: by every method, when the file system refuses.
    """

    def __init__(self, output: Path, files: FileSystem = FILES) -> None:
        self.output = real_output(output)
        self.path = work_folder_path(output)
        self._files = files
        with reported(self.path):
            for folder in folders_to_make(output):
                # What is in a work folder is written and removed by name.
                if folder.is_symlink() and folder != self.output.parent:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
                if folder != self.output.parent or not folder.is_dir():
                    files.make_folder(folder)
                    files.fsync_folder(folder.parent)
        self._lock = OutputLock(self.path / LOCK_FILE, output)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def temporary_output(self) -> Path:
        """Where the output grows, in its own folder; a crashed run's is simply written over."""
        return temporary_path(self.output)

    def keys_path(self, record: RunRecord) -> Path:
        """Where the digests of the run's rows stand."""
        return self.path / f"keys-{record.id}"

    def current_run(self) -> RunRecord | None:
        """The run that the folder is of; None also when its output, once complete, is gone.

        Makes up for what a crash left undone when the output was already committed.
        """
        record = read_record(self.path / RECORD_FILE)
        if record is None:
            return None
        if is_output_of(self.output, record):
            return self.complete(record)
        return record if record.state == "running" else None

    def begin(self, record: RunRecord) -> None:
        """Make ``record`` the folder's run. Journal and keys of other runs are removed; what was
        written for this one already is kept."""
        write_record(self.path / RECORD_FILE, record, self._files)
        self._remove(self._foreign_segments(record), self._foreign_keys(record))

    @property
    def has_journal(self) -> bool:
        """Whether there is one, of whatever run: it begins with the first row that is finished."""
        return bool(list_segments(self.path))

    def journal(self, record: RunRecord) -> Journal:
        """The rows of the run that are finished."""
        return Journal.recover(self.path, record.run_id, record.num_rows, self._files)

    def journal_writer(self, record: RunRecord) -> JournalWriter:
        """Takes further rows of the run. To be opened after ``journal``."""
        return JournalWriter(self.path, record.run_id, files=self._files)

    def complete(self, record: RunRecord) -> RunRecord:
        """Record that the run's output is committed and drop the journal, which it replaces."""
        if record.state != "complete":
            record = record.completed()
            write_record(self.path / RECORD_FILE, record, self._files)
        segments = [path for _, path in list_segments(self.path)]
        self._remove(segments, self._foreign_keys(record))
        return record

    def close(self) -> None:
        """Let the next run in."""
        self._lock.release()

    def _foreign_segments(self, record: RunRecord) -> list[Path]:
        found = []
        for number, path in list_segments(self.path):
            try:
                with path.open("rb") as file:
                    is_own = file.read(HEADER_BYTES) == segment_header(record.run_id, number)
            except OSError:  # those of this run were written just now
                is_own = False
            if not is_own:
                found.append(path)
        return found

    def _foreign_keys(self, record: RunRecord) -> list[Path]:
        own = self.keys_path(record)
        with reported(self.path):
            return [path for path in self.path.glob("keys-*") if path != own]

    def _remove(self, segments: list[Path], others: list[Path]) -> None:
        if not segments and not others:
            return
        with reported(self.path):
            for path in segments:
                self._files.unlink(path)
                crash_point("journal.segment_deleted")
            for path in others:
                self._files.unlink(path)
            self._files.fsync_folder(self.path)


@dataclass(frozen=True, slots=True)
class OutputCommit:
    """Which run wrote an output, by the output's own metadata."""

    fingerprint: str | None
    run_id: str | None


def read_commit(output: Path) -> OutputCommit | None:
    """What the file at ``output`` says of its run; None when there is no such file.

    Raises:
        OutputError: the file cannot be read.
    """
    if not output.is_file():
        return None
    if is_batch_output(output):
        return _batch_commit(output)
    try:
        metadata = read_footer(output).metadata or {}
    except pa.ArrowInvalid:
        return None
    except OSError as error:
        if error.errno is None:  # so pyarrow tells that the footer is no footer
            return None
        raise OutputError(f"{output} cannot be read: {error.strerror}") from error
    fingerprint, run_id = (metadata.get(key.encode()) for key in (FINGERPRINT_KEY, RUN_ID_KEY))
    return OutputCommit(
        None if fingerprint is None else fingerprint.decode(),
        None if run_id is None else run_id.decode(),
    )


def is_output_of(output: Path, record: RunRecord) -> bool:
    """Whether a run has finished ``output``, by what its files say of themselves.

    Of a folder one is enough: whoever reads the output finds out which are missing.

    Raises:
        OutputError: a file cannot be read.
    """
    if _names(output, record):
        return True
    if record.state != "complete":  # shards are there long before
        return False
    if output.is_dir():
        return any(_names(path, record) for path in sorted(output.glob(_SHARDS)))
    if not (is_batch_output(output) and output.is_file() and output.stat().st_size == 0):
        return False
    errors = errors_path(output)  # no request was answered
    return not errors.exists() or _names(errors, record)


def _names(path: Path, record: RunRecord) -> bool:
    commit = read_commit(path)
    return commit is not None and commit.run_id == record.id


def _batch_commit(output: Path) -> OutputCommit | None:
    try:
        with output.open("rb") as file:
            head = line_head(file.read(HEAD_BYTES))
    except OSError as error:
        raise OutputError(f"{output} cannot be read: {error.strerror}") from error
    return None if head is None else OutputCommit(None, head[0])
