"""One short run on a real cluster, one of whose engines is killed, and other ways to its rows."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest
from cluster_run import ClusterRun, write_manifest
from ray_nodes import ray_nodes
from s3_server import S3Server


def test_one_engine_and_a_cluster_and_tasks_write_the_same(
    folder: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3.variables.items():
        monkeypatch.setenv(name, value)
    s3.client.create_bucket(Bucket="short-run")
    write_manifest(folder, 12)
    with ray_nodes(0, head_cpus=1) as nodes:
        job = ClusterRun(folder, nodes.address, ("--max-tokens", 8, "--shard-rows", 6))
        command = job.start()
        job.kill_worker(command)
        assert command.wait(120) == 1, command.stderr  # some rows are errors
        assert "was lost on node" in command.stderr
        job.assert_as_one_machine()
        assert re.search(rf"nodes +{re.escape(socket.gethostname())}: \d+ rows", command.stderr)
        # So does a cluster that puts its parts into a store.
        stored = replace(job, output="s3://short-run/out/")
        putting = stored.start("--work-dir", folder / "work")
        status, told, figures = job.run()
        assert status == 1 and "nothing to do" in told
        assert (figures["rows"], figures["resumed"]) == (12, 12)
        assert putting.wait(120) == 1, putting.stderr
        assert "join the parts with `vlmbatch merge s3://short-run/out/" in putting.stderr
        stored.merge(stored.output, "stored.parquet")
        job.assert_same("one.parquet", "stored.parquet")
    # So do tasks without Ray.
    for part in ("1/2", "0/2"):
        job.run_here("parts/", "--shard", part)
    job.merge("parts", "tasks.parquet")
    job.assert_same("one.parquet", "tasks.parquet")
