"""Stop strings end an answer at the same token, and cut it at the same place, everywhere.

40,000 answers on each tokenizer, for some minutes:
``FUZZ_SCALE=200 python -m pytest -n0 -o timeout=0 -k first_token tests/serve/test_stop_strings.py``
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from fuzzing import MODEL, examples
from hypothesis import given
from hypothesis import strategies as st
from scripted_engine import ScriptedEngine
from small_tokenizers import SPECIAL, byte_level, sentencepiece
from stop_cases import StopCase, stop_cases, stopped

from vlmbatch.config import SamplingParams, SessionConfig
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.openai.requests import parse_completion_request
from vlmbatch.replicas.local import LocalReplica
from vlmbatch.replicas.stop_strings import StopChecker
from vlmbatch.serve.app import make_app
from vlmbatch.serve.config import ServeConfig
from vlmbatch.serve.engine_thread import EngineThread, TokenChunk
from vlmbatch.serve.metrics import ServerMetrics
from vlmbatch.serve.preparation import PreparedRequest
from vlmbatch.serve.service import RequestSlots, Service
from vlmbatch.serve.text_stream import TextStream
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.stages.answer_loop import AnswerLoop
from vlmbatch.stages.prepare import Prepared
from vlmbatch.stages.stopping import StopRequest
from vlmbatch.stats import RunStats
from vlmbatch.types import Request, Row

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOKENIZERS = {
    "sample model": Tokenizer.load(MODEL),
    "byte level": Tokenizer(byte_level(SPECIAL), NAMED),
    "sentencepiece": Tokenizer(sentencepiece(legacy=False), NAMED),
}
SIZES = {"sample model": 430, "byte level": 500, "sentencepiece": 740}
each_tokenizer = pytest.mark.parametrize("name", list(TOKENIZERS))


def checked(
    tokenizer: Tokenizer, case: StopCase, min_tokens: int = 0
) -> tuple[list[int], int | None]:
    """The tokens up to the one that the checker stops at, and where it cuts the text."""
    checker = StopChecker(tokenizer, case.stop, min_tokens)
    for count, token_id in enumerate(case.ids, 1):
        if (text_end := checker.push(token_id)) is not None:
            return case.ids[:count], text_end
    return case.ids, None


def streamed(
    tokenizer: Tokenizer, case: StopCase, ids: list[int], text_end: int | None, sizes: list[int]
) -> list[str]:
    """The pieces of a stream whose reader takes so many tokens at a time."""
    stream, pieces = TextStream(tokenizer, case.stop), []
    for size in sizes:
        now, ids = ids[:size], ids[size:]
        last = not ids
        chunk = TokenChunk(now, "stop" if last else None, text_end if last else None)
        pieces.append(stream.push(chunk))
        if last:
            return pieces
    raise AssertionError("there are fewer sizes than tokens")


@each_tokenizer
@examples(100)
@given(data=st.data())
def test_the_first_token_whose_text_holds_a_stop_string_ends_the_answer(
    name: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    case = data.draw(stop_cases(tokenizer, SIZES[name]))
    expected_ids, expected_text, reason = stopped(tokenizer, case)
    ids, text_end = checked(tokenizer, case)
    assert ids == expected_ids
    assert (text_end is None) == (reason == "length")
    row = Row(0, "a", 1, "m.jsonl")
    answer = Answer(row, tuple(ids), "stop" if reason == "stop" else "length", text_end=text_end)
    assert to_result(answer, tokenizer).text == expected_text

    # One that may not end so early goes on.
    min_tokens = data.draw(st.integers(0, len(case.ids) + 1))
    later, later_end = checked(tokenizer, case, min_tokens)
    if text_end is None or len(ids) >= min_tokens:
        assert (later, later_end) == (ids, text_end)
    elif later_end is not None:
        assert len(later) >= min_tokens


@pytest.mark.parametrize(
    ("pieces", "stop"),
    [
        (["Yes", "\n", "A", "SS", "IST", "ANT", ":"], "ASSISTANT:"),
        (["Hello", "<", "|", "im", "_end", "|", ">"], "<|im_end|>"),
        (["Hum", "an", ":"], "Human:"),
        (["T", "h", "e", ".", ".", ".", "."], "The...."),
        (["a"] * 40, "a" * 30),
    ],
)
def test_a_stop_string_that_is_longer_than_the_text_so_far(pieces: list[str], stop: str) -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = [id for piece in pieces for id in tokenizer.encode(piece, add_special_tokens=False)]
    case = StopCase(ids, (stop,))
    expected_ids, text, reason = stopped(tokenizer, case)
    assert reason == "stop"
    assert checked(tokenizer, case) == (expected_ids, len(text))


class OneRow:
    """A feed of one row."""

    num_begun = 1

    def __init__(self, prepared: Prepared) -> None:
        self._prepared: Prepared | None = prepared

    @property
    def exhausted(self) -> bool:
        return self._prepared is None

    def poll(self, timeout: float) -> Prepared | None:
        prepared, self._prepared = self._prepared, None
        return prepared


class ListSink:
    def __init__(self) -> None:
        self.answers: list[Answer] = []

    def put(self, answer: Answer) -> None:
        self.answers.append(answer)

    def check(self) -> None:
        pass


def run_answer(tokenizer: Tokenizer, case: StopCase) -> tuple[str | None, str | None, int | None]:
    """Text, finish reason and number of tokens that a run has for the row."""
    request = Request(0, [0], SamplingParams(max_tokens=len(case.ids), stop=case.stop))
    feed, sink = OneRow(Prepared(Row(0, "a", 1, "m.jsonl"), request)), ListSink()
    engine: Any = ScriptedEngine(case.ids)
    stop = StopRequest()
    AnswerLoop(feed, LocalReplica(engine, tokenizer), sink, RunStats(), stop).run()  # type: ignore[arg-type]
    (answer,) = sink.answers
    result = to_result(answer, tokenizer)
    return result.text, result.finish_reason, result.completion_tokens


class PlainPreparation:
    """Takes completion requests as they are, with a prompt of one token."""

    async def prepare(self, body: bytes, parse: Any, defaults: SamplingParams) -> PreparedRequest:
        asked = parse_completion_request(json.loads(body), defaults)
        return PreparedRequest(asked, (Request(0, [0], asked.sampling),))


async def served_answers(tokenizer: Tokenizer, case: StopCase) -> list[tuple[str, str, int]]:
    """The same of a server, streamed and whole."""
    engine: Any = ScriptedEngine(case.ids)
    thread = EngineThread(LocalReplica(engine, tokenizer))
    service = Service(
        config=ServeConfig(session=SessionConfig(str(MODEL)), served_model_name="m"),
        tokenizer=tokenizer,
        max_model_len=100,
        preparation=PlainPreparation(),  # type: ignore[arg-type]
        engine=thread,
        slots=RequestSlots(8),
        metrics=ServerMetrics(lambda: thread.status),
    )
    body = {"model": "m", "prompt": "x", "max_tokens": len(case.ids), "stop": list(case.stop)}
    asked_stream = {"stream": True, "stream_options": {"include_usage": True}}
    transport = httpx.ASGITransport(make_app(service, "127.0.0.1"))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            stream = await client.post("/v1/completions", json=body | asked_stream)
            whole = (await client.post("/v1/completions", json=body)).json()
    finally:
        await thread.close()
    *events, done, end = stream.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    *chunks, last, usage = [json.loads(event.removeprefix("data: ")) for event in events]
    text = "".join(chunk["choices"][0]["text"] for chunk in [*chunks, last])
    (choice,) = whole["choices"]
    return [
        (text, last["choices"][0]["finish_reason"], usage["usage"]["completion_tokens"]),
        (choice["text"], choice["finish_reason"], whole["usage"]["completion_tokens"]),
    ]


@each_tokenizer
@examples(20)
@given(data=st.data())
def test_a_stream_a_whole_answer_and_a_run_agree(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    case = data.draw(stop_cases(tokenizer, SIZES[name]))
    ids, text, reason = stopped(tokenizer, case)
    expected = (text, reason, len(ids))
    assert run_answer(tokenizer, case) == expected
    assert asyncio.run(served_answers(tokenizer, case)) == [expected, expected]
