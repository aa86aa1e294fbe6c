"""The parts of one run together: are all there, and are they of one run?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vlmbatch.config import Part
from vlmbatch.durable.lock import lock_holder
from vlmbatch.durable.run_paths import INSIDE, LOCK_FILE, work_folder_path
from vlmbatch.errors import OutputLockedError, UnfinishedError, UsageError
from vlmbatch.output.changes import explained, forbidden
from vlmbatch.output.parts import PartFile, is_answered_again, parts_named, read_part


def all_parts(folder: Path) -> list[PartFile]:
    """The parts of the one run that ``folder`` is of, in the manifest's order and without gaps.

    Raises:
        UsageError: there are none, or they are of several runs, or a file is none of ours.
        UnfinishedError: some are missing, or were begun again and are not done.
        OutputLockedError: one is being written now.
        OutputError: a file cannot be read.
    """
    counts = sorted({part.count for part in parts_named(folder)})
    if not counts:
        what = "holds no parts of a run" if folder.is_dir() else "is no folder"
        raise UsageError(
            f"{folder} {what}: name the folder that the tasks of `vlmbatch run --shard I/N` wrote "
            "to"
        )
    if len(counts) > 1:
        raise several_counts(folder, counts)
    parts = [Part(number, counts[0]) for number in range(counts[0])]
    found = [_whole_part(folder / part.file_name) for part in parts]
    _check_finished(folder, found)
    whole = [part for part in found if part is not None]
    check_one_run(whole)
    return whole


def several_counts(folder: Path | str, counts: Sequence[int]) -> UsageError:
    """To be raised where parts of runs in several numbers of parts lie in one folder."""
    runs = " and of one in ".join(f"{count:,} parts" for count in counts)
    return UsageError(
        f"{folder} holds parts of a run in {runs}: remove those of the one that is not wanted, "
        f"also in {folder}/{INSIDE}"
    )


def missing_parts(folder: Path | str, missing: Sequence[int], count: int) -> UnfinishedError:
    """To be raised where not all parts are there."""
    return UnfinishedError(
        f"{folder}: {len(missing):,} of {count:,} parts missing or not finished: "
        f"{numbers_text(missing)}. Run the task of each (--shard {missing[0]}/{count} and so "
        "on), then merge again"
    )


def numbers_text(numbers: Sequence[int]) -> str:
    """Such as "0, 3-7, 12": ascending numbers for people."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{low}" if low == high else f"{low}-{high}" for low, high in ranges)


def _whole_part(path: Path) -> PartFile | None:
    """The part at ``path``; None where it is missing, or is being answered again.

    Raises:
        UsageError: something else has its name.
    """
    found = read_part(path)
    if found is None:
        if path.exists():
            raise UsageError(
                f"{path} is damaged, or was not written by vlmbatch: remove it, and run its task "
                "again"
            )
        return None
    return None if is_answered_again(found) else found


def _check_finished(folder: Path, found: Sequence[PartFile | None]) -> None:
    count = len(found)
    paths = [folder / Part(number, count).file_name for number in range(count)]
    holders = {
        number: holder
        for number, path in enumerate(paths)
        if (holder := lock_holder(work_folder_path(path) / LOCK_FILE)) is not None
    }
    missing = [number for number, part in enumerate(found) if part is None]
    if holders:
        first, holder = next(iter(holders.items()))
        raise OutputLockedError(
            f"{folder}: of {count:,} parts {numbers_text([*holders])} "
            f"{'is' if len(holders) == 1 else 'are'} being written ({first} by {holder}). Wait "
            "until the tasks end, then merge again"
        )
    if missing:
        raise missing_parts(folder, missing, count)


def check_one_run(parts: Sequence[PartFile]) -> None:
    """Check that the parts, all that there are, are of one run and have every row once.

    Raises:
        UsageError: names one that does not go with the others.
    """
    first, next_row = parts[0], 0
    for part in parts:
        if part.fingerprint != first.fingerprint:
            changes = first.record().changes(part.info.settings)
            lines = "".join(f"\n  {explained(change)}" for change in changes)
            again = "the tasks of one of them again with --overwrite"
            if changes and not forbidden(changes):
                again = "all tasks again with --incremental"
            raise UsageError(
                f"{part} is of another run than {first.part.file_name}:{lines}\n"
                f"Run {again}, then merge again"
            )
        if part.rows.start != next_row:
            raise UsageError(
                f"{part} begins with row {part.rows.start}, expected {next_row}: it was "
                "changed by something else. Run its task again with --overwrite"
            )
        next_row = part.rows.stop
    if next_row != first.info.manifest_rows:
        raise UsageError(
            f"{first.folder}: the parts have {next_row} rows, expected the "
            f"{first.info.manifest_rows} of the manifest: run the tasks again with --overwrite"
        )
