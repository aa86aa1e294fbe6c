"""A run on a Ray cluster, on one screen: the manifest in parts, answered by engines there."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from vlmbatch.config import (
    Device,
    FolderDestination,
    JobConfig,
    Part,
    RemoteDestination,
    RunPolicy,
)
from vlmbatch.config.part import MAX_PARTS
from vlmbatch.errors import UsageError
from vlmbatch.jobs.fingerprint import fingerprint, run_settings
from vlmbatch.log import logger
from vlmbatch.manifest.manifest import Manifest
from vlmbatch.ray.cluster import Share, connected, room_on, share_of
from vlmbatch.ray.dispatch import Dispatch
from vlmbatch.ray.parts_folder import PartsFolder, SharedFolder
from vlmbatch.ray.stored_parts import StoredParts
from vlmbatch.ray.worker import WorkerJob
from vlmbatch.session.open import open_job, opening_stage
from vlmbatch.stages.stopping import StopRequest
from vlmbatch.stats import RunStats


def run(config: JobConfig, remote: RemoteDestination | None, address: str, stats: RunStats) -> None:
    """Answer every row of the manifest on the cluster at ``address``, into a folder of parts.

    The parts, of ``shard_rows`` rows, are those of a run with --shard: what ``merge`` joins. Parts
    that are there are not computed again. No row passes through this process. ``remote``: the
    folder is one of a store.

    Raises:
        UsageError: the configuration, manifest or checkpoint cannot be used, or the cluster cannot
            be reached, or a node sees other files (before any work is done there).
        OutputLockedError: another run is writing to the folder.
        OutputError: the output cannot be written.
        RemoteError: the store refuses, or cannot be reached.
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
        folder = _folder(destination, remote)
        parts = _divided(policy, folder, info.num_rows, destination.shard_rows)
        settings = run_settings(config, inputs, info)
        if not policy.overwrite:
            folder.refuse_changes(parts[0], settings, incremental=policy.incremental)
        with folder.held(len(parts), stats) as probe:
            here = (str(Path.cwd()), tuple(sys.argv))
            job = WorkerJob(config, folder, *here, probe, settings, share.num_cpus)
            left = _left(job, parts, inputs.manifest, finished)
            room = partial(_room, ray, share)
            dispatch = Dispatch(ray, job, share, left, room, finished, stats, stop)
            with stop.on_signals():
                dispatch.run()
        folder.check_whole()
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


def _folder(destination: FolderDestination, remote: RemoteDestination | None) -> PartsFolder:
    if remote is not None:
        return StoredParts(remote.url, remote.work_dir)
    return SharedFolder(Path(os.path.abspath(destination.path)))  # noqa: PTH100 - resolves no links


def _divided(policy: RunPolicy, folder: PartsFolder, num_rows: int, part_rows: int) -> list[Part]:
    """The parts of the manifest; with --incremental as many as are there.

    Raises:
        UsageError: the folder is of a run in another number of parts, or in none, or there are
            too many.
    """
    wanted = count = max(1, -(-num_rows // part_rows))
    named = folder.named()
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
    folder.check(parts[0])
    return parts


def _left(
    job: WorkerJob, parts: Sequence[Part], manifest: Manifest, finished: RunStats
) -> list[Part]:
    """The parts that a worker would find something to do for; others count in ``finished``."""
    policy = job.config.policy
    if policy.overwrite or policy.incremental:
        return list(parts)
    rows = {part: manifest.rows_of(part) for part in parts}
    found = job.folder.finished(fingerprint(job.settings), rows)
    left = []
    for part in parts:
        counts = found.get(part)
        if counts is None or (policy.retry_failed and counts.errors):
            left.append(part)
            continue
        done = RunStats()
        done.count_earlier(counts.num_rows, counts.errors, counts.error_examples)
        finished.add(done)
    return left
