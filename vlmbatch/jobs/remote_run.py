"""Outputs of object stores and of the Hub: made here, then put whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from vlmbatch.config import JobConfig, PartDestination, RemoteDestination
from vlmbatch.durable.crash_points import crash_point
from vlmbatch.durable.durable_file import reported
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import OutputError, UsageError
from vlmbatch.jobs.run import run
from vlmbatch.output.finished import finished_counts
from vlmbatch.output.remote.folder_target import FolderTarget
from vlmbatch.output.remote.open import open_part_folder, open_target
from vlmbatch.output.remote.part_objects import (
    check_part_folder,
    check_without_parts,
    fetch_parts,
    parts_in,
)
from vlmbatch.output.remote.staging import Staging
from vlmbatch.output.remote.target import Found, Target, UnknownOutputError, unknown_output
from vlmbatch.output.work_folder import is_output_of
from vlmbatch.remote.errors import RemoteError
from vlmbatch.remote.puts import put_patiently
from vlmbatch.remote.versions import ChangedError
from vlmbatch.stats import RunStats


class PutConflictError(UsageError):
    """Something else has been put in an output's place since its run began."""


def run_remote(config: JobConfig, remote: RemoteDestination, stats: RunStats) -> None:
    """Answer every row into ``remote.local``, as ``run`` does, and put that where ``remote`` says.

    What is there is looked at first, and fetched where an earlier run is gone on with: the same
    command, on this machine or another, has the work of any output to go on with.

    Raises:
        UsageError: besides, something else is there, or was put there meanwhile.
        RemoteError: the store refuses, or cannot be reached: the same command puts it later.
    """
    make_and_put(lambda: run(config, stats), remote, stats, overwrite=config.policy.overwrite)


def make_and_put(
    make: Callable[[], None],
    remote: RemoteDestination,
    stats: RunStats,
    *,
    overwrite: bool,
    keep: bool = True,
) -> None:
    """Have ``make`` write the output ``remote.local``, or go on with it, and put that.

    Unless ``keep``, what is local is removed when it has been put: what is at the URL has all that
    a later run needs.

    Raises:
        PutConflictError: something else was put there meanwhile.
        As ``run_remote`` besides, and what ``make`` does.
    """
    target = open_target(remote)
    with Staging(remote) as staging:
        stats.stage = f"looking at {remote.url}"
        target.check_access()
        if isinstance(remote.local, PartDestination):
            check_part_folder(open_part_folder(remote), remote.local.part)
        elif isinstance(target, FolderTarget):
            check_without_parts(open_part_folder(remote))
        _prepare(target, staging, stats, overwrite=overwrite)
        try:
            make()
        except UsageError as error:
            if str(staging.output) not in str(error):
                raise
            raise type(error)(f"output {remote.url}, made in {remote.folder}: {error}") from error
        _put(target, staging, stats)
        if not keep:
            staging.clear()
    stats.finish()


def _prepare(target: Target, staging: Staging, stats: RunStats, *, overwrite: bool) -> None:
    """Refuse what is at the URL, or make it what the run here goes on with."""
    found, record, state = target.look(), staging.run(), staging.state
    if overwrite:
        staging.note(found, None)
        return
    if not found:
        return
    if not _is_known(found, state.base, record):
        if record is not None and record.id != state.put:
            raise _conflict(target, staging)
        record = None  # it was put, and what is there has followed it
    if record is not None:
        staging.note(found, state.put)
        return
    _fetch(target, found, staging.output, stats)
    staging.note(found, target.run_of(found))


def fetch_output(remote: RemoteDestination, stats: RunStats) -> None:
    """Write the output that ``remote`` names, with its work folder, to ``remote.local``.

    Raises:
        UsageError: there is none, or none of ours, or it is not whole.
        RemoteError: the store cannot be asked.
        OutputError: it cannot be written.
    """
    target = open_target(remote)
    stats.stage = f"looking at {remote.url}"
    with reported(remote.folder):
        remote.folder.mkdir(parents=True, exist_ok=True)
    if isinstance(target, FolderTarget) and (parts := parts_in(open_part_folder(remote))):
        stats.stage = f"fetching {remote.url}"
        with stats.transferring(sum(parts.values())) as received:
            fetch_parts(open_part_folder(remote), remote.local.path, received)
        return
    found = target.look()
    if not found:
        raise UsageError(f"{remote.url} does not exist: give the output of a run")
    try:
        _fetch(target, found, remote.local.path, stats)
    except UnknownOutputError as error:
        raise UsageError(
            f"{remote.url}: no run on it is known: give the output of a run, with the folder "
            "_vlmbatch that was put besides"
        ) from error


def _fetch(target: Target, found: Found, output: Path, stats: RunStats) -> None:
    if target.run_of(found) is None:
        raise unknown_output(target.url)
    stats.stage = f"fetching {target.url}"
    with stats.transferring(target.num_bytes(found)) as received:
        target.fetch(found, output, received)


def _put(target: Target, staging: Staging, stats: RunStats) -> None:
    """Put the finished output, if that was not done; for some minutes, where the store fails."""
    record = staging.run()
    assert record is not None
    try:
        put_patiently(lambda: _put_once(target, staging, record, stats))
    except ChangedError as error:
        raise _conflict(target, staging) from error
    except RemoteError as error:
        raise _unsent(error, staging) from error


def _put_once(target: Target, staging: Staging, record: RunRecord, stats: RunStats) -> None:
    found, state = target.look(), staging.state
    if not _is_known(found, state.base, record):
        raise _conflict(target, staging)
    if found and record.id == state.put and found.keys() == state.base.keys():
        return
    stats.stage = "checking the output"
    _verify(staging, record)
    stats.stage = f"putting {target.url}"
    stats.nothing_to_do = False
    total = sum(path.stat().st_size for path in target.files(staging.output))
    with reported(staging.folder), stats.transferring(total) as sent:
        target.put(staging.output, record, found, sent)
    crash_point("remote.put")
    staging.note(target.look(), record.id)


def _verify(staging: Staging, record: RunRecord) -> None:
    """Read the output that is to be put once more."""
    counts = finished_counts(staging.output)
    if counts.num_rows != record.num_rows or not is_output_of(staging.output, record):
        raise OutputError(
            f"{staging.output} has {counts.num_rows} rows, expected {record.num_rows} of the run "
            f"{record.id}: something else has changed it. Run with --overwrite to start anew"
        )


def _is_known(found: Found, base: Found, record: RunRecord | None) -> bool:
    """Whether nothing but the run ``record`` has put something since ``base`` was seen."""
    own = None if record is None else record.id
    return all(
        seen.is_same(base.get(name)) or (own is not None and seen.run_id == own)
        for name, seen in found.items()
    )


def _conflict(target: Target, staging: Staging) -> PutConflictError:
    return PutConflictError(
        f"output {target.url} was put by another run, or something else, since this one began. It "
        f"is left as it is, and this run's answers are kept in {staging.output}. Move away what is "
        "there and run the same command again, which puts them, or add --overwrite to start anew "
        "and replace it"
    )


def _unsent(error: RemoteError, staging: Staging) -> RemoteError:
    return type(error)(
        f"{error}. The answers are kept in {staging.output}: run the same command again to put them"
    )
