"""JPEGs of photos or pages, written by as many cores as are worth their start."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple

from vlmbatch.bench.pages import make_page
from vlmbatch.bench.photos import make_photo

_QUALITY = 85
_WORTH_A_PROCESS = 10_000_000  # pixels; to make them takes as long as to start one, 0.35 s
_MAKERS = {"photo": make_photo, "page": make_page}


class _Job(NamedTuple):
    path: Path
    picture: Literal["photo", "page"]
    size: tuple[int, int]
    seed: Sequence[int]


def write_pictures(
    paths: Sequence[Path],
    picture: Literal["photo", "page"],
    size: tuple[int, int],
    seed: int,
    processes: int,
) -> None:
    """Write one JPEG of ``size`` (width, height) to each path.

    Picture i depends on ``seed`` and i alone. The folders must exist.
    """
    jobs = [_Job(path, picture, size, (seed, index)) for index, path in enumerate(paths)]
    pixels = len(jobs) * size[0] * size[1]
    processes = min(processes, len(jobs), pixels // _WORTH_A_PROCESS)
    if processes <= 1:
        _write_all(jobs)
        return
    shares = [jobs[first::processes] for first in range(processes)]
    # Fresh processes: a fork of one that runs threads may wait for a lock for ever.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(_write_all, shares))


def _write_all(jobs: Iterable[_Job]) -> None:
    for path, picture, size, seed in jobs:
        _MAKERS[picture](size, seed).save(path, "JPEG", quality=_QUALITY)
