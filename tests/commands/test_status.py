"""``vlmbatch status`` on outputs in every state that a run can leave them in."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import environment

from vlmbatch.durable.run_record import RunRecord
from vlmbatch.errors import ErrorCode, OutputError, UsageError
from vlmbatch.jobs import status as run_status
from vlmbatch.jobs.status import RunStatus, read_status
from vlmbatch.manifest.schema import RESULT_SCHEMA
from vlmbatch.output.journal_counts import read_journal_counts
from vlmbatch.output.parquet_writer import ParquetResultWriter, ResultWriter
from vlmbatch.output.reader import OutputCounts
from vlmbatch.output.shards import ShardedParquetWriter
from vlmbatch.output.work_folder import FINGERPRINT_KEY, RUN_ID_KEY, WorkFolder
from vlmbatch.types import Result

NUM_ROWS = 10
SETTINGS = {"limit": None, "sampling": {"max_tokens": 5, "temperature": 0.0}, "dtype": "auto"}
COMMAND = "vlmbatch run m.jsonl -m a/model -o out.parquet"


def result(row: int, errors: bool = True) -> Result:
    if errors and row == 1:
        code, message = ErrorCode.IMAGE_MISSING, "no file at \x1b[2Jx.png"
        return Result(row, "one", error_code=code, error_message=message)
    return Result(row, f"id-{row}", "yes", "stop", 5, 0, 1)


def new_record(command: str = COMMAND, shard_rows: int | None = None) -> RunRecord:
    about = {"model": "a/model", "manifest": "m.jsonl", "shard_rows": shard_rows}
    return RunRecord.new(SETTINGS, "f" * 64, NUM_ROWS, {**about, "command": command})


def metadata(record: RunRecord) -> dict[str, str]:
    return {
        FINGERPRINT_KEY: record.fingerprint,
        RUN_ID_KEY: record.id,
        "vlmbatch.version": record.version,
        "vlmbatch.model": "a/model",
        "vlmbatch.sampling": json.dumps(SETTINGS["sampling"]),
    }


def leave(
    output: Path,
    *,
    done: int,
    errors: bool = True,
    commit: bool = False,
    complete: bool = False,
    command: str = COMMAND,
    shard_rows: int | None = None,
) -> None:
    """What a run of ten rows leaves of which ``done`` are journaled."""
    record = new_record(command, shard_rows)
    with WorkFolder(output) as work:
        work.begin(record)
        writer: ResultWriter
        if shard_rows is None:
            writer = ParquetResultWriter(
                output, RESULT_SCHEMA, metadata(record), temporary=work.temporary_output
            )
        else:
            writer = ShardedParquetWriter(
                output, RESULT_SCHEMA, metadata(record), shard_rows, NUM_ROWS
            )
        with work.journal_writer(record) as journal:
            for row in range(done):
                journal.append(result(row, errors))
                writer.write(result(row, errors))
        if commit:
            writer.close()
        else:
            writer.abort()
        if complete:
            work.complete(record)


def vlmbatch_status(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vlmbatch", "status", *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out.parquet"


def test_an_interrupted_run(output: Path) -> None:
    leave(output, done=4)
    status = read_status(output)
    assert (status.state, status.rows_done, status.rows_left) == ("interrupted", 4, 6)
    assert status.errors == {"image_missing": 1}
    assert status.next_step == (
        "run the same command again to resume; add --retry-failed to answer the 1 error row again"
    )
    assert read_status(output.with_name("out.parquet.vlmbatch")) == status


def test_what_is_shown(output: Path) -> None:
    leave(output, done=4)
    done = vlmbatch_status(output)
    assert (done.returncode, done.stderr) == (1, "")
    for line in (
        "state     interrupted: no process is writing it",
        "rows      4 of 10 done, 6 left: 3 ok, 1 error",
        "manifest  m.jsonl",
        "model     a/model",
        "settings  max_tokens 5",
        f"command   {COMMAND}",
    ):
        assert line in done.stdout.splitlines()
    assert "row 1 (id one): no file at \\x1b[2Jx.png" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1].startswith("next: run the same command again to resume")


def test_json(output: Path) -> None:
    leave(output, done=4)
    done = vlmbatch_status(output, "--json")
    found = json.loads(done.stdout)
    assert found["state"] == "interrupted"
    assert (found["rows_total"], found["rows_done"], found["rows_left"]) == (10, 4, 6)
    assert (found["errors"], found["num_errors"]) == ({"image_missing": 1}, 1)
    assert found["settings"] == SETTINGS
    assert found["output"] == str(output)
    assert found["started"] <= found["updated"]
    assert found["next_step"] and found["holder"] is None


@pytest.mark.parametrize(("errors", "status"), [(True, 1), (False, 0)])
def test_a_complete_run(output: Path, errors: bool, status: int) -> None:
    leave(output, done=10, errors=errors, commit=True, complete=True)
    done = vlmbatch_status(output)
    assert done.returncode == status
    assert f"10 of 10 done, 0 left: {9 if errors else 10} ok" in done.stdout
    assert ("--retry-failed" in done.stdout) == errors


def test_a_run_that_died_between_its_output_and_its_record_is_complete(output: Path) -> None:
    leave(output, done=10, commit=True)
    before = sorted(output.with_name("out.parquet.vlmbatch").iterdir())
    assert read_status(output).state == "complete"
    assert sorted(output.with_name("out.parquet.vlmbatch").iterdir()) == before


def test_shards(tmp_path: Path) -> None:
    leave(tmp_path / "out", done=7, shard_rows=3)
    status = read_status(tmp_path / "out")
    assert (status.state, status.shards_done, status.shards_total) == ("interrupted", 2, 4)
    leave(tmp_path / "whole", done=10, commit=True, complete=True, shard_rows=3)
    for _ in range(2):
        status = read_status(tmp_path / "whole")
        assert (status.state, status.shards_done, status.shards_total) == ("complete", 4, 4)
        assert (status.rows_done, status.errors) == (10, {"image_missing": 1})
        for path in (tmp_path / "whole.vlmbatch").iterdir():
            path.unlink()  # the shards tell as much
    (tmp_path / "whole/part-000002.parquet").unlink()
    with pytest.raises(UsageError, match=r"part-000002\.parquet is missing"):
        read_status(tmp_path / "whole")


def test_a_run_that_is_going_on(output: Path) -> None:
    record = new_record("vlmbatch run first.jsonl")
    with WorkFolder(output) as work:
        status = read_status(output)
        assert (status.state, status.rows_total) == ("starting", None)
        work.begin(record)
        with work.journal_writer(record) as journal:
            for row in range(3):
                journal.append(result(row))
            journal.sync()
            status = read_status(output)
            assert (status.state, status.rows_done) == ("running", 3)
            assert status.holder is not None and f"kill {status.holder.pid}" in status.next_step
            assert status.command == "vlmbatch run first.jsonl"
            done = vlmbatch_status(output)
            assert done.returncode == 75
            assert (
                f"written now by process {status.holder.pid} on {status.holder.host}, since "
                in (done.stdout)
            )
            journal.append(result(3))  # nothing has got into its way


def test_an_output_that_is_gone_or_replaced(output: Path) -> None:
    leave(output, done=10, commit=True, complete=True)
    output.unlink()
    assert read_status(output).next_step == "run the command again: it starts anew"
    pq.write_table(pa.table({"x": [1]}), output)
    status = read_status(output)
    assert (status.state, status.rows_done) == ("replaced", 0)
    assert "--overwrite" in status.next_step


def test_an_output_without_its_work_folder(output: Path) -> None:
    leave(output, done=10, commit=True, complete=True)
    work = output.with_name("out.parquet.vlmbatch")
    for path in work.iterdir():
        path.unlink()
    work.rmdir()
    status = read_status(output)
    assert (status.state, status.rows_done, status.num_errors) == ("complete", 10, 1)
    assert (status.model, status.settings) == ("a/model", {"sampling": SETTINGS["sampling"]})
    assert status.next_step.startswith("--overwrite to start anew")


def test_nothing_to_tell_of(tmp_path: Path) -> None:
    (tmp_path / "m.jsonl").write_text("{}\n")
    pq.write_table(pa.table({"x": [1]}), tmp_path / "others.parquet")
    (tmp_path / "folder").mkdir()
    for name, what in [
        ("nope.parquet", "does not exist"),
        ("m.jsonl", "was not written by vlmbatch"),
        ("others.parquet", "was not written by vlmbatch"),
        ("folder", "was not written by vlmbatch"),
        ("/", "was not written by vlmbatch"),
    ]:
        with pytest.raises(UsageError, match=what):
            read_status(tmp_path / name)
    done = vlmbatch_status(tmp_path / "nope.parquet")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nope.parquet does not exist, and no run on it is known" in done.stderr


def test_a_run_record_that_is_damaged(output: Path) -> None:
    leave(output, done=4)
    output.with_name("out.parquet.vlmbatch").joinpath("run.json").write_text("{")
    with pytest.raises(OutputError, match=r"run\.json is damaged"):
        read_status(output)


def test_a_run_that_ends_while_it_is_read(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal goes when the output is complete: what was read before is no status."""
    leave(output, done=10)
    original = read_journal_counts

    def meanwhile(folder: Path, run_id: bytes, num_rows: int, first_row: int) -> OutputCounts:
        leave(output, done=10, commit=True, complete=True)
        return original(folder, run_id, num_rows, first_row)

    monkeypatch.setattr(run_status, "read_journal_counts", meanwhile)
    status = read_status(output)
    assert (status.state, status.rows_done) == ("complete", 10)


@pytest.mark.parametrize("state", ["interrupted", "complete"])
def test_resuming_is_not_starting_anew(state: run_status.State) -> None:
    errors = {"image_missing": 1}
    status = RunStatus(Path("x"), state, 2, 1, errors, started="now", command="v run --overwrite")
    assert "again without --overwrite" in status.next_step


def test_neither_torch_nor_the_model_code_is_imported(output: Path) -> None:
    leave(output, done=4)
    code = f"""
import sys
from vlmbatch.cli import main
assert main(["status", {str(output)!r}]) == 1
assert not {{"torch", "transformers", "tokenizers", "huggingface_hub"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
