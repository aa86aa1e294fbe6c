"""The run that an output is of: an earlier one to resume, or a new one that keeps answers of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

from vlmbatch.config import DurableDestination, FolderDestination, JobConfig, PartDestination
from vlmbatch.config.option import option_values
from vlmbatch.durable.lock import LockHolder
from vlmbatch.durable.row_keys import RowKeyWriter, copy_row_keys, rows_match
from vlmbatch.durable.run_paths import holds_something
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import UsageError
from vlmbatch.jobs.fingerprint import fingerprint
from vlmbatch.output.carry_over import (
    JournalResults,
    OutputResults,
    PreviousResults,
    seed_unchanged,
    seed_without_errors,
)
from vlmbatch.output.changes import forbidden, refuse_changes
from vlmbatch.output.finished import finished_counts, finished_results
from vlmbatch.output.openai_lines import errors_path, is_batch_output
from vlmbatch.output.other_parts import results_of_others
from vlmbatch.output.parts import other_run, read_part
from vlmbatch.output.work_folder import WorkFolder
from vlmbatch.types import Row

Rows = Callable[[], Iterator[Row]]  # one pass over the manifest


def check_other_parts(
    config: JobConfig, destination: PartDestination, settings: dict[str, Any]
) -> None:
    """Refuse a folder whose other parts are of a run with other settings.

    Raises:
        UsageError: the message names them.
    """
    if not config.policy.overwrite:
        other, changes = other_run(destination.folder, destination.part, settings)
        path = destination.folder / other.file_name
        refuse_changes(path, changes, incremental=config.policy.incremental)


class RunBeginning:
    """Begins a run in the work folder ``work``, which is held, or finds the one to go on with.

    ``span``: which rows of the manifest's ``manifest_rows`` are the run's.
    """

    def __init__(
        self,
        config: JobConfig,
        destination: DurableDestination,
        work: WorkFolder,
        span: range,
        manifest_rows: int,
    ) -> None:
        self._config = config
        self._policy = config.policy
        self._destination = destination
        self._work = work
        self._span = span
        self._manifest_rows = manifest_rows

    def begin(self, rows: Rows, settings: dict[str, Any]) -> RunRecord:
        """The run to resume, or a new one in the folder's name.

        Raises:
            UsageError: the output is of a run with other settings, or of none that is known.
            OutputError: the file system refuses.
        """
        policy, work = self._policy, self._work
        new = RunRecord.new(settings, fingerprint(settings), len(self._span), self._about())
        current = None if policy.overwrite else self._current_run()  # it may be past reading
        if current is not None and current.fingerprint != new.fingerprint:
            # One that found too little memory for its model, say: other settings may do.
            current = None if self._is_empty(current) else current
        if current is None:
            paths = [self._work.output]
            if is_batch_output(self._work.output):
                paths.append(errors_path(self._work.output))
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
            refuse_changes(
                self._work.output, current.changes(settings), incremental=policy.incremental
            )
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

    def _is_empty(self, current: RunRecord) -> bool:
        """Whether a run has answered nothing, and replaces nothing, which may be at a URL.

        A part never is empty: rows of others may come to it.
        """
        is_part = isinstance(self._destination, PartDestination)
        may_replace = current.about.get("overwrite", True)
        is_begun = current.state == "complete" or self._work.has_journal
        return not (is_part or may_replace or is_begun)

    def _current_run(self) -> RunRecord | None:
        """The run that the output is of; a part tells of its own, also without a work folder."""
        current = self._work.current_run()
        if current is None and (found := read_part(self._work.output)) is not None:
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
            "overwrite": self._policy.overwrite,
            "command": LockHolder.this_process().command,
            "options": [
                option_values(part)
                for part in (self._config.session, self._config.manifest, self._config.sampling)
            ],
        }

    def _has_errors(self, record: RunRecord) -> bool:
        """Whether an earlier run has, or may have, error rows."""
        return record.state != "complete" or bool(finished_counts(self._work.output).errors)

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

    def _check_rows(self, current: RunRecord) -> None:
        """Refuse to go on with a part that has other rows, though its settings are the same."""
        first_row = current.about.get("first_row", 0)
        if (first_row, current.num_rows) != (self._span.start, len(self._span)):
            raise UsageError(
                f"output {self._work.output} has {current.num_rows} rows from row {first_row} on, "
                f"expected {len(self._span)} from {self._span.start}: it is of another version of "
                f"vlmbatch, {current.version}. Finish all parts with that version, or run all with "
                "--overwrite to start anew"
            )

    @contextmanager
    def _results_of(self, record: RunRecord) -> Iterator[PreviousResults]:
        if record.state == "complete":
            with finished_results(self._work.output, record.num_rows) as results:
                yield results
        else:
            with closing(self._work.journal(record)) as journal:
                yield JournalResults(journal)
