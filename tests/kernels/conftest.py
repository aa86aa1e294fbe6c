"""Triton's interpreter, for kernels on the CPU.

Triton reads its switch to the interpreter when it is imported, so the kernels run in a process of
their own: in this one another test may have imported it.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch


@pytest.fixture(scope="package")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    with (
        pytest.MonkeyPatch.context() as patch,
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
    ):
        patch.setenv("TRITON_INTERPRET", "1")
        pool.submit(torch.set_num_threads, 1).result()
        yield pool
