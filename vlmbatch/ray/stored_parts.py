"""A folder of an object store, into which each node puts the parts that it has made."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from vlmbatch.config import Part, RemoteDestination
from vlmbatch.durable.run_paths import INSIDE
from vlmbatch.durable.staging_paths import remote_part
from vlmbatch.errors import UsageError
from vlmbatch.output.all_parts import check_one_run, missing_parts, several_counts
from vlmbatch.output.changes import refuse_changes
from vlmbatch.output.parts import PartFile
from vlmbatch.output.reader import OutputCounts
from vlmbatch.output.remote.part_objects import check_part_folder, parts_in
from vlmbatch.output.remote.stored_part import StoredPart, read_stored_part, read_stored_parts
from vlmbatch.ray.parts_folder import Probe
from vlmbatch.remote.filesystem import RemotePath, open_filesystem
from vlmbatch.remote.s3_upload import UploadLog, check_writable
from vlmbatch.remote.versions import ChangedError, put_object, read_object

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
    def held(self) -> Iterator[Probe]:
        """A store has no locks: of two runs that make one part, it takes the first."""
        check_writable(self._probe)
        with TemporaryDirectory(prefix="vlmbatch-") as folder:
            content = Path(folder, _PROBE)
            content.write_text(secrets.token_hex(16))
            uploads = UploadLog(Path(folder, "uploads"))
            with suppress(ChangedError):  # an earlier run has put one
                put_object(content, self._probe, None, uploads, lambda _: None)
        yield Probe(_PROBE, self._seen() or "")

    def see(self, probe: Probe) -> None:
        seen = self._seen()
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

    def destination(self, part: Part) -> RemoteDestination:
        return remote_part(self._url, part, self._work_dir)

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


def _file(stored: StoredPart | None) -> PartFile | None:
    return None if stored is None else stored.file
