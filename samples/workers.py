"""Work shared out among processes, in its order."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def share_out(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    workers: int,
    set_up: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Iterator[Result]:
    """The results of ``jobs``; each process has called ``set_up`` with ``arguments`` before.

    A single worker is this process. Others are no forks: those copy locks that threads hold.
    """
    if workers == 1:
        set_up(*arguments)
        yield from map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, set_up, arguments) as pool:
        yield from pool.imap(work, jobs)
