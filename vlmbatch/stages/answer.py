"""An answer on its way from the engine to the output."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmbatch.errors import RowError
from vlmbatch.models.described_tokens import described
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.replicas.replica import Completion
from vlmbatch.types import FinishReason, Request, Result, Row, TokenLogprob


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine made of a row, still as token ids, or the error that stands for it."""

    row: Row
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    prompt_token_ids: Sequence[int] = field(default=(), repr=False)
    cached_tokens: int = 0  # of the prompt, found in the prefix cache
    image_tokens: int = 0
    text_end: int | None = None  # characters before the stop string that ended it
    logprobs: tuple[TokenLogprob, ...] = field(default=(), repr=False)
    choices: tuple[tuple[str, float], ...] = ()  # the row's, with their log-probabilities
    others: tuple[Completion, ...] = ()  # the second answer and those behind it
    retries: int = 0  # of answers that looped
    loops: bool = False  # and so does the last
    error: RowError | None = None
    known: Result | None = None  # found in the journal of an earlier run

    @classmethod
    def of(cls, row: Row, request: Request, completion: Completion) -> Answer:
        """What ``completion`` makes of the row's request."""
        return cls(
            row,
            completion.token_ids,
            completion.finish_reason,
            prompt_token_ids=request.token_ids,
            cached_tokens=completion.cached_tokens,
            image_tokens=request.num_image_tokens,
            text_end=completion.text_end,
            logprobs=completion.logprobs,
            choices=completion.choices,
            others=completion.others,
            retries=completion.retries,
            loops=completion.loops,
        )


def to_result(answer: Answer, tokenizer: Tokenizer) -> Result:
    """Detokenize an answer into an output row."""
    if answer.known is not None:
        return answer.known
    row = answer.row
    if answer.error is not None:
        return Result.from_error(row, answer.error)
    text = tokenizer.decode(answer.token_ids)[: answer.text_end]
    details: dict[str, Any] = {}
    if answer.logprobs:
        details["logprobs"] = described(answer.logprobs, tokenizer)
    if answer.choices:
        details |= classified(answer.choices)
        text = details["choice"]
    if answer.others:
        more = (tokenizer.decode(each.token_ids)[: each.text_end] for each in answer.others)
        details["texts"] = [text, *more]
        reasons = (each.finish_reason for each in answer.others)
        details["finish_reasons"] = [answer.finish_reason, *reasons]
    if row.sampling is not None and row.sampling.best_of_retries:
        details |= {"retries": answer.retries, "loops": answer.loops}
    num_tokens = [len(answer.token_ids), *(len(each.token_ids) for each in answer.others)]
    return Result(
        index=row.index,
        id=row.id,
        text=text,
        finish_reason=answer.finish_reason,
        prompt_tokens=len(answer.prompt_token_ids),
        image_tokens=answer.image_tokens,
        completion_tokens=sum(num_tokens),
        extra=row.extra,
        details=details,
    )


def classified(choices: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """The likeliest of ``choices``, how likely it is among them, and how likely each is."""
    best, likeliest = max(choices, key=lambda choice: choice[1])
    total = likeliest + math.log(sum(math.exp(value - likeliest) for _, value in choices))
    return {
        "choice": best,
        "confidence": math.exp(likeliest - total),
        "choices": [
            {"choice": choice, "probability": math.exp(value - total), "logprob": value}
            for choice, value in choices
        ],
    }
