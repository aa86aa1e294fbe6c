"""Rows for a pool of engines without a model, and what is to become of them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from process_engines import answer_to

from vlmbatch.config import SamplingParams
from vlmbatch.replicas.pool import ReplicaPool
from vlmbatch.replicas.replica import Completion, Event, RowFailure
from vlmbatch.types import ImageGrid, PixelImage, Request


def requests(count: int) -> list[Request]:
    """Prompts of different lengths, every second with one of seven images."""
    made = []
    for index in range(count):
        images = []
        if index % 2:
            fill = index % 7
            pixels = np.full((4, 4, 3), fill, np.uint8)
            images = [PixelImage(pixels, bytes([fill]), ImageGrid(1, 1, 1, pixels.nbytes))]
        token_ids = [index, index // 89, *range(index % 5)]
        made.append(Request(index, token_ids, SamplingParams(max_tokens=50), tuple(images)))
    return made


def pids(pool: ReplicaPool) -> list[int]:
    return [member.link.pid for member in pool._members]  # type: ignore[attr-defined]


def is_there(pid: int) -> bool:
    return Path("/proc", str(pid)).exists()


def answer(pool: ReplicaPool, rows: list[Request], on_poll: Any = lambda: None) -> dict[int, Event]:
    """Submit as the answer loop does; what became of each row, which ends once."""
    told: dict[int, Event] = {}
    to_come = iter(rows)
    row = next(to_come, None)
    deadline = time.monotonic() + 60
    while row is not None or pool.num_unfinished:
        assert time.monotonic() < deadline, "waited in vain"
        while row is not None and pool.wants_requests:
            pool.submit(row)
            row = next(to_come, None)
            if row is None:
                pool.expect_no_more()
        for event in pool.poll():
            assert event.index not in told
            told[event.index] = event
        on_poll()
    assert sorted(told) == [request.index for request in rows]
    return told


def check(told: dict[int, Event], rows: list[Request], errors: int = 0) -> None:
    """Every row has its answer, but for so many."""
    failed = 0
    for row in rows:
        event = told[row.index]
        if isinstance(event, RowFailure):
            failed += 1
        else:
            assert isinstance(event, Completion)
            assert list(event.token_ids) == answer_to(row)
    assert failed <= errors
