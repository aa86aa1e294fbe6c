"""How a run divides the memory that rows and images may take on the host while they wait."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vlmbatch.config import MIN_HOST_MEMORY

_MAX_DEFAULT = 2**30
_DEFAULT_SHARE = 8  # one part in so many of the machine's

_ROW_BYTES = 256  # of a row that waits, and of its result, when all else of them is on disk


@dataclass(frozen=True, slots=True)
class HostMemory:
    """The parts of one budget, in bytes; ``window_rows`` in rows.

    Covers queued data only, not the engine with the rows in it, nor the decoder processes.
    """

    decoded: int  # images decoded lately, kept for rows to come
    pixels: int  # of rows that are ready for the engine
    encoded: int  # images that rows bring along, read ahead or being decoded
    rows: int  # read ahead; more are on disk
    results: int  # that wait for an earlier row's; more are on disk
    window_rows: int  # read and not yet written

    @classmethod
    def divide(cls, total: int | None) -> HostMemory:
        """The parts of ``total`` bytes; None: of the default."""
        if total is None:
            total = default_host_memory()
        assert total >= MIN_HOST_MEMORY
        part = total // 8
        return cls(
            decoded=2 * part,
            pixels=part,
            encoded=part,
            rows=part,
            results=part,
            window_rows=2 * part // _ROW_BYTES,
        )


def default_host_memory() -> int:
    """An eighth of the memory that this process may use, at most 1 GiB."""
    return max(MIN_HOST_MEMORY, min(available_memory() // _DEFAULT_SHARE, _MAX_DEFAULT))


def available_memory() -> int:
    """Bytes of memory of the machine, or of the container (cgroup 2)."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return memory
    return memory if limit == "max" else min(memory, int(limit))
