"""One object as output, or OpenAI's two: answers, and errors beside them.

    bucket/out.parquet
    bucket/_vlmbatch/out.parquet/run-<id>.json   which run it is of, and with what settings
    bucket/_vlmbatch/out.parquet/keys-<id>       digests of its rows, for --incremental

What the run is known by is put first, under names of the run's own, then the output: readers of
folders pass names by that begin with an underscore.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.run_paths import INSIDE, RECORD_FILE, temporary_path, work_folder_path
from vlmbatch.durable.run_record import RunRecord, parse_record
from vlmbatch.output.openai_lines import errors_path, is_batch_output
from vlmbatch.output.remote.arrival import install_run
from vlmbatch.output.remote.commit import lines_run_id, parquet_run_id
from vlmbatch.output.remote.target import Found, Seen, put_again, put_once, unknown_output
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.puts import check_writable
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import (
    Sent,
    fetch_object,
    names_in,
    read_object,
    remove_object,
    size_of,
    version_of,
)

_ANSWERS, _ERRORS = "answers", "errors"


class FileTarget:
    """The object at ``path``; for OpenAI's batch requests with one of errors beside it."""

    def __init__(self, path: RemotePath, uploads: UploadLog) -> None:
        self.url = path.url
        self._uploads = uploads
        folder, _, name = path.path.rpartition("/")
        self._objects = {_ANSWERS: path}  # the last one that is put
        self._is_batch = is_batch_output(Path(name))
        if self._is_batch:
            self._objects[_ERRORS] = path.at(f"{folder}/{errors_path(Path(name)).name}")
        self._state = path.at(f"{folder}/{INSIDE}/{name}")

    def check_access(self) -> None:
        check_writable(self._objects[_ANSWERS])

    def look(self) -> Found:
        found: dict[str, Seen] = {}
        for name, path in self._objects.items():
            version = version_of(path)
            if version is not None:
                run_id = lines_run_id(path) if self._is_batch else parquet_run_id(path)
                found[name] = Seen(version, run_id)
        answers, errors = found.get(_ANSWERS), found.get(_ERRORS)
        is_silent = answers is not None and answers.run_id is None and errors is not None
        if is_silent and size_of(self._objects[_ANSWERS]) == 0:  # no request was answered
            found[_ANSWERS] = Seen(found[_ANSWERS].version, found[_ERRORS].run_id)
        return found

    def run_of(self, found: Found) -> str | None:
        run_ids = (found[name].run_id for name in self._objects if name in found)
        return next((run_id for run_id in run_ids if run_id is not None), None)

    def files(self, output: Path) -> list[Path]:
        files = self._local(output).values()
        return [path for path in files if path.exists()]

    def num_bytes(self, found: Found) -> int:
        return sum(size_of(self._objects[name]) for name in found)

    def fetch(self, found: Found, output: Path, received: Sent) -> None:
        run_id = self.run_of(found)
        raw = None if run_id is None else read_object(self._state.child(f"run-{run_id}.json"))
        if raw is None:
            raise unknown_output(self.url)

        def fetch() -> None:
            for name, local in reversed(self._local(output).items()):
                if name in found:
                    fetch_object(self._objects[name], temporary_path(local), received)
                    temporary_path(local).replace(local)
                else:
                    local.unlink(missing_ok=True)

        record = parse_record(raw, f"{self.url}: {RECORD_FILE}")
        install_run(output, record, read_object(self._state.child(f"keys-{run_id}")), fetch)

    def put(self, output: Path, record: RunRecord, found: Found, sent: Sent) -> None:
        own = self._put_state(output, record)
        for name, source in reversed(self._local(output).items()):
            seen = found.get(name)
            if not source.exists():
                continue
            if seen is not None and seen.run_id == record.id:  # by an earlier call
                sent(source.stat().st_size)
                continue
            put_once(
                source,
                self._objects[name],
                None if seen is None else seen.version,
                self._uploads,
                sent,
                is_own=partial(self._is_of, record, name),
            )
            crash_point("remote.object_put")
        if _ERRORS in found and not errors_path(output).exists():
            remove_object(self._objects[_ERRORS])
        for name in names_in(self._state):
            if name not in own:
                remove_object(self._state.child(name))

    def _is_of(self, record: RunRecord, name: str) -> bool:
        seen = self.look().get(name)
        return seen is not None and seen.run_id == record.id

    def _put_state(self, output: Path, record: RunRecord) -> set[str]:
        """Put what lets others go on with the run; the names of that."""
        work = work_folder_path(output)
        names = {f"run-{record.id}.json": work / RECORD_FILE}
        keys = work / f"keys-{record.id}"
        if keys.exists():
            names[keys.name] = keys
        for name, source in names.items():
            put_again(source, self._state.child(name), self._uploads)
        return set(names)

    def _local(self, output: Path) -> dict[str, Path]:
        files = {_ANSWERS: output}
        if self._is_batch:
            files[_ERRORS] = errors_path(output)
        return files
