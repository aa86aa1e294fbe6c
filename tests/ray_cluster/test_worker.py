"""What a node refuses before it answers: it would answer something else."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from worker_processes import ENGINE, worker_pids

import vlmbatch.ray.parts_folder
import vlmbatch.ray.worker
from vlmbatch.config import (
    EngineConfig,
    FolderDestination,
    JobConfig,
    ManifestConfig,
    RunPolicy,
    SessionConfig,
)
from vlmbatch.config.part import Part
from vlmbatch.errors import EnginesLostError, OutputError, UsageError
from vlmbatch.jobs.fingerprint import run_settings
from vlmbatch.output.parts import read_part
from vlmbatch.ray.parts_folder import Probe, SharedFolder
from vlmbatch.ray.worker import PartWorker, WorkerJob
from vlmbatch.session.open import open_job
from vlmbatch.stages.stopping import RunStoppedError


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a worker changes in its process, given back; and no patience."""
    monkeypatch.setattr("sys.argv", ["pytest"])
    monkeypatch.chdir(Path.cwd())
    monkeypatch.setattr(vlmbatch.ray.parts_folder, "_SEEN_SECONDS", 0.0)


@pytest.fixture
def job(folder: Path, samples: Path) -> WorkerJob:
    manifest = folder / "manifest.jsonl"
    manifest.write_bytes((samples / "manifest.jsonl").read_bytes())
    out = SharedFolder(folder / "out")
    probe = Probe("probe", "seen")
    inside = out.path / "_vlmbatch"
    inside.mkdir(parents=True)
    (inside / probe.name).write_text(probe.content)
    config = JobConfig(
        SessionConfig(str(samples / "tiny-llava")),
        ManifestConfig("manifest.jsonl"),
        FolderDestination(out.path, 10),
    )
    inputs = open_job(replace(config, manifest=ManifestConfig(str(manifest))))
    settings = run_settings(config, inputs, inputs.manifest.scan())
    command = ("vlmbatch", "run")
    return WorkerJob(config, out, str(folder), command, probe, settings, num_cpus=1)


def out_of(job: WorkerJob) -> Path:
    assert isinstance(job.folder, SharedFolder)
    return job.folder.path


def refusal(job: WorkerJob) -> str:
    opened = PartWorker(job).open()
    assert isinstance(opened.error, UsageError) and opened.node
    return str(opened.error)


def test_a_folder_that_is_not_seen(job: WorkerJob) -> None:
    missing = replace(job, probe=Probe("other", "seen"))
    assert "other that it has put there is not seen there (No such file" in refusal(missing)
    assert "has another content there" in refusal(replace(job, probe=Probe("probe", "new")))


def test_another_version_manifest_or_model(job: WorkerJob) -> None:
    assert "and the driver 9.9" in refusal(replace(job, version="9.9"))
    others = {**job.settings, "manifest": "0" * 64, "model": "1" * 64}
    told = refusal(replace(job, settings=others))
    assert "manifest: its rows are others" in told and "model: the files" in told


def test_one_engine_answers_part_after_part(job: WorkerJob) -> None:
    worker = PartWorker(job)
    assert worker.open().error is None
    policy = RunPolicy()
    parts = [Part(number, 3) for number in range(3)]
    outcomes = [worker.answer(part, policy) for part in parts[1:]]
    engine = worker._replica
    worker.stop("stopped by the driver", 143)
    stopped = worker.answer(parts[0], policy)
    assert isinstance(stopped.error, RunStoppedError) and stopped.error.exit_status == 143
    assert worker._replica is engine
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [outcome.stats.rows_done for outcome in outcomes] == [10, 10]
    found = [read_part(out_of(job) / part.file_name) for part in parts]
    assert [part is not None and part.num_rows for part in found] == [False, 10, 10]
    worker.close()


def test_an_engine_that_is_divided(job: WorkerJob) -> None:
    """In two ranks, which the actor starts and ends."""
    session = replace(job.config.session, engine=EngineConfig(tensor_parallel=2, device="cpu"))
    worker = PartWorker(replace(job, config=replace(job.config, session=session)))
    assert worker.open().error is None
    for part in (Part(1, 3), Part(0, 3)):
        outcome = worker.answer(part, RunPolicy())
        assert outcome.error is None and outcome.stats.rows_done == 10
        answered = pq.read_table(out_of(job) / part.file_name).to_pylist()
        assert all(row["text"] == row["answer"] for row in answered if row["status"] == "ok")
    (first,) = worker_pids(os.getpid(), ENGINE)
    assert len(worker_pids(first, ENGINE)) == 1
    worker.close()
    assert not worker_pids(os.getpid(), ENGINE)


def test_a_process_whose_ranks_cannot_be_kept_is_started_anew(
    job: WorkerJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*arguments: object) -> None:
        raise RunStoppedError("no engine is left: signal 9", 74)

    monkeypatch.setattr(vlmbatch.ray.worker, "answer_manifest", lose)
    monkeypatch.setattr(PartWorker, "_loaded", lambda self, stats: None)
    worker = PartWorker(job)
    assert worker.open().error is None
    with pytest.raises(EnginesLostError, match="no engine is left: signal 9"):
        worker.answer(Part(0, 3), RunPolicy())


def test_what_is_done_needs_no_engine(job: WorkerJob) -> None:
    first, second = PartWorker(job), PartWorker(job)
    for worker in (first, second):
        assert worker.open().error is None
        outcome = worker.answer(Part(0, 3), RunPolicy())
        assert outcome.error is None and outcome.stats.rows_done == 10
    assert second._replica is None
    first.close()


def test_what_cannot_be_written_is_told(job: WorkerJob) -> None:
    worker = PartWorker(job)
    assert worker.open().error is None
    (out_of(job) / "_vlmbatch/part-00000-of-00003").write_text("in the way")
    outcome = worker.answer(Part(0, 3), RunPolicy())
    assert isinstance(outcome.error, OutputError)
