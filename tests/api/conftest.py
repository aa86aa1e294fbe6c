from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from llm_engine import engine_of

from vlmbatch import LLM


@pytest.fixture(scope="module")  # not longer: it has worker processes, which others count
def shared_llm(samples: Path) -> Iterator[LLM]:
    with LLM(samples / "tiny-llava", max_num_seqs=8) as llm:
        yield llm


@pytest.fixture
def llm(shared_llm: LLM) -> Iterator[LLM]:
    """The sample model; a test must leave nothing of its own in the engine."""
    yield shared_llm
    engine = engine_of(shared_llm)
    assert engine.num_unfinished == 0
    assert engine.scheduler.pool.num_available == engine.scheduler.pool.num_granules
    engine.scheduler.check_integrity()
