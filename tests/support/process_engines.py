"""Engines without a model or torch, for processes: what these are given to load."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fake_engine import EOS, FakeEngine
from letter_tokenizer import LetterTokenizer

from vlmbatch.engine.rank import Rank
from vlmbatch.errors import ConfigError
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.messages import EngineLimits
from vlmbatch.replicas.replica import OnBegin
from vlmbatch.session.open import ModelInputs
from vlmbatch.types import Request

NUM_SEQS = 4
STEP_SECONDS = 0.002


class SeeingEngine(FakeEngine):
    """Answers with what it sees of the images, and with the prompt; ``fatal`` ends the process."""

    def __init__(self, fatal: int | None = None) -> None:
        super().__init__(lambda indexes: None, NUM_SEQS, STEP_SECONDS)
        self._fatal = fatal

    def _step(self) -> Any:
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting.popleft()
            self._running[sequence] = answer_to(sequence.request)
        outputs = super()._step()
        if any(self._fatal in sequence.request.token_ids for sequence in self._running):
            os.kill(os.getpid(), signal.SIGKILL)
        return outputs


def answer_to(request: Request) -> list[int]:
    """Tokens that name the prompt's and the pixels' contents."""
    seen = [int(image.pixels.sum()) % 89 + 4 for image in request.images]  # type: ignore[union-attr]
    return [*(token % 89 + 4 for token in request.token_ids), *seen, EOS]


def _made(engine: FakeEngine, on_begin: OnBegin) -> tuple[LocalReplica, EngineLimits]:
    replica = LocalReplica(engine, LetterTokenizer(), on_begin)  # type: ignore[arg-type]
    return replica, EngineLimits(NUM_SEQS, 100, 100, on_cpu=True)


def seeing(on_begin: OnBegin, rank: Rank) -> Any:
    return _made(SeeingEngine(), on_begin)


def of_a_run(
    max_num_seqs: int,
    step_seconds: float,
    endless_from: int | None,
    config: object,
    inputs: ModelInputs,
    on_begin: OnBegin,
    rank: Rank,
) -> tuple[LocalReplica, EngineLimits]:
    """In the place of what loads one of a run's engines; ``endless_from`` in the order of rows."""
    engine: Any = FakeEngine(lambda indexes: None, max_num_seqs, step_seconds, endless_from)
    replica = LocalReplica(engine, inputs.processor.tokenizer, on_begin)
    return replica, EngineLimits(max_num_seqs, 256, 256, on_cpu=True)


def dying_of(token: int, on_begin: OnBegin, rank: Rank) -> Any:
    """Rows with this token end the process."""
    return _made(SeeingEngine(token), on_begin)


def dying_at_random(on_begin: OnBegin, rank: Rank) -> Any:
    """Within a second, of itself or of an error."""
    engine = SeeingEngine()
    rng = random.Random(os.getpid())
    until = time.monotonic() + rng.uniform(0.02, 0.6)
    step = engine.step

    def dying_step() -> Any:
        if time.monotonic() > until:
            if rng.random() < 0.5:
                raise RuntimeError("CUDA error: an illegal memory access was encountered")
            os.kill(os.getpid(), signal.SIGKILL)
        return step()

    engine.step = dying_step  # type: ignore[method-assign]
    return _made(engine, on_begin)


def refused(on_begin: OnBegin, rank: Rank) -> Any:
    raise ConfigError("the weights do not fit into the memory of the GPU")


class OddError(Exception):
    """One that cannot be unpickled."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(f"{one} {other}")


def odd(on_begin: OnBegin, rank: Rank) -> Any:
    raise OddError("two", "words")


def never_ready(on_begin: OnBegin, rank: Rank) -> Any:
    print("libcuda is out of order", file=sys.stderr, flush=True)
    os._exit(3)


def talkative(on_begin: OnBegin, rank: Rank) -> Any:
    logging.getLogger("vlmbatch").warning("it is warm")
    print("noise on standard output", flush=True)
    print("noise on standard error", file=sys.stderr, flush=True)
    return seeing(on_begin, rank)


def slow_to_load(on_begin: OnBegin, rank: Rank) -> Any:
    time.sleep(600)


def logging_steps(folder: Path, on_begin: OnBegin, rank: Rank) -> Any:
    """What each step computes, of which rows, goes to a file of the rank.

    As where ranks reduce together, the first ends no step before the others have ended
    the one before it.
    """
    engine = SeeingEngine()
    step = engine._step
    logs = [folder / str(index) for index in range(rank.count)]
    log = logs[rank.index].open("w", buffering=1)
    num_steps = 0

    def logging_step() -> Any:
        nonlocal num_steps
        outputs = step()
        while rank.index == 0 and any(_num_lines(each) < num_steps for each in logs[1:]):
            time.sleep(0.0005)
        num_steps += 1
        rows = {each.request.index: tokens for each, tokens in engine._running.items()}
        print(rows, [output.sequence.request.index for output in outputs], file=log)
        return outputs

    engine._step = logging_step  # type: ignore[method-assign]
    return _made(engine, on_begin)


def _num_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


def refused_by_a_follower(on_begin: OnBegin, rank: Rank) -> Any:
    return slow_to_load(on_begin, rank) if rank.index == 0 else refused(on_begin, rank)


def follower_never_ready(on_begin: OnBegin, rank: Rank) -> Any:
    return slow_to_load(on_begin, rank) if rank.index == 0 else never_ready(on_begin, rank)


def failing_with_the_others(on_begin: OnBegin, rank: Rank) -> Any:
    """Rank 0 knows only that it has lost the others."""
    store = Path(rank.store)
    if rank.index:
        store.write_text("refused")
        return refused(on_begin, rank)
    while not store.read_text():
        time.sleep(0.001)
    raise RuntimeError("connection closed by peer")
