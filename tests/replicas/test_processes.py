"""Engines in processes of their own: what dies costs no row, and nothing is left behind."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import process_engines
import pytest
from pooled_rows import answer, check, is_there, pids, requests
from process_engines import answer_to
from worker_processes import wait_until

from vlmbatch.errors import ConfigError, EnginesLostError, VlmbatchError
from vlmbatch.images.shared_memory import SharedMemory
from vlmbatch.replicas.pool import ReplicaPool
from vlmbatch.replicas.process import EngineProcess, Load
from vlmbatch.replicas.replica import Completion, Event, RowFailure
from vlmbatch.replicas.router import MAX_SUSPECTS
from vlmbatch.types import Request


@contextmanager
def pool_of(load: Load, number: int = 2) -> Iterator[ReplicaPool]:
    memory = SharedMemory()
    start = partial(EngineProcess, load, memory)
    pool = ReplicaPool({f"engine {index}": start for index in range(number)}, memory)
    try:
        yield pool
    finally:
        pool.close()
        memory.close()


@pytest.mark.parametrize("number", [1, 2])
def test_answers_are_those_of_one_engine_and_memory_is_freed(number: int) -> None:
    rows = requests(300)
    with pool_of(process_engines.seeing, number) as pool:
        pool.wait_ready()
        started = pids(pool)
        check(answer(pool, rows), rows)
        status = pool.status
        assert status.answered == 300 and all(part.answered for _, part in status.parts)
        assert status.generation_tokens == sum(len(answer_to(row)) for row in rows)
        assert pool.memory.num_bytes == 64 * 2**20
    assert not any(map(is_there, started))


def kill_loop(kills: int, seed: int) -> None:
    rows = requests(400)
    rng = random.Random(seed)
    killed: list[int] = []
    with pool_of(process_engines.seeing, 3) as pool:

        def kill() -> None:
            left = [member for member in pool._members if member.restarts < 3]
            if len(killed) < kills and left and rng.random() < 0.02:
                victim = rng.choice(left).link.pid  # type: ignore[attr-defined]
                if is_there(victim):
                    os.kill(victim, signal.SIGKILL)
                    killed.append(victim)

        told = answer(pool, rows, kill)
        check(told, rows, errors=MAX_SUSPECTS * kills // 2)
    assert killed and not any(map(is_there, killed))


def test_engines_killed_at_random() -> None:
    kill_loop(3, seed=1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(30))
def test_engines_killed_at_random_more_often(seed: int) -> None:
    kill_loop(9, seed)


def test_engines_that_always_die_end_it_and_lose_no_answer() -> None:
    rows = requests(3000)
    told: dict[int, Event] = {}
    with pool_of(process_engines.dying_at_random) as pool:
        with pytest.raises(EnginesLostError, match="no engine is left") as caught:
            for row in rows:
                while not pool.wants_requests:
                    told |= {event.index: event for event in pool.poll()}
                pool.submit(row)
            while pool.num_unfinished:
                told |= {event.index: event for event in pool.poll()}
        assert caught.value.exit_status == 74
        assert [member.restarts for member in pool._members] == [3, 3]
    for row in rows:
        if isinstance(event := told.get(row.index), Completion):
            assert list(event.token_ids) == answer_to(row)


def test_a_row_that_ends_every_engine_costs_few_others() -> None:
    rows = requests(60)
    fatal = 33  # as the first token of one row
    assert sum(fatal in row.token_ids for row in rows) == 1
    with pool_of(partial(process_engines.dying_of, fatal), 3) as pool:
        told = answer(pool, rows)
    check(told, rows, errors=process_engines.NUM_SEQS)
    failure = told[fatal]
    assert isinstance(failure, RowFailure)
    assert "2 engines ended while they computed this row (signal 9" in failure.error.message


def test_a_start_that_is_refused_is_told_as_from_one_process() -> None:
    with pool_of(process_engines.refused) as pool:
        started = pids(pool)
        with pytest.raises(ConfigError, match="do not fit into the memory of the GPU"):
            pool.wait_ready()
    assert not any(map(is_there, started))


def test_an_error_that_cannot_be_sent_is_named() -> None:
    with pool_of(process_engines.odd) as pool, pytest.raises(RuntimeError, match="OddError: two"):
        pool.wait_ready()


def test_a_process_that_never_gets_ready_is_told_with_its_last_words() -> None:
    with (
        pool_of(process_engines.never_ready, 1) as pool,
        pytest.raises(EnginesLostError, match="exit status 3: libcuda is out of order"),
    ):
        pool.wait_ready()


def test_what_an_engine_logs_is_logged_here(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.INFO, "vlmbatch"), pool_of(process_engines.talkative, 1) as pool:
        pool.wait_ready()
    assert "engine 0: it is warm" in caplog.messages
    assert capfd.readouterr() == ("", "")


def test_signals_of_the_group_do_not_reach_engines() -> None:
    rows = requests(40)
    with pool_of(process_engines.seeing, 1) as pool:
        pool.wait_ready()
        (pid,) = pids(pool)
        assert os.getpgid(pid) == pid
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid, number)
        check(answer(pool, rows), rows)
        assert pids(pool) == [pid]


def test_a_stopped_engine_does_not_hold_up_its_parent() -> None:
    """Also where more is sent to it than a socket holds."""
    with pool_of(process_engines.seeing, 1) as pool:
        pool.wait_ready()
        (pid,) = pids(pool)
        os.kill(pid, signal.SIGSTOP)
        for row in requests(50):
            pool.submit(Request(row.index, [1] * 20_000, row.sampling))
        assert pool.poll() == []
    assert not is_there(pid)


PARENT = """
    import sys
    sys.path[:0] = {path!r}
    import process_engines
    import test_processes
    with test_processes.pool_of(process_engines.{load}, 2) as pool:
        print(*test_processes.pids(pool), flush=True)
        if "{load}" == "seeing":
            pool.wait_ready()
            for row in test_processes.requests(3000):
                pool.submit(row)
        print("working", flush=True)
        while True:
            pool.poll()
"""


@pytest.mark.parametrize("load", ["seeing", "slow_to_load"])
def test_nothing_outlives_a_parent_that_is_killed(load: str) -> None:
    script = textwrap.dedent(PARENT).format(path=[str(Path(__file__).parent), *sys.path], load=load)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        started = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(started) == 2
        assert parent.stdout.readline() == b"working\n"
        assert all(map(is_there, started))
        parent.kill()
    wait_until(lambda: not any(map(is_there, started)))


def test_a_pool_that_cannot_start_all_leaves_none() -> None:
    memory = SharedMemory()
    started: list[EngineProcess] = []

    def start(news: Any) -> EngineProcess:
        if started:
            raise VlmbatchError("no more processes")
        started.append(EngineProcess(process_engines.seeing, memory, news))
        return started[0]

    with pytest.raises(VlmbatchError, match="no more processes"):
        ReplicaPool({"a": start, "b": start}, memory)
    assert not is_there(started[0].pid)
    memory.close()
