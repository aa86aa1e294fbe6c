"""Many files put beside each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from vlmbatch.stats import RunStats

_THREADS = 16


def put_files(sizes: Mapping[Path, int], put: Callable[[Path], None], stats: RunStats) -> None:
    """Call ``put`` for files of these sizes in bytes, of several at a time, and count them.

    Raises:
        What ``put`` does, of the first file that fails; others may be put, or not.
    """
    pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="put")
    try:
        with stats.transferring(sum(sizes.values())) as sent:
            for _, size in zip(pool.map(put, sizes), sizes.values(), strict=True):
                sent(size)
    finally:
        pool.shutdown(cancel_futures=True)
