"""A short load; ``make load-test`` has the long one, with memory and throughput."""

from __future__ import annotations

import asyncio

from load import bodies_of, drive
from server_process import ServerProcess, answered_rows


def test_64_clients_get_right_answers_and_leave_nothing(server: ServerProcess) -> None:
    rows = answered_rows()
    load = asyncio.run(drive(server.url, bodies_of(rows, 0), clients=64, seconds=1.5))
    assert not load.failures
    assert load.num_answers >= 64
    assert load.answers == {row: {rows[row]["answer"]} for row in load.answers}
    assert server.metric("requests_running") == server.metric("requests_waiting") == 0
    assert server.metric("kv_cache_used_tokens") == 0
