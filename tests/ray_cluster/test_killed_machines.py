"""Whatever dies while a cluster answers: every row comes out once, as of one machine."""

from __future__ import annotations

import itertools
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_run import ClusterRun, write_manifest
from ray_nodes import RayNodes, ray_nodes
from s3_server import S3Server

pytestmark = pytest.mark.ray

_BUCKETS = itertools.count()
SLOW = ("--max-tokens", 60, "--ignore-eos", "--shard-rows", 6)


@pytest.fixture(scope="module")
def nodes(s3: S3Server) -> Iterator[RayNodes]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3.variables.items():
            patch.setenv(name, value)
        with ray_nodes(2) as nodes:
            yield nodes


@pytest.fixture
def stored(folder: Path, nodes: RayNodes, s3: S3Server) -> ClusterRun:
    """Into a store, which has whole parts alone."""
    write_manifest(folder, 48)
    bucket = f"killed-{next(_BUCKETS)}"
    s3.client.create_bucket(Bucket=bucket)
    options = (*SLOW, "--work-dir", folder / "work")
    return ClusterRun(folder, nodes.address, options, f"s3://{bucket}/out/")


@pytest.fixture
def job(folder: Path, nodes: RayNodes) -> ClusterRun:
    write_manifest(folder, 48)
    return ClusterRun(folder, nodes.address, SLOW)


def test_nodes_that_die_and_join(job: ClusterRun, nodes: RayNodes) -> None:
    command = job.start()
    job.wait_for_rows(command, 5)
    nodes.kill()
    job.wait_for_rows(command, 15)
    nodes.add()
    job.wait_for_rows(command, 30)
    nodes.kill()  # the one that has joined, or the first: what it had is given to the other
    nodes.add()
    assert command.wait(180) == 1, command.stderr
    assert "was lost on node" in command.stderr
    job.assert_as_one_machine()


def test_engines_killed_again_and_again(job: ClusterRun) -> None:
    command = job.start()
    for rows in (3, 15, 30):
        job.wait_for_rows(command, rows)
        job.kill_worker(command)
    assert command.wait(180) == 1, command.stderr
    job.assert_as_one_machine()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_driver_that_ends_and_runs_again(job: ClusterRun, number: signal.Signals) -> None:
    command = job.start("--grace", "1s")
    job.wait_for_rows(command, 8)
    command.send_signal(number)
    status = command.wait(60)
    assert status == (-number if number == signal.SIGKILL else 128 + number), command.stderr
    job.wait_for_advice("run the same command again to resume")  # once Ray has ended the engines
    if number != signal.SIGKILL:
        assert "run the same command again to resume" in command.stderr
    status, _, figures = job.run()
    assert status == 1 and figures["rows"] == 48
    assert 8 <= figures["resumed"] < 48
    job.assert_as_one_machine()


def test_a_store_while_engines_nodes_and_drivers_die(stored: ClusterRun, nodes: RayNodes) -> None:
    command = stored.start()
    stored.kill_worker(command)
    stored.wait_for_rows(command, 6)
    nodes.kill()
    nodes.add()
    stored.wait_for_rows(command, 18)
    command.send_signal(signal.SIGKILL)
    command.wait(60)
    status, _, figures = stored.run()
    assert status == 1 and figures["rows"] == 48
    assert 18 <= figures["resumed"] < 48
    stored.assert_as_one_machine()
    assert not list((stored.folder / "work").rglob("*.parquet"))  # gone when it is put


def test_two_clusters_and_one_store(stored: ClusterRun) -> None:
    """Of a part that both make one is kept, and counts as the other's as well."""
    folder = stored.folder
    options = (*SLOW, "--work-dir", folder / "other")
    with ray_nodes(1) as others:
        other = replace(stored, address=others.address, options=options)
        summaries = [folder / "here.json", folder / "there.json"]
        commands = [
            run.start("--summary-json", summary)
            for run, summary in zip((stored, other), summaries, strict=True)
        ]
        for command in commands:
            assert command.wait(180) == 1, command.stderr
    figures = [json.loads(summary.read_text()) for summary in summaries]
    assert [each["rows"] for each in figures] == [48, 48]
    assert sum(each["resumed"] for each in figures) == 48
    stored.assert_as_one_machine()


def test_what_a_later_run_keeps_of_a_store(stored: ClusterRun) -> None:
    stored.options = ("--max-tokens", 8, "--shard-rows", 20, "--work-dir", stored.folder / "work")
    assert stored.run()[0] == 1
    status, told, figures = stored.run("--retry-failed")
    assert (status, figures["rows"], figures["resumed"]) == (1, 48, 48 - figures["errors"])
    write_manifest(stored.folder, 55)
    status, told, _ = stored.run()
    assert status == 2 and "manifest: its rows are others" in told
    status, told, figures = stored.run("--incremental")
    assert status == 1 and figures["rows"] == 55
    assert figures["resumed"] >= 40
    stored.assert_as_one_machine()
    status, told, figures = stored.run("--overwrite")
    assert status == 1 and figures["resumed"] == 0
    stored.assert_as_one_machine()


def test_what_a_later_run_keeps(job: ClusterRun) -> None:
    job.options = ("--max-tokens", 8, "--shard-rows", 20)
    assert job.run()[0] == 1
    status, told, figures = job.run("--retry-failed")
    assert (status, figures["rows"], figures["resumed"]) == (1, 48, 48 - figures["errors"])
    write_manifest(job.folder, 55)
    status, told, _ = job.run()
    assert status == 2 and "manifest: its rows are others" in told
    status, told, figures = job.run("--incremental")
    assert status == 1 and figures["rows"] == 55
    assert figures["resumed"] >= 40
    write_manifest(job.folder, 70)
    status, told, _ = job.run()
    assert status == 2 and "in 3 parts" in told and "are 4" in told
    status, told, figures = job.run("--incremental")
    assert status == 1 and figures["rows"] == 70
    job.assert_as_one_machine()
    status, told, figures = job.run("--overwrite", "--incremental")
    assert status == 2
    job.options = ("--max-tokens", 4, "--shard-rows", 24)
    status, told, figures = job.run("--overwrite")
    assert status == 1 and figures["resumed"] == 0
    job.assert_as_one_machine()


def test_models_that_are_divided(job: ClusterRun) -> None:
    """Over two processes on each node, as over two GPUs of it; one node dies."""
    job.options = ("--tensor-parallel", 2, *SLOW)
    command = job.start()
    job.wait_for_rows(command, 5)
    job.kill_worker(command)
    assert command.wait(180) == 1, command.stderr
    assert "was lost on node" in command.stderr
    job.assert_as_one_machine()


def test_an_error_budget_is_of_the_whole_run(job: ClusterRun) -> None:
    rows = [{"id": str(n), "prompt": "USER: Hi ASSISTANT:"} for n in range(800)]
    for row in rows[::3]:
        row["image"] = "missing.png"
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (job.folder / "manifest.jsonl").write_text(lines)
    job.options = ("--max-tokens", 2, "--shard-rows", 50)
    status, told, figures = job.run("--max-error-rate", "10%")
    assert status == 1 and "more than the 10.0%" in told
    assert figures["rows"] < 800


def test_two_drivers_and_one_folder(job: ClusterRun) -> None:
    command = job.start()
    job.wait_for_rows(command, 1)
    status, told, _ = job.run()
    assert status == 75 and "is being written by another run" in told
    assert command.wait(120) == 1
    job.assert_as_one_machine()
