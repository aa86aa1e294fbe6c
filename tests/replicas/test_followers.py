"""Engines of several ranks each, which run the same steps and end together. No model, no torch."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import process_engines
import pytest
from pooled_rows import answer, check, is_there, pids, requests
from worker_processes import ENGINE, wait_until, worker_pids

from vlmbatch.engine.rank import Rank
from vlmbatch.errors import ConfigError, EnginesLostError
from vlmbatch.images.shared_memory import MappedMemory, SharedMemory
from vlmbatch.replicas import pool as pool_module
from vlmbatch.replicas.engine_side import LeadingSide
from vlmbatch.replicas.followers import Followers
from vlmbatch.replicas.messages import (
    Cancel,
    ExpectNoMore,
    Reset,
    Step,
    Submit,
    TakeBack,
    ToEngine,
)
from vlmbatch.replicas.pool import ReplicaPool
from vlmbatch.replicas.process import EngineProcess, Load
from vlmbatch.replicas.replica import Event
from vlmbatch.replicas.router import MAX_SUSPECTS

RANKS = 3


@contextmanager
def pool_of(load: Load, number: int = 1) -> Iterator[ReplicaPool]:
    memory = SharedMemory()
    start = partial(EngineProcess, load, memory, follower_variables=({},) * (RANKS - 1))
    pool = ReplicaPool({f"engine {index}": start for index in range(number)}, memory)
    try:
        yield pool
    finally:
        pool.close()
        memory.close()


def all_pids(pool: ReplicaPool) -> set[int]:
    """Of first ranks and of those that they started."""
    first = set(pids(pool))
    return first.union(*(worker_pids(pid, ENGINE) for pid in first))


def log_of(folder: Path, rank: int) -> str:
    """What ``process_engines.logging_steps`` has written, a line a step."""
    return (folder / str(rank)).read_text()


def test_ranks_run_the_same_steps(tmp_path: Path) -> None:
    """Also where rows are given up, whose images are then free to be overwritten."""
    rows = requests(120)
    rng = random.Random(1)
    with pool_of(partial(process_engines.logging_steps, tmp_path)) as pool:
        pool.wait_ready()
        started = all_pids(pool)
        assert len(started) == RANKS

        def give_up() -> None:
            if rng.random() < 0.3 and (index := rng.randrange(1000, 1060)) in pool._by_index:
                pool.cancel(index)

        for given_up in requests(60):
            pool.submit(replace(given_up, index=1000 + given_up.index))
        told: dict[int, Event] = {}
        to_come = iter(rows)
        row = next(to_come, None)
        while row is not None or any(each.index in pool._by_index for each in rows):
            while row is not None and pool.wants_requests:
                pool.submit(row)
                row = next(to_come, None)
            told |= {event.index: event for event in pool.poll()}
            give_up()
        agreed = log_of(tmp_path, 0).count("\n")
        pool.reset()  # before the next step, the others have run all that came before
        check(answer(pool, rows[:10]), rows[:10])
    check(told, rows)
    wait_until(lambda: not any(map(is_there, started)))
    assert agreed > 100
    for rank in range(1, RANKS):  # killed at any step behind the first
        ended = log_of(tmp_path, rank).rpartition("\n")[0]
        assert ended.count("\n") + 1 >= agreed
        # The first is killed too, perhaps before it has logged what it computed with the others.
        first = log_of(tmp_path, 0).rpartition("\n")[0]
        assert first.startswith(ended) or ended.startswith(first)


class ToldFollowers(Followers):
    """Notes what they are told, and when they are waited for."""

    def __init__(self) -> None:
        self.calls: list[ToEngine | str] = []

    def tell(self, message: ToEngine) -> None:
        self.calls.append(message)

    def await_reports(self) -> None:
        self.calls.append("await reports")


@pytest.mark.parametrize("giving_up", [Cancel(0), TakeBack(1), Reset()])
def test_others_are_waited_for_where_requests_are_given_up(giving_up: ToEngine) -> None:
    """Their images are free then, and another rank may be about to look at one."""
    replica, _ = process_engines.seeing(lambda indexes: None, Rank(0, RANKS, ""))
    memory = SharedMemory()
    followers = ToldFollowers()
    side = LeadingSide(replica, MappedMemory(memory.descriptor), followers)
    submit = Submit(requests(1)[0], (), None, stream=False)
    for message in (submit, giving_up, ExpectNoMore()):
        side.obey(message)
        assert side.step() is not None
    memory.close()
    assert followers.calls == [
        *(submit, Step(report=False)),
        *(giving_up, Step(report=True), "await reports"),
        *(ExpectNoMore(), Step(report=False)),
    ]


def test_a_rank_that_is_killed_ends_the_engine_and_costs_no_row() -> None:
    rows = requests(300)
    rng = random.Random(2)
    killed: list[int] = []
    with pool_of(process_engines.seeing, 2) as pool:
        seen = all_pids(pool)

        def kill() -> None:
            seen.update(all_pids(pool))
            left = [member for member in pool._members if member.restarts < 3 and member.is_ready]
            if len(killed) < 3 and left and rng.random() < 0.05:
                first = rng.choice(left).link.pid  # type: ignore[attr-defined]
                ranks = [*worker_pids(first, ENGINE), first]
                os.kill(rng.choice(ranks), signal.SIGKILL)
                killed.append(first)

        told = answer(pool, rows, kill)
        check(told, rows, errors=MAX_SUSPECTS)
    assert killed
    wait_until(lambda: not any(map(is_there, seen)))


def test_what_a_rank_refuses_is_refused() -> None:
    with (
        pool_of(process_engines.refused_by_a_follower) as pool,
        pytest.raises(ConfigError, match="do not fit into the memory of the GPU"),
    ):
        pool.wait_ready()


def test_the_rank_that_knows_why_is_believed() -> None:
    with (
        pool_of(process_engines.failing_with_the_others) as pool,
        pytest.raises(ConfigError, match="do not fit into the memory of the GPU"),
    ):
        pool.wait_ready()


def test_a_rank_that_never_gets_ready_is_told_with_its_last_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pool_module, "MAX_RESTARTS", 0)
    with (
        pool_of(process_engines.follower_never_ready) as pool,
        pytest.raises(
            EnginesLostError, match=r"rank [12] of 3: exit status 3: libcuda is out of order"
        ),
    ):
        pool.wait_ready()


PARENT = """
    import sys
    sys.path[:0] = {path!r}
    import process_engines
    import test_followers
    with test_followers.pool_of(process_engines.seeing) as pool:
        pool.wait_ready()
        print(*test_followers.all_pids(pool), flush=True)
        for row in test_followers.requests(1000):
            pool.submit(row)
        while True:
            pool.poll()
"""


def test_nothing_outlives_a_parent_that_is_killed() -> None:
    script = textwrap.dedent(PARENT).format(path=[str(Path(__file__).parent), *sys.path])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        started = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(started) == RANKS and all(map(is_there, started))
        parent.kill()
    wait_until(lambda: not any(map(is_there, started)))
