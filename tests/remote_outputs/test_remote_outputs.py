"""Runs whose output is in a store: what is put, refused, fetched and gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from remote_job import NUM_ROWS, RemoteJob
from s3_server import S3Server

from vlmbatch.commands.remote_output import local_copy
from vlmbatch.errors import OutputError, OutputLockedError, UsageError
from vlmbatch.jobs.remote_status import read_remote_status
from vlmbatch.jobs.status import RunStatus
from vlmbatch.output.remote.file_target import FileTarget
from vlmbatch.output.remote.staging import Staging
from vlmbatch.remote.errors import RemoteFailedError
from vlmbatch.stats import RunStats

NewJob = Callable[..., RemoteJob]
# Of each kind of output: its name, the objects that it consists of, and the one that readers open.
KINDS = {
    "out.parquet": ["out.parquet"],
    "out/": ["out/part-000000.parquet", "out/part-000001.parquet", "out/part-000002.parquet"],
    "out.jsonl": ["out.errors.jsonl", "out.jsonl"],
}
FIRST = {"out.parquet": "out.parquet", "out/": "out/part-000000.parquet", "out.jsonl": "out.jsonl"}


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def new_job(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NewJob:
    def new(name: str, machine: str = "here") -> RemoteJob:
        return RemoteJob(f"s3://{bucket}/{name}", tmp_path / machine, monkeypatch)

    return new


def outputs(s3: S3Server, bucket: str) -> dict[str, bytes]:
    """What readers of the bucket see."""
    return {key: s3.read(bucket, key) for key in s3.keys(bucket) if "/_" not in f"/{key}"}


def is_whole(s3: S3Server, bucket: str, kind: str, job: RemoteJob) -> bool:
    """Whether there is what the job has made, and nothing else."""
    found = outputs(s3, bucket)
    local = job.output if job.output.is_dir() else job.output.parent
    made = {path.read_bytes() for path in local.iterdir() if path.suffix in (".parquet", ".jsonl")}
    return sorted(found) == KINDS[kind] and set(found.values()) == made


def test_something_else_is_left_alone(
    new_job: NewJob, s3: S3Server, bucket: str, kind: str
) -> None:
    s3.client.put_object(Bucket=bucket, Key=FIRST[kind], Body=b"precious")
    job = new_job(kind)
    with pytest.raises(UsageError, match="exists, and no run on it is known: add --overwrite"):
        job()
    with (
        pytest.raises(UsageError, match="no run on it is known: give the output of a run"),
        local_copy(job.remote.url, RunStats()),
    ):
        pass
    assert job.computed == 0 and outputs(s3, bucket) == {FIRST[kind]: b"precious"}
    job(overwrite=True)
    assert is_whole(s3, bucket, kind, job)


def test_put_once_and_gone_on_with_elsewhere(
    new_job: NewJob, s3: S3Server, bucket: str, kind: str
) -> None:
    here, there = new_job(kind), new_job(kind, "there")
    assert not here().nothing_to_do
    assert here.computed == NUM_ROWS and is_whole(s3, bucket, kind, here)
    listing = s3.client.list_objects_v2(Bucket=bucket)["Contents"]
    for job in (here, there):
        assert job().nothing_to_do
        assert job.computed == 0 and is_whole(s3, bucket, kind, job)
    assert s3.client.list_objects_v2(Bucket=bucket)["Contents"] == listing
    there(overwrite=True)
    assert is_whole(s3, bucket, kind, there)
    here()  # its own is no longer what is there
    assert here.computed == 0 and is_whole(s3, bucket, kind, here)


@pytest.mark.parametrize("kind", ["out.parquet", "out/"])
def test_put_by_somebody_else_meanwhile(
    new_job: NewJob, s3: S3Server, bucket: str, kind: str
) -> None:
    here, there = new_job(kind), new_job(kind, "there")
    here.meanwhile = there
    with pytest.raises(UsageError, match="was put by another run, or something else") as caught:
        here()
    assert f"answers are kept in {here.output}" in str(caught.value)
    assert is_whole(s3, bucket, kind, there)
    with pytest.raises(UsageError, match="was put by another run"):  # before any work
        here()
    for key in s3.keys(bucket):
        s3.client.delete_object(Bucket=bucket, Key=key)
    here.meanwhile = lambda: None
    here()
    assert here.computed == 0 and is_whole(s3, bucket, kind, here)


def test_overwrite_where_somebody_else_has_put(new_job: NewJob, s3: S3Server, bucket: str) -> None:
    here, there = new_job("out.parquet"), new_job("out.parquet", "there")
    here.meanwhile = there
    with pytest.raises(UsageError, match="or add --overwrite to start anew and replace it"):
        here()
    here.meanwhile = lambda: None
    here(overwrite=True)
    assert is_whole(s3, bucket, "out.parquet", here)


def test_a_put_that_fails_for_a_while(
    new_job: NewJob, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = new_job("out.parquet")
    put, look, failures = FileTarget.put, FileTarget.look, ["refused", "refused"]

    def failing(*arguments: Any) -> None:
        if failures:
            raise RemoteFailedError(f"{job.remote.url}: {failures.pop()}")
        put(*arguments)

    def unreachable(*arguments: Any) -> Any:
        monkeypatch.setattr(FileTarget, "look", look)
        raise RemoteFailedError(f"{job.remote.url}: no answer for too long")

    monkeypatch.setattr(FileTarget, "put", failing)
    job.meanwhile = lambda: monkeypatch.setattr(FileTarget, "look", unreachable)
    failures.pop()  # there are two attempts after the first
    job()
    job.meanwhile = lambda: None
    assert is_whole(s3, bucket, "out.parquet", job)
    failures += ["refused"] * 3
    with pytest.raises(RemoteFailedError, match="run the same command again to put them"):
        job(overwrite=True)
    work_dir = job.remote.folder.parent
    found = read_remote_status(job.remote, lambda: local_copy(job.remote.url, RunStats()))
    assert isinstance(found, RunStatus)
    assert (found.state, found.is_complete, found.rows_done) == ("complete", False, NUM_ROWS)
    assert found.next_step == "run the same command again to put the output at its URL"
    job()
    assert job.computed == 0 and is_whole(s3, bucket, "out.parquet", job)
    found = read_remote_status(job.remote, lambda: local_copy(job.remote.url, RunStats()))
    assert found.is_complete and found.output == job.remote.url
    assert list(work_dir.iterdir()) == [job.remote.folder]


@pytest.mark.parametrize("name", ["out.parquet", "out/"])
def test_a_store_of_another_kind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path.name}/{name}"
    here, there = (RemoteJob(url, tmp_path / machine, monkeypatch) for machine in ("a", "b"))
    here()
    assert there().nothing_to_do
    there.meanwhile = lambda: here(overwrite=True)
    with pytest.raises(UsageError, match="was put by another run"):
        there(overwrite=True)
    assert here().nothing_to_do
    store = fsspec.filesystem("memory")
    objects = store.find(f"/{tmp_path.name}")
    assert not [path for path in objects if path.endswith(".tmp")]
    store.rm(f"/{tmp_path.name}", recursive=True)


def test_a_batch_without_an_answer(new_job: NewJob, s3: S3Server, bucket: str) -> None:
    here, there = new_job("out.jsonl"), new_job("out.jsonl", "there")
    here.error_rows = range(NUM_ROWS)
    here()
    assert s3.keys(bucket)["out.jsonl"] == 0
    (here.remote.folder / "put.json").unlink()  # as if it had ended before it noted the put
    here()
    assert here.computed == 0
    assert there().nothing_to_do


def test_damaged_notes(new_job: NewJob, s3: S3Server, bucket: str) -> None:
    job = new_job("out.parquet")
    job()
    notes = job.remote.folder / "put.json"
    notes.write_text("{")
    with pytest.raises(OutputError, match=r"remove it and run with --overwrite, or give another"):
        job()
    assert new_job("out.parquet", "there")().nothing_to_do
    notes.unlink()
    job(overwrite=True)
    assert is_whole(s3, bucket, "out.parquet", job)


def test_what_is_gone_is_put_again(new_job: NewJob, s3: S3Server, bucket: str) -> None:
    job = new_job("out.parquet")
    job()
    s3.client.delete_object(Bucket=bucket, Key="out.parquet")
    job()
    assert job.computed == 0 and is_whole(s3, bucket, "out.parquet", job)


def test_a_copy_of_an_output_is_of_no_known_run(new_job: NewJob, s3: S3Server, bucket: str) -> None:
    new_job("out.parquet")()
    source = {"Bucket": bucket, "Key": "out.parquet"}
    s3.client.copy_object(Bucket=bucket, Key="copy.parquet", CopySource=source)
    with pytest.raises(UsageError, match="no run on it is known"):
        new_job("copy.parquet")()


def test_a_folder_that_is_being_put(new_job: NewJob, bucket: str) -> None:
    here, there = new_job("out/"), new_job("out/", "there")
    here()
    here_again = new_job("out/", "third")

    def cut_off() -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("vlmbatch.output.remote.folder_target.crash_point", lambda _: cut_off())
        there(overwrite=True)
    with pytest.raises(UsageError, match="is being put by another run"):
        here_again()
    there()
    assert there.computed == 0
    assert here_again().nothing_to_do
    here_again(overwrite=True)
    assert here_again.computed == NUM_ROWS


def test_one_process_at_a_time(new_job: NewJob) -> None:
    job = new_job("out.parquet")
    with Staging(job.remote), pytest.raises(OutputLockedError) as caught:
        job()
    assert str(caught.value).startswith(f"{job.remote.url} is being written by another run")


def test_a_large_footer(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    from vlmbatch.output.remote.commit import parquet_run_id
    from vlmbatch.remote.filesystem import open_filesystem

    schema = pa.schema([("a", pa.int64())], {"vlmbatch.run_id": "r1", "large": "x" * 100_000})
    pq.write_table(schema.empty_table(), tmp_path / "a.parquet")
    s3.client.put_object(Bucket=bucket, Key="a.parquet", Body=(tmp_path / "a.parquet").read_bytes())
    assert parquet_run_id(open_filesystem(f"s3://{bucket}/a.parquet")) == "r1"
