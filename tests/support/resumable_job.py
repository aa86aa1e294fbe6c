"""A run in small: work folder, journal and output as a real run uses them, without a model.

    python resumable_job.py ATTEMPT CRASH_POINT=OUTPUT ...

runs each in a fork that dies at its crash point. It prints a row's crash point and index once its
result is acknowledged, and each fork's crash point and exit status.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, MutableMapping
from pathlib import Path

import pyarrow.parquet as pq

from vlmbatch.durable import crash_points
from vlmbatch.durable.durable_file import FILES, FileSystem
from vlmbatch.durable.journal_writer import JournalWriter
from vlmbatch.durable.run_paths import work_folder_path
from vlmbatch.durable.run_record import RunRecord
from vlmbatch.durable.spill import Spill
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.output.parquet_writer import ParquetResultWriter
from vlmbatch.output.reorder import ReorderBuffer
from vlmbatch.output.shards import ShardedParquetWriter
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY, WorkFolder
from vlmbatch.types import Result

FINGERPRINT = "f" * 64
FINISHING_ORDER = (2, 0, 1, 5, 3, 4, 8, 6, 7)
NUM_ROWS = len(FINISHING_ORDER)
ROWS_A_SHARD = 5
_ROWS_A_GROUP = 2
_SEGMENT_BYTES = 250  # a new segment after every second group

Writer = Callable[..., JournalWriter]


def answer(row: int, attempt: int) -> Result:
    return Result(row, f"id-{row}", f"row {row}, attempt {attempt}", "stop", 5, 0, 3)


def run(
    output: Path,
    attempt: int,
    acknowledged: MutableMapping[int, Result],
    files: FileSystem = FILES,
    journal_writer: Writer = JournalWriter,
) -> None:
    """Answer the rows that no earlier attempt did, write the output, complete the run.

    An output that is a folder gets shards. Results go into ``acknowledged`` once they are so.
    """
    with WorkFolder(output, files) as work:
        record = work.current_run()
        if record is None:
            record = RunRecord.new({"sampling": {"seed": 1}}, FINGERPRINT, NUM_ROWS)
            work.begin(record)
        if record.state == "complete":
            return
        journal = work.journal(record)
        writer = journal_writer(work.path, record.run_id, files=files, segment_bytes=_SEGMENT_BYTES)
        metadata = {FINGERPRINT_KEY: record.fingerprint, RUN_ID_KEY: record.id}
        try:
            parquet: ParquetResultWriter | ShardedParquetWriter
            if output.is_dir():
                parquet = ShardedParquetWriter(
                    output, RESULT_SCHEMA, metadata, ROWS_A_SHARD, NUM_ROWS, files=files
                )
            else:
                parquet = ParquetResultWriter(
                    output, RESULT_SCHEMA, metadata, temporary=work.temporary_output, files=files
                )
            try:
                order = ReorderBuffer(Spill(2**20))
                group: list[Result] = []
                for row in FINISHING_ORDER:
                    if row in journal:
                        result = journal.read(row)
                    else:
                        result = answer(row, attempt)
                        writer.append(result)
                        group.append(result)
                        if len(group) == _ROWS_A_GROUP:
                            acknowledge(writer, group, acknowledged)
                    order.push(result)
                    for ready in order.ready():
                        if output.is_dir():  # a shard keeps what this attempt has answered
                            acknowledge(writer, group, acknowledged)
                        parquet.write(ready)
                acknowledge(writer, group, acknowledged)
                parquet.close()
            except BaseException:
                parquet.abort()
                raise
        finally:
            writer.close()
            journal.close()
        work.complete(record)


def acknowledge(
    writer: JournalWriter, group: list[Result], acknowledged: MutableMapping[int, Result]
) -> None:
    writer.sync()
    for member in group:
        acknowledged[member.index] = member
    group.clear()


def check_finished(output: Path, acknowledged: dict[int, Result], attempts: int) -> None:
    """Every row once, in order; acknowledged ones as they were; nothing else left over."""
    files = sorted(output.glob("part-*")) if output.is_dir() else [output]
    rows = [
        row for file in files for row in pq.ParquetFile(file).read(use_threads=False).to_pylist()
    ]
    assert [row["row_index"] for row in rows] == list(range(NUM_ROWS))
    for index, row in enumerate(rows):
        assert row["id"] == f"id-{index}"
        if index in acknowledged:
            assert row["text"] == acknowledged[index].text, "an acknowledged row was lost"
        assert row["text"] in {answer(index, n).text for n in range(1, attempts + 1)}
    work = work_folder_path(output)
    if output.is_dir():
        assert {*output.iterdir()} == {work, *output.glob("part-*.parquet")}
        assert {*output.parent.iterdir()} == {output}
    else:
        assert {*output.parent.iterdir()} == {output, work}
    assert {path.name for path in work.iterdir()} == {"lock", "run.json"}


class Printed(dict[int, Result]):
    """Tells the parent process, which outlives this one."""

    def __init__(self, point: str) -> None:
        self._point = point

    def __setitem__(self, row: int, result: Result) -> None:
        print(self._point, row, flush=True)


def fork(output: Path, attempt: int, point: str) -> int:
    """The exit status of the run, which dies at the point."""
    pid = os.fork()
    if pid == 0:
        try:
            crash_points._armed = crash_points.armed_points(point)
            run(output, attempt, Printed(point))
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        name, _, folder = argument.partition("=")
        print(name, "status", fork(Path(folder), int(sys.argv[1]), name), flush=True)
