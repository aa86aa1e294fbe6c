"""Parts of one manifest in a folder of a store, each put by a task of its own.

bucket/out/part-00003-of-00016.parquet                       as any file that is put
bucket/out/_vlmbatch/part-00003-of-00016.parquet/run-...
"""

from __future__ import annotations

from pathlib import Path

from vlmbatch.config import Part
from vlmbatch.config.part import part_of_name
from vlmbatch.durable.run_paths import INSIDE, RECORD_FILE
from vlmbatch.errors import UsageError
from vlmbatch.output.remote.file_target import FileTarget
from vlmbatch.output.shards import SHARD_NAME
from vlmbatch.remote.filesystem import RemotePath
from vlmbatch.remote.upload_log import UploadLog
from vlmbatch.remote.versions import Sent, names_in


def parts_in(folder: RemotePath) -> dict[Part, int]:
    """The parts that were put there, of whatever runs, by number, with their bytes.

    Raises:
        RemoteError: the store cannot be asked.
    """
    sizes = {part_of_name(name): size for name, size in names_in(folder).items()}
    found = {part: size or 0 for part, size in sizes.items() if part is not None}
    return dict(sorted(found.items(), key=lambda item: (item[0].count, item[0].number)))


def check_part_folder(folder: RemotePath, part: Part) -> None:
    """Refuse a folder that is another run's, before any work is done for it.

    Raises:
        UsageError: it holds parts of a run in another number of parts, or a run in no parts.
        RemoteError: the store cannot be asked.
    """
    for other in parts_in(folder):
        if other.count != part.count:
            raise UsageError(
                f"output {folder.url} is of a run in {other.count:,} parts ({other.file_name}), "
                f"not in {part.count:,} as --shard {part} asks for. Give every task the same N, or "
                "choose another folder"
            )
    names = [*names_in(folder), *names_in(folder.child(INSIDE))]
    for name in names:
        if SHARD_NAME.fullmatch(name) or name == RECORD_FILE:
            raise UsageError(
                f"output {folder.url} is of a run without --shard ({name}): choose another folder"
            )


def check_without_parts(folder: RemotePath) -> None:
    """Refuse a folder that holds parts, for a run in no parts.

    Raises:
        UsageError: names one of them.
        RemoteError: the store cannot be asked.
    """
    for part in parts_in(folder):
        raise UsageError(
            f"output {folder.url} is of a run with --shard, in {part.count:,} parts "
            f"({part.file_name}): choose another folder"
        )


def fetch_parts(folder: RemotePath, output: Path, received: Sent) -> None:
    """Write the parts in a folder, with their work folders, to the folder ``output``.

    Raises:
        UsageError: of one no run is known.
        RemoteError: the store cannot be asked.
        OutputError: they cannot be written.
    """
    for part in parts_in(folder):
        fetch_part(folder, part, output / part.file_name, received)


def fetch_part(folder: RemotePath, part: Part, output: Path, received: Sent) -> None:
    """Write a part in a folder, with its work folder, to ``output``.

    Raises:
        ChangedError: it is replaced meanwhile.
        UsageError: no run on it is known.
        RemoteError: the store cannot be asked.
        OutputError: it cannot be written.
    """
    target = FileTarget(folder.child(part.file_name), UploadLog(output.with_name("uploads.json")))
    target.fetch(target.look(), output, received)
