"""A folder of parts of one manifest, each answered by a task of its own.

    out/part-00000-of-00016.parquet          rows 0 to n - 1, once all of them are done
    out/part-00001-of-00016.parquet          rows n to 2n - 1
    out/_vlmbatch/part-00001-of-00016/       what lets its task be resumed: lock, journal, record

A part is a run's output like any other, with a run id of its own. It says of itself which part it
is, and what its answers depend on, which is the same for all parts of one run: what joins them
needs neither the work folders nor the manifest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmbatch.config import Part
from vlmbatch.config.part import part_of_name
from vlmbatch.durable.run_paths import (
    RECORD_FILE,
    parts_work_folder,
    real_output,
    work_folder_path,
)
from vlmbatch.durable.run_record import RunRecord, read_record
from vlmbatch.errors import OutputError, UsageError
from vlmbatch.manifest.parquet_file import read_footer
from vlmbatch.output.shards import SHARD_NAME
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY

PART_KEY = "vlmbatch.part"  # ``PartInfo`` as JSON


@dataclass(frozen=True, slots=True)
class PartInfo:
    """What a part's file says of itself beside what every output says.

    ``first_row``: where in the manifest its first row stands. ``manifest_rows``: of all parts.
    """

    number: int
    count: int
    first_row: int
    manifest_rows: int
    manifest: str  # as the command named it
    started: str  # ISO 8601, UTC
    settings: dict[str, Any]  # what the fingerprint is of

    def metadata(self) -> dict[str, str]:
        return {PART_KEY: json.dumps(asdict(self))}


@dataclass(frozen=True, slots=True)
class PartFile:
    """A finished part of some run, by its own metadata. ``folder``: a path, or a store's URL."""

    folder: str
    part: Part
    info: PartInfo
    num_rows: int
    run_id: str
    fingerprint: str
    version: str  # of vlmbatch, which wrote it

    def __str__(self) -> str:
        return f"{self.folder}/{self.part.file_name}"

    @property
    def path(self) -> Path:
        """Of one that is not in a store."""
        return Path(self.folder, self.part.file_name)

    @property
    def rows(self) -> range:
        """Which rows of the manifest it holds."""
        return range(self.info.first_row, self.info.first_row + self.num_rows)

    def record(self) -> RunRecord:
        """What its work folder has known of its run."""
        return RunRecord(
            self.run_id,
            self.fingerprint,
            self.info.settings,
            self.num_rows,
            self.version,
            self.info.started,
            {"manifest": self.info.manifest, "first_row": self.info.first_row},
            "complete",
        )


def part_of_footer(folder: str, part: Part, footer: pq.FileMetaData) -> PartFile | None:
    """What the file called ``part`` says of itself in its footer; None where it is no such part."""
    keys = (PART_KEY, RUN_ID_KEY, FINGERPRINT_KEY, "vlmbatch.version")
    values = [(footer.metadata or {}).get(key.encode(), b"").decode() for key in keys]
    info = _info(values[0])
    if info is None or not values[1] or (info.number, info.count) != (part.number, part.count):
        return None
    return PartFile(folder, part, info, footer.num_rows, *values[1:])


def read_part(path: Path) -> PartFile | None:
    """What the file at ``path`` says of itself; None where no finished part is.

    Raises:
        OutputError: the file cannot be read.
    """
    part = part_of_name(path.name)
    if part is None or not os.path.isfile(path):  # noqa: PTH113 - False where it may not be looked at
        return None
    try:
        footer = read_footer(path)
    except pa.ArrowInvalid:
        return None
    except OSError as error:
        if error.errno is None:  # so pyarrow tells that the footer is no footer
            return None
        raise OutputError(f"{path} cannot be read: {error.strerror}") from error
    return part_of_footer(str(path.parent), part, footer)


def finished_part(folder: Path, part: Part, fingerprint: str, rows: range) -> PartFile | None:
    """The part of a run on these ``rows`` with this fingerprint, where it is done already, and is
    not being answered again.

    Raises:
        OutputError: the file cannot be read.
    """
    found = read_part(folder / part.file_name)
    if found is None or (found.fingerprint, found.rows) != (fingerprint, rows):
        return None
    return None if is_answered_again(found) else found


def is_answered_again(part: PartFile) -> bool:
    """Whether another run than the one that wrote the part was begun on it, and is not done.

    Raises:
        OutputError: its record cannot be read.
    """
    record = read_record(work_folder_path(part.path) / RECORD_FILE)
    return record is not None and record.state == "running" and record.id != part.run_id


def parts_named(folder: Path) -> list[Part]:
    """The parts, of whatever runs, that are in ``folder`` or were begun there: by names alone.

    Raises:
        OutputError: the folder cannot be read.
    """
    names = {path.name for path in _entries(folder)}
    names |= {f"{path.name}.parquet" for path in _entries(parts_work_folder(folder))}
    parts = filter(None, map(part_of_name, names))
    return sorted(parts, key=lambda part: (part.count, part.number))


def check_folder(folder: Path, part: Part) -> None:
    """Refuse a folder that is another run's, before any work is done for it.

    Raises:
        UsageError: it holds parts of a run in another number of parts, or of a run in no parts.
        OutputError: it cannot be read.
    """
    for other in parts_named(folder):
        if other.count != part.count:
            raise UsageError(
                f"output {folder} is of a run in {other.count:,} parts ({other.file_name}), not in "
                f"{part.count:,} as --shard {part} asks for. Give every task the same N; or choose "
                "another folder, or remove that run's parts and "
                f"{parts_work_folder(folder)}"
            )
    plain = folder.with_name(f"{real_output(folder).name}.vlmbatch") / RECORD_FILE
    shards = [path for path in _entries(folder) if SHARD_NAME.fullmatch(path.name)]
    for found in (plain, parts_work_folder(folder) / RECORD_FILE, *shards):
        if os.path.exists(found):  # noqa: PTH110
            raise UsageError(
                f"output {folder} is of a run without --shard ({found}): choose another folder"
            )


def check_without_parts(folder: Path) -> None:
    """Refuse a folder that holds parts, for a run in no parts.

    Raises:
        UsageError: names one of them.
        OutputError: it cannot be read.
    """
    if parts := parts_named(folder):
        raise UsageError(
            f"output {folder} is of a run with --shard, in {parts[0].count:,} parts "
            f"({parts[0].file_name}): choose another folder"
        )


def other_run(folder: Path, part: Part, settings: Mapping[str, Any]) -> tuple[Part, list[str]]:
    """How a run with ``settings`` differs from that of another part in ``folder``, and which.

    One other part is looked at: where every task does so, all are of one run. The differences are
    as those of ``RunRecord.changes``; none where no other part is there.

    Raises:
        OutputError: a file cannot be read.
    """
    for other in parts_named(folder):
        if other != part and (record := _record(folder / other.file_name)) is not None:
            return other, record.changes(settings)
    return part, []


def _record(path: Path) -> RunRecord | None:
    record = read_record(work_folder_path(path) / RECORD_FILE)
    if record is not None and (record.state == "running" or path.exists()):
        return record
    found = read_part(path)
    return None if found is None else found.record()


def _info(text: str) -> PartInfo | None:
    try:
        return PartInfo(**json.loads(text))
    except (ValueError, TypeError):
        return None


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise OutputError(f"{folder} cannot be read: {error.strerror}") from error
