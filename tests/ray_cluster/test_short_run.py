"""One short run on a real cluster, one of whose engines is killed."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from cluster_run import ClusterRun, write_manifest
from ray_nodes import ray_nodes

pytest.importorskip("ray", reason='Ray is not installed: pip install "vlmbatch[ray]"')


def test_a_run_on_a_cluster_is_that_of_one_machine(folder: Path) -> None:
    write_manifest(folder, 12)
    with ray_nodes(0, head_cpus=1) as nodes:
        job = ClusterRun(folder, nodes.address, ("--max-tokens", 8, "--shard-rows", 6))
        command = job.start()
        job.kill_worker(command)
        assert command.wait(120) == 1, command.stderr  # some rows are errors
        assert "was lost on node" in command.stderr
        job.assert_as_one_machine()
        assert re.search(rf"nodes +{re.escape(socket.gethostname())}: \d+ rows", command.stderr)
        status, told, figures = job.run()
        assert status == 1 and "nothing to do" in told
        assert (figures["rows"], figures["resumed"]) == (12, 12)
