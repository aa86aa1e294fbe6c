"""A Ray cluster of several nodes in this machine, none of whose processes outlives it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}  # bytes: about the least that Ray takes


class RayNodes:
    """The nodes that may answer, of one CPU each; the head has none."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.address: str = cluster.address
        self._nodes: list[Any] = []

    def add(self) -> None:
        self._nodes.append(self._cluster.add_node(**_NODE))

    def kill(self) -> None:
        """All processes of one node, as when its machine loses power."""
        self._cluster.remove_node(self._nodes.pop(), allow_graceful=False)


@contextmanager
def ray_nodes(count: int, *, head_cpus: int = 0) -> Iterator[RayNodes]:
    """A cluster with ``count`` nodes, and a head that answers nothing unless it has CPUs."""
    # Here, as to collect tests need not take the time of its import.
    pytest.importorskip("ray", reason='Ray is not installed: pip install "vlmbatch[ray]"')
    with (
        # Paths of sockets have to be short.
        tempfile.TemporaryDirectory(
            prefix="ray-", dir="/tmp", ignore_cleanup_errors=True
        ) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", folder)  # not where a cluster of this machine has its files
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        head = {**_NODE, "num_cpus": head_cpus, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            nodes = RayNodes(cluster)
            for _ in range(count):
                nodes.add()
            yield nodes
        finally:
            cluster.shutdown()
