"""Requests to and tokens from the engine's thread, with a fake model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
from fake_model import FakeModel, reference, small_engine
from in_loop import in_loop
from letter_tokenizer import LetterTokenizer

from vlmbatch.config import SamplingParams
from vlmbatch.engine.engine import Engine
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.serve.engine_thread import EngineStoppedError, EngineThread, Generation, TokenChunk
from vlmbatch.types import Request

POISON = 77


@asynccontextmanager
async def engine_thread(engine: Engine | None = None) -> AsyncIterator[EngineThread]:
    replica = LocalReplica(engine or small_engine(), LetterTokenizer())  # type: ignore[arg-type]
    thread = EngineThread(replica)
    try:
        yield thread
    finally:
        await thread.close()
        assert not any(each.name == "engine" for each in threading.enumerate())


def request(index: int, text: list[int], **sampling: Any) -> Request:
    return Request(index, text, SamplingParams(**{"ignore_eos": True, **sampling}))


async def chunks_of(generation: Generation) -> list[TokenChunk]:
    chunks = [await generation.next_chunk()]
    while chunks[-1].finish_reason is None:
        chunks.append(await generation.next_chunk())
    return chunks


def tokens_of(chunks: list[TokenChunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


async def answer(thread: EngineThread, row: Request, every_token: bool = False) -> list[int]:
    with thread.generate(row, every_token=every_token) as generation:
        return tokens_of(await chunks_of(generation))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@in_loop
async def test_requests_in_company_get_the_tokens_that_they_get_alone() -> None:
    rows = [request(i, [i % 5, 2, i % 3], max_tokens=i % 9 + 1) for i in range(40)]
    async with engine_thread(small_engine(max_num_seqs=8)) as thread:
        answers = await asyncio.gather(*(answer(thread, row, row.index % 2 == 0) for row in rows))
        await until(lambda: thread.status.kv_used_tokens == 0)
        status = thread.status
    assert answers == [reference(row, row.sampling.max_tokens) for row in rows]
    assert status.generation_tokens == sum(map(len, answers))
    assert status.prompt_tokens == 3 * len(rows)
    assert (status.running, status.waiting) == (0, 0)


@in_loop
async def test_tokens_come_one_by_one_or_all_at_the_end() -> None:
    row = request(0, [1, 2], max_tokens=9)
    async with engine_thread() as thread:
        for every_token in (True, False):
            with thread.generate(row, every_token=every_token) as generation:
                chunks = await chunks_of(generation)
            assert [chunk.finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + [
                "length"
            ]
            if not every_token:
                assert len(chunks) == 1
            assert generation.first_token_at is not None


@in_loop
async def test_a_stop_string_ends_the_answer_at_its_token() -> None:
    row = request(0, [1, 2], max_tokens=40)
    expected = reference(row, 40)
    stop = "".join(chr(0x100 + token) for token in expected[4:6])
    async with engine_thread() as thread:
        row = request(0, [1, 2], max_tokens=40, stop=(stop,))
        with thread.generate(row, every_token=True) as generation:
            chunks = await chunks_of(generation)
    assert tokens_of(chunks) == expected[:6]
    assert chunks[-1].finish_reason == "stop"


@in_loop
async def test_leaving_a_generation_frees_its_blocks() -> None:
    async with engine_thread() as thread:
        with thread.generate(request(0, [1] * 20, max_tokens=200), every_token=True) as generation:
            await generation.next_chunk()
            assert thread.status.kv_used_tokens >= 20
        await until(lambda: thread.status.kv_used_tokens == 0)
        assert thread.status.running == 0


@in_loop
async def test_a_waiting_request_can_be_given_up() -> None:
    async with engine_thread(small_engine(max_num_seqs=1)) as thread:
        first = request(0, [1, 2], max_tokens=200)
        with thread.generate(first, every_token=True) as running:
            await running.next_chunk()
            with thread.generate(request(1, [1, 3]), every_token=False):
                await until(lambda: thread.status.waiting == 1)
            await until(lambda: thread.status.waiting == 0)
            await chunks_of(running)
        assert running.num_tokens == 200


@in_loop
async def test_a_request_that_breaks_steps_fails_alone() -> None:
    rows = [request(i, [1, i], max_tokens=5) for i in range(8)]
    expected = [reference(row, 5) for row in rows]
    assert all(
        POISON not in [*row.token_ids, *tokens[:-1]]
        for row, tokens in zip(rows, expected, strict=True)
    )
    async with engine_thread(small_engine(FakeModel(fail_on=POISON))) as thread:
        tasks = [asyncio.create_task(answer(thread, row)) for row in rows]
        with pytest.raises(RowError, match="the engine failed on this row") as caught:
            await answer(thread, request(9, [1, POISON]))
        assert caught.value.code is ErrorCode.ENGINE_ERROR
        assert await asyncio.gather(*tasks) == expected
        assert thread.healthy


@in_loop
async def test_a_request_that_the_engine_cannot_take_fails_alone() -> None:
    async with engine_thread(small_engine(kv_cache_tokens=40)) as thread:
        with pytest.raises(RowError, match=r"50 tokens.*holds 40"):
            await answer(thread, request(0, [1] * 30, max_tokens=20))
        assert len(await answer(thread, request(1, [1] * 3, max_tokens=20))) == 20


class BrokenModel(FakeModel):
    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self._error = error

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        raise self._error


@pytest.mark.parametrize(
    "cause",
    [ZeroDivisionError("broken"), BaseException("broken"), SystemExit("broken")],
    ids=lambda cause: type(cause).__name__,
)
def test_a_dead_engine_fails_what_is_under_way_and_what_comes(
    cause: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    @in_loop
    async def ask() -> None:
        async with engine_thread(small_engine(BrokenModel(cause))) as thread:
            answers = [answer(thread, request(index, [1, 2])) for index in range(3)]
            for error in await asyncio.gather(*answers, return_exceptions=True):
                assert isinstance(error, EngineStoppedError)
                assert f"{type(cause).__name__}: broken" in str(error)
            assert not thread.healthy
            with pytest.raises(EngineStoppedError):
                await answer(thread, request(9, [1, 2]))

    ask()
    assert "the engine has failed" in caplog.text


@in_loop
async def test_closing_fails_what_is_under_way() -> None:
    async with engine_thread() as thread:
        task = asyncio.create_task(answer(thread, request(0, [1, 2], max_tokens=250)))
        await until(lambda: thread.status.running == 1)
    with pytest.raises(EngineStoppedError, match="shutting down"):
        await task


@in_loop
async def test_an_idle_thread_runs_no_steps() -> None:
    engine = small_engine()
    async with engine_thread(engine) as thread:
        await answer(thread, request(0, [1, 2], max_tokens=3))
        steps = 0
        step = engine.step

        def counted() -> Any:
            nonlocal steps
            steps += 1
            return step()

        engine.step = counted  # type: ignore[method-assign]
        await asyncio.sleep(0.05)
        assert steps == 0
        await answer(thread, request(0, [1, 2], max_tokens=3))
        assert steps == 3
