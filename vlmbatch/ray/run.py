"""A run on a Ray cluster, on one screen: the manifest in parts, answered by engines there."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlmbatch.config import Device, FolderDestination, JobConfig, Part, RunPolicy
from vlmbatch.config.part import MAX_PARTS
from vlmbatch.durable.durable_file import reported
from vlmbatch.durable.lock import OutputLock
from vlmbatch.durable.run_paths import LOCK_FILE, parts_work_folder
from vlmbatch.errors import UsageError
from vlmbatch.jobs.fingerprint import fingerprint, run_settings
from vlmbatch.log import logger
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.output.all_parts import all_parts
from vlmbatch.output.changes import refuse_changes
from vlmbatch.output.finished import finished_counts
from vlmbatch.output.parts import check_folder, finished_part, other_run, parts_named
from vlmbatch.ray.cluster import Share, connected, room_on, share_of
from vlmbatch.ray.dispatch import Dispatch
from vlmbatch.ray.worker import WorkerJob
from vlmbatch.session.open import open_job, opening_stage
from vlmbatch.stages.stopping import StopRequest
from vlmbatch.stats import RunStats

_PROBE = "probe-"  # begins the name of a file that shows a node that it sees the folder


def run(config: JobConfig, address: str, stats: RunStats) -> None:
    """Answer every row of the manifest on the cluster at ``address``, into a folder of parts.

    The parts, of ``shard_rows`` rows, are those of a run with --shard: what ``merge`` joins. Parts
    that are there are not computed again. No row passes through this process.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used, or the cluster cannot
            be reached, or a node sees other files (before any work is done there).
        OutputLockedError: another run is writing to the folder.
        OutputError: the output cannot be written.
        EnginesLostError: a part was lost again and again.
        RunStoppedError: a signal, the deadline or the error budget ended the run early.
    """
    destination, policy, engine = config.destination, config.policy, config.session.engine
    assert isinstance(destination, FolderDestination)
    stop = StopRequest(policy.grace_s, policy.deadline_s, policy.max_error_rate)
    finished = RunStats()
    stats.stage = "connecting to the Ray cluster"
    with connected(address) as ray:
        share = share_of(ray.nodes(), engine.device, engine.tensor_parallel)
        config = _on_device(config, share)
        stats.stage = opening_stage(config.session)
        inputs = open_job(config, stats)
        stats.quantization = inputs.quantization(config.session.engine)
        stats.stage = "reading the manifest"
        info = inputs.manifest.scanned()
        stats.rows_total = info.num_rows
        folder = Path(os.path.abspath(destination.path))  # noqa: PTH100 - resolves no links
        parts = _divided(policy, folder, info.num_rows, destination.shard_rows)
        settings = run_settings(config, inputs, info)
        if not policy.overwrite:
            other, changes = other_run(folder, parts[0], settings)
            refuse_changes(folder / other.file_name, changes, incremental=policy.incremental)
        with _held(folder) as probe:
            here = (str(Path.cwd()), tuple(sys.argv))
            job = WorkerJob(config, folder, *here, probe, settings, share.num_cpus)
            left = [part for part in parts if not _is_done(job, part, inputs.manifest, finished)]
            room = partial(_room, ray, share)
            dispatch = Dispatch(ray, job, share, left, room, finished, stats, stop)
            with stop.on_signals():
                dispatch.run()
        all_parts(folder)
    if info.num_rows and not finished.rows_begun:  # every part was there
        stats.count_earlier(finished.rows_done, finished.errors, finished.error_examples)
    stats.finish()


def _on_device(config: JobConfig, share: Share) -> JobConfig:
    """The job on what the cluster has; a node's own look might find something else there."""
    session = config.session
    device: Device = "cuda" if share.num_gpus else "cpu"
    if session.engine.device != device == "cpu":
        logger.warning("the Ray cluster has no GPU: answering on its CPUs")
    engine = replace(session.engine, device=device)
    return replace(config, session=replace(session, engine=engine))


def _room(ray: Any, share: Share) -> int:
    return room_on(ray.nodes(), share)


def _divided(policy: RunPolicy, folder: Path, num_rows: int, part_rows: int) -> list[Part]:
    """The parts of the manifest; with --incremental as many as are there.

    Raises:
        UsageError: the folder is of a run in another number of parts, or in none, or there are
            too many.
    """
    wanted = count = max(1, -(-num_rows // part_rows))
    named = parts_named(folder)
    if named and policy.incremental:
        count = named[0].count
    if count > MAX_PARTS:
        raise UsageError(
            f"--shard-rows {part_rows} makes {count:,} parts of {num_rows:,} rows, and a run has "
            f"at most {MAX_PARTS:,}: at least --shard-rows {-(-num_rows // MAX_PARTS)}"
        )
    if named and named[0].count != wanted and not policy.incremental:
        raise UsageError(
            f"output {folder} is of a run in {named[0].count:,} parts ({named[0].file_name}), and "
            f"{num_rows:,} rows in parts of {part_rows:,} (--shard-rows) are {wanted:,}. Give the "
            "same --shard-rows, or, where the manifest has changed, add --incremental to keep the "
            "answers of unchanged rows; or choose another folder, or empty this one"
        )
    parts = [Part(number, count) for number in range(count)]
    check_folder(folder, parts[0])
    return parts


def _is_done(job: WorkerJob, part: Part, manifest: Manifest, finished: RunStats) -> bool:
    """Whether a worker would find nothing to do for a part; it is then counted in ``finished``."""
    policy = job.config.policy
    if policy.overwrite or policy.incremental:
        return False
    found = finished_part(job.folder, part, fingerprint(job.settings), manifest.rows_of(part))
    if found is None:
        return False
    counts = finished_counts(found.path)
    if policy.retry_failed and counts.errors:
        return False
    done = RunStats()
    done.count_earlier(counts.num_rows, counts.errors, counts.error_examples)
    finished.add(done)
    return True


@contextmanager
def _held(folder: Path) -> Iterator[tuple[Path, str]]:
    """Within, this run alone divides the folder, and a file is there that all nodes have to see.

    Raises:
        OutputLockedError: another run does.
        OutputError: the folder cannot be written.
    """
    inside = parts_work_folder(folder)
    with reported(inside):
        inside.mkdir(parents=True, exist_ok=True)
    lock = OutputLock(inside / LOCK_FILE, folder)
    # Never the same name: what a network file system has shown of it once, it shows for a while.
    probe, content = inside / f"{_PROBE}{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        with reported(probe):
            for stale in inside.glob(f"{_PROBE}*"):  # of a driver that was killed
                stale.unlink(missing_ok=True)
            probe.write_text(content)
        yield probe, content
    finally:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        lock.release()
