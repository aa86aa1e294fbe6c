"""Triton made ready for its first kernel, and how many it compiles or finds compiled."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any


@dataclass(slots=True)
class Compilations:
    """Of this process. A kernel counts once for each of its specializations.

    ``loaded``: found on the disk, compiled before. ``seconds``: of compiling and finding them.
    """

    compiled: int = 0
    loaded: int = 0
    seconds: float = 0.0

    def note(self, times: Any, cache_hit: bool) -> None:
        """Triton is through with a kernel; ``times``: its ``CompileTimes``, in microseconds."""
        if cache_hit:
            self.loaded += 1
        else:
            self.compiled += 1
        self.seconds += times.total / 1e6


COMPILATIONS = Compilations()


@cache
def count_compilations() -> None:
    """Have Triton tell of its kernels from now on; who listens already still hears of them."""
    from triton import knobs

    before = knobs.compilation.listener

    def listen(*, times: Any, cache_hit: bool, **rest: Any) -> None:
        COMPILATIONS.note(times, cache_hit)
        if before is not None:
            before(times=times, cache_hit=cache_hit, **rest)

    knobs.compilation.listener = listen


def make_triton_ready() -> None:
    """Do what Triton's first kernel would begin with, for a second: on another thread, beforehand.

    Where it looks for compiled kernels depends on a digest of all of Triton, half a gigabyte.
    """
    count_compilations()
    from triton.runtime.cache import triton_key

    triton_key()
