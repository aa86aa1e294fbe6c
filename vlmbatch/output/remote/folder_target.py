"""A folder of shards as output.

    bucket/out/_vlmbatch/run.json      which run it is of; "running" until all of it is there
    bucket/out/_vlmbatch/keys-<id>     digests of its rows, for --incremental
    bucket/out/part-000000.parquet

A run first claims the folder with ``run.json``, which no two can do, then removes the shards of
other runs and puts its own, and in the end says there that it is complete.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.run_paths import INSIDE, RECORD_FILE, work_folder_path
from vlmbatch.durable.run_record import RunRecord, parse_record, record_bytes, recorded_id
from vlmbatch.errors import UsageError
from vlmbatch.output.remote.arrival import install_run
from vlmbatch.output.remote.commit import parquet_run_id
from vlmbatch.output.remote.target import Found, Seen, put_again, put_once, unknown_output
from vlmbatch.output.shards import SHARD_NAME, finished_shards
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.puts import check_writable
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import (
    Sent,
    fetch_object,
    names_in,
    read_object,
    remove_object,
    version_of,
)

_MARK, _OTHER = "run", "other"


class FolderTarget:
    """The shards right in ``folder``. ``claim``: where a file of ours may be written."""

    def __init__(self, folder: RemotePath, uploads: UploadLog, claim: Path) -> None:
        self.url = folder.url
        self._folder = folder
        self._uploads = uploads
        self._claim = claim
        self._mark = folder.child(INSIDE).child(RECORD_FILE)

    def check_access(self) -> None:
        check_writable(self._mark)

    def look(self) -> Found:
        version = version_of(self._mark)
        if version is not None:
            return {_MARK: Seen(version, recorded_id(read_object(self._mark) or b""))}
        others = names_in(self._folder).keys() - {INSIDE}
        return {_OTHER: Seen("files of no run", None)} if others else {}

    def run_of(self, found: Found) -> str | None:
        return found[_MARK].run_id if _MARK in found else None

    def files(self, output: Path) -> list[Path]:
        return [shard.path for shard in finished_shards(output)]

    def num_bytes(self, found: Found) -> int:
        return sum(size or 0 for size in self._shards().values())

    def fetch(self, found: Found, output: Path, received: Sent) -> None:
        raw = read_object(self._mark) if self.run_of(found) else None
        if raw is None:
            raise unknown_output(self.url)
        record = parse_record(raw, self._mark.url)
        if record.state != "complete":
            raise UsageError(
                f"output {self.url} is being put by another run (since {record.started}: "
                f"{record.about.get('command')}), or that was cut off: run the same command there "
                "again, or add --overwrite to replace it"
            )

        def fetch() -> None:
            if output.exists():
                shutil.rmtree(output)
            output.mkdir()
            for name in self._shards():
                fetch_object(self._folder.child(name), output / name, received)
            finished_shards(output)  # all of them, or it says which is missing

        keys = read_object(self._folder.child(INSIDE).child(f"keys-{record.id}"))
        install_run(output, record, keys, fetch)

    def put(self, output: Path, record: RunRecord, found: Found, sent: Sent) -> None:
        seen = found.get(_MARK)
        mark = None if seen is None else seen.version
        if seen is None or seen.run_id != record.id:
            mark = self._put_mark(replace(record, state="running"), mark)
        crash_point("remote.claimed")
        own = {path.name: path for path in self.files(output)}
        for name, size in self._shards().items():
            path = self._folder.child(name)
            is_there = name in own and size == own[name].stat().st_size
            if is_there and _is_of(record, path):  # by an earlier call
                sent(own.pop(name).stat().st_size)
            else:
                remove_object(path)
        for name, source in own.items():
            path = self._folder.child(name)
            put_once(
                source,
                path,
                None,
                self._uploads,
                sent,
                is_own=partial(_is_of, record, path),
            )
            crash_point("remote.object_put")
        self._put_keys(work_folder_path(output) / f"keys-{record.id}")
        self._put_mark(record, mark)

    def _put_mark(self, record: RunRecord, expected: str | None) -> str:
        self._claim.write_bytes(record_bytes(record))
        return put_once(
            self._claim,
            self._mark,
            expected,
            self._uploads,
            lambda _: None,
            is_own=lambda: read_object(self._mark) == record_bytes(record),
        )

    def _put_keys(self, keys: Path) -> None:
        folder = self._folder.child(INSIDE)
        if keys.exists():
            put_again(keys, folder.child(keys.name), self._uploads)
        for name in names_in(folder):
            if name.startswith("keys-") and name != keys.name:
                remove_object(folder.child(name))

    def _shards(self) -> dict[str, int | None]:
        """The objects with names of shards, in order, with their sizes in bytes."""
        names = sorted(names_in(self._folder).items())
        return {name: size for name, size in names if SHARD_NAME.fullmatch(name)}


def _is_of(record: RunRecord, path: RemotePath) -> bool:
    return parquet_run_id(path) == record.id
