"""Runs with a remote output, in which every answer is made at once and without a model."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmbatch.commands.remote_output import remote_destination
from vlmbatch.config import (
    FolderDestination,
    JobConfig,
    ManifestConfig,
    OutputOptions,
    RemoteDestination,
    RunPolicy,
    SessionConfig,
)
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import ErrorCode
from vlmbatch.jobs import remote_run
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.output.openai_lines import BatchLines, is_batch_output
from vlmbatch.output.openai_writer import BatchResultWriter
from vlmbatch.output.parquet_writer import ParquetResultWriter, ResultWriter
from vlmbatch.output.shards import ShardedParquetWriter
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY, WorkFolder
from vlmbatch.stats import RunStats
from vlmbatch.types import Result

NUM_ROWS = 7


def nothing() -> None:
    pass


class RemoteJob:
    """The same command on ``url``, from a machine with ``work_dir``.

    ``error_rows`` cannot be answered. ``meanwhile`` is called when the answers are there and
    nothing is put yet. ``computed``: rows that were answered by the last call.
    """

    def __init__(self, url: str, work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        options = OutputOptions(output=url, work_dir=work_dir, shard_rows=None)
        self.remote: RemoteDestination = remote_destination(options, url)
        if isinstance(self.remote.local, FolderDestination):
            self.remote = replace(self.remote, local=replace(self.remote.local, shard_rows=3))
        self.output = self.remote.local.path
        self.computed = 0
        self.error_rows: Collection[int] = (2,)
        self.meanwhile: Callable[[], object] = nothing
        self._monkeypatch = monkeypatch

    def __call__(self, **policy: bool) -> RunStats:
        stats = RunStats()
        config = JobConfig(
            SessionConfig("model"),
            ManifestConfig("manifest.jsonl"),
            self.remote.local,
            policy=RunPolicy(**policy),
        )
        self.computed = 0
        with self._monkeypatch.context() as patch:
            patch.setattr(remote_run, "run", self._run)
            patch.setattr("vlmbatch.remote.puts.PAUSES_S", (0, 0))
            remote_run.run_remote(config, self.remote, stats)
        return stats

    def _run(self, config: JobConfig, stats: RunStats) -> None:
        with WorkFolder(self.output) as work:
            record = None if config.policy.overwrite else work.current_run()
            if record is not None and record.state == "complete":
                stats.nothing_to_do = True
                self.meanwhile()
                return
            record = RunRecord.new({"sampling": {}}, "f" * 64, NUM_ROWS)
            work.begin(record)
            writer = self._writer(work, record)
            for row in range(NUM_ROWS):
                code = ErrorCode.PROMPT_INVALID if row in self.error_rows else None
                text = None if code else f"answer {row} of {record.id}"
                writer.write(Result(row, f"id-{row}", text, "stop", 5, 0, 3, error_code=code))
                self.computed += 1
            writer.close()
            work.complete(record)
        self.meanwhile()

    def _writer(self, work: WorkFolder, record: RunRecord) -> ResultWriter:
        metadata: dict[str, Any] = {RUN_ID_KEY: record.id, FINGERPRINT_KEY: record.fingerprint}
        if isinstance(self.remote.local, FolderDestination):
            return ShardedParquetWriter(self.output, RESULT_SCHEMA, metadata, 3, NUM_ROWS)
        if is_batch_output(self.output):
            return BatchResultWriter(
                self.output, BatchLines(record.id, 0, "model"), work.temporary_output
            )
        return ParquetResultWriter(
            self.output, RESULT_SCHEMA, metadata, temporary=work.temporary_output
        )
