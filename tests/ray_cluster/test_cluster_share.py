"""What each engine asks a Ray cluster for."""

from __future__ import annotations

from typing import Any

import pytest

from vlmbatch.config import Device
from vlmbatch.errors import UsageError
from vlmbatch.ray.cluster import Share, room_on, share_of


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


HEAD = node(CPU=4)
EIGHT = node(CPU=64, GPU=8)
TWO = node(CPU=8, GPU=2)
DEAD = node(alive=False, CPU=64, GPU=8)


@pytest.mark.parametrize(
    ("nodes", "device", "share"),
    [
        ([HEAD, EIGHT, TWO, DEAD], "auto", Share(1, 4, 10)),
        ([HEAD, EIGHT], "cuda", Share(1, 8, 8)),
        ([node(CPU=0, GPU=1)], "auto", Share(1, 0, 1)),
        ([HEAD, node(CPU=16), node(CPU=0)], "auto", Share(0, 4, 5)),
        ([HEAD, EIGHT], "cpu", Share(0, 4, 17)),
    ],
)
def test_shares(nodes: list[dict[str, Any]], device: Device, share: Share) -> None:
    assert share_of(nodes, device) == share


@pytest.mark.parametrize(
    ("nodes", "ranks", "share"),
    [
        ([HEAD, EIGHT, TWO], 2, Share(2, 8, 5)),
        ([EIGHT, TWO], 4, Share(4, 32, 2)),  # of the small node nothing
        ([node(CPU=10, GPU=3)], 2, Share(2, 6, 1)),  # one GPU stays idle
        ([HEAD, node(CPU=16)], 2, Share(0, 4, 5)),
    ],
)
def test_shares_of_engines_that_are_divided(
    nodes: list[dict[str, Any]], ranks: int, share: Share
) -> None:
    assert share_of(nodes, "auto", ranks) == share
    assert room_on(nodes, share) == share.count


def test_no_node_has_so_many_gpus() -> None:
    message = "--tensor-parallel 4 takes as many GPUs of one node, and no .* has more than 2"
    with pytest.raises(UsageError, match=message):
        share_of([HEAD, TWO, TWO], "auto", 4)


def test_room_changes_with_the_nodes() -> None:
    share = share_of([HEAD, EIGHT], "auto")
    assert [room_on(nodes, share) for nodes in ([HEAD, EIGHT], [HEAD], [EIGHT, TWO])] == [8, 0, 9]
    assert room_on([HEAD, node(CPU=9), DEAD], Share(0, 4, 1)) == 3


@pytest.mark.parametrize(
    ("nodes", "device", "message"),
    [
        ([HEAD, DEAD], "cuda", "--device cuda: the Ray cluster has no GPU, but 1 node with 4 CPUs"),
        ([node(), node()], "auto", "neither a GPU nor a CPU to answer on: 2 nodes with 0 CPUs"),
    ],
)
def test_clusters_that_cannot_answer(
    nodes: list[dict[str, Any]], device: Device, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        share_of(nodes, device)
