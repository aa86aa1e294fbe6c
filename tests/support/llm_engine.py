"""The engine behind an ``LLM`` that has it in this process."""

from __future__ import annotations

from vlmbatch import LLM
from vlmbatch.engine.engine import Engine
from vlmbatch.replicas.local import LocalReplica


def engine_of(llm: LLM) -> Engine:
    replica = llm._model._replica
    assert isinstance(replica, LocalReplica)
    return replica._engine
