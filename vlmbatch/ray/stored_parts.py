"""A folder of an object store, into which each node puts the parts that it has made."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vlmbatch.config import JobConfig, Part
from vlmbatch.durable.lock import LockHolder
from vlmbatch.durable.run_paths import INSIDE
from vlmbatch.durable.staging_paths import remote_part
from vlmbatch.errors import UsageError
from vlmbatch.jobs.remote_run import PutConflictError, make_and_put
from vlmbatch.log import logger
from vlmbatch.output.all_parts import check_one_run, missing_parts, several_counts
from vlmbatch.output.changes import refuse_changes
from vlmbatch.output.other_parts import MAX_OTHERS
from vlmbatch.output.parts import PartFile, read_part
from vlmbatch.output.reader import OutputCounts
from vlmbatch.output.remote.part_objects import check_part_folder, fetch_part, parts_in
from vlmbatch.output.remote.run_mark import RunMark, marked, running_marks
from vlmbatch.output.remote.staging import Staging
from vlmbatch.output.remote.stored_part import StoredPart, read_stored_part, read_stored_parts
from vlmbatch.ray.parts_folder import Answer, PartTask, Probe
from vlmbatch.remote.errors import RemoteForbiddenError
from vlmbatch.remote.filesystem import RemotePath, open_filesystem
from vlmbatch.remote.puts import check_writable, put_object
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import ChangedError, read_object
from vlmbatch.stats import RunStats

_PROBE = "folder-id"


class StoredParts:
    """The folder ``url``. Every node opens it with the access that it has itself.

    ``work_dir``: where a node makes its parts; absent, in the user's cache folder there.
    """

    def __init__(self, url: str, work_dir: Path | None) -> None:
        self._url = url
        self._work_dir = work_dir
        self._opened: RemotePath | None = None

    def __str__(self) -> str:
        return self._url

    def __reduce__(self) -> tuple[type[StoredParts], tuple[str, Path | None]]:
        return StoredParts, (self._url, self._work_dir)

    def named(self) -> list[Part]:
        return list(parts_in(self._folder))

    def check(self, part: Part) -> None:
        check_part_folder(self._folder, part)

    def refuse_changes(self, part: Part, settings: dict[str, Any], *, incremental: bool) -> None:
        for other in self.named():
            if (found := read_stored_part(self._folder, other)) is not None:
                changes = found.file.record().changes(settings)
                refuse_changes(str(found.file), changes, incremental=incremental)
                return

    @contextmanager
    def held(self, num_parts: int, stats: RunStats) -> Iterator[Probe]:
        """A store has no locks: of two runs that make one part, it takes the first."""
        self._put_probe()
        for other in running_marks(self._folder):
            logger.warning(
                "output %s: another run puts parts there as well (%s). Of a part that both make, "
                "the one that is put first stays",
                self._url,
                other,
            )
        this = asdict(LockHolder.this_process())

        def mark() -> RunMark:
            return RunMark(
                **this,
                parts=num_parts,
                rows_total=stats.rows_total or 0,
                rows_done=stats.rows_done,
                updated=time.time(),
            )

        with marked(self._folder, mark):
            yield Probe(_PROBE, self._seen() or "")

    def see(self, probe: Probe) -> None:
        try:
            seen = self._seen()
        except RemoteForbiddenError as error:
            raise UsageError(
                f"{error}. A node needs access of its own: it has not the driver's environment, "
                "but that which Ray was started with there"
            ) from error
        if seen != probe.content:
            what = "is not seen there" if seen is None else "has another content there"
            raise UsageError(
                f"output {self._url} is not the folder that the driver puts to: the object "
                f"{self._probe.url} {what}. All nodes need the same endpoint and region"
            )
        check_writable(self._probe)

    def finished(self, fingerprint: str, rows: Mapping[Part, range]) -> dict[Part, OutputCounts]:
        there = [part for part in self.named() if part in rows]

        def counts(stored: StoredPart | None) -> OutputCounts | None:
            if stored is None or stored.file.fingerprint != fingerprint:
                return None
            return stored.counts() if stored.file.rows == rows[stored.file.part] else None

        found = zip(there, read_stored_parts(self._folder, there, counts), strict=True)
        return {part: counts for part, counts in found if counts is not None}

    def run_of(self, part: Part) -> str | None:
        stored = read_stored_part(self._folder, part)
        return None if stored is None else stored.file.run_id

    def write(self, task: PartTask, config: JobConfig, stats: RunStats, answer: Answer) -> bool:
        """It is made on this machine, put whole where nothing was put meanwhile, and removed."""
        remote = remote_part(self._url, task.part, self._work_dir)
        config = replace(config, destination=remote.local)
        is_begun = False

        def answer_the_rest() -> None:
            nonlocal is_begun
            is_begun = True
            if config.policy.incremental:
                self._fetch_earlier(task, remote.local.path)
            answer(config, stats)

        try:
            overwrite = config.policy.overwrite
            make_and_put(answer_the_rest, remote, stats, overwrite=overwrite, keep=False)
        except PutConflictError:
            found = self.finished(task.fingerprint, {task.part: task.rows})
            if task.part not in found:
                raise
            with Staging(remote) as staging:
                staging.clear()
            if not is_begun:  # what was left here of an earlier run has been made elsewhere
                return self.write(task, config, stats, answer)
            counts = found[task.part]
            stats.count_earlier(counts.num_rows, counts.errors, counts.error_examples)
            return True
        return False

    def check_whole(self) -> None:
        named = self.named()
        counts = sorted({part.count for part in named})
        if len(counts) != 1:
            raise several_counts(self._url, counts)
        parts = [Part(number, counts[0]) for number in range(counts[0])]
        found = read_stored_parts(self._folder, parts, _file)
        missing = [number for number, file in enumerate(found) if file is None]
        if missing:
            raise missing_parts(self._url, missing, counts[0])
        check_one_run([file for file in found if file is not None])

    def _put_probe(self) -> None:
        """Put what tells the folder from any other, if no earlier run has."""
        check_writable(self._probe)
        with TemporaryDirectory(prefix="vlmbatch-") as scratch:
            content, uploads = Path(scratch, _PROBE), UploadLog(Path(scratch, "uploads"))
            content.write_text(secrets.token_hex(16))
            with suppress(ChangedError):
                put_object(content, self._probe, None, uploads, lambda _: None)

    def _fetch_earlier(self, task: PartTask, output: Path) -> None:
        """Put the parts of the earlier run beside ``output``, one of its parts, that may have held
        rows of ``task``."""
        own = read_part(output)
        if own is None:
            return
        for part in parts_to_keep_from(task, own.info.manifest_rows):
            beside = output.with_name(part.file_name)
            try:
                fetch_part(self._folder, part, beside, lambda _: None)
            except (ChangedError, UsageError):  # replaced just now, or not there: nothing to keep
                beside.unlink(missing_ok=True)

    @property
    def _folder(self) -> RemotePath:
        if self._opened is None:
            self._opened = open_filesystem(self._url.rstrip("/"))
        return self._opened

    @property
    def _probe(self) -> RemotePath:
        return self._folder.child(f"{INSIDE}/{_PROBE}")

    def _seen(self) -> str | None:
        raw = read_object(self._probe)
        return None if raw is None else raw.decode(errors="replace")


def parts_to_keep_from(task: PartTask, rows_before: int) -> list[Part]:
    """The other parts of a manifest that had ``rows_before`` which may have held rows of ``task``:
    where rows were added or removed before these. The likeliest first, and not more than are looked
    at."""
    part, change = task.part, task.manifest_rows - rows_before
    per_part = max(1, rows_before) / part.count
    first = int((task.rows.start - max(0, change)) / per_part) - 1
    last = int((task.rows.stop + max(0, -change)) / per_part) + 1
    numbers = [number for number in range(part.count) if first <= number <= last]
    numbers.sort(key=lambda number: abs(number - task.rows.start / per_part))
    others = [Part(number, part.count) for number in numbers if number != part.number]
    return others[:MAX_OTHERS]


def _file(stored: StoredPart | None) -> PartFile | None:
    return None if stored is None else stored.file
