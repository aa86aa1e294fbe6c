"""What the Python interface hands out: one ``RequestOutput`` a request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vlmbatch.errors import RowError
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.types import FinishReason, Result, TokenLogprob


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One answer to a request. ``token_ids`` end with what ended the answer, if it is a token."""

    index: int  # among the request's answers, from 0
    text: str
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: FinishReason
    logprobs: tuple[TokenLogprob, ...] | None = field(default=None, repr=False)  # where asked for
    choices: Mapping[str, float] | None = None  # with their probabilities; where there are any


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A request's answer, or the error that stands for it: ``outputs`` is then empty.

    ``prompt`` is the text as it was given, None for chats. ``prompt_token_ids`` is what the model
    saw of it, every image token included; None where the request was refused.
    """

    index: int  # among the call's requests, from 0
    prompt: str | None = field(repr=False)
    prompt_token_ids: tuple[int, ...] | None = field(repr=False)
    outputs: tuple[CompletionOutput, ...]
    error: RowError | None = None
    num_image_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache
    num_retries: int = 0  # of answers that looped


def to_output(answer: Answer, tokenizer: Tokenizer) -> RequestOutput:
    """Detokenize an answer."""
    row = answer.row
    if answer.error is not None:
        return RequestOutput(row.index, row.prompt, None, (), answer.error)
    result = to_result(answer, tokenizer)
    assert result.text is not None
    assert answer.finish_reason is not None
    asks = row.sampling is not None and row.sampling.logprobs is not None
    others = (
        CompletionOutput(
            number,
            result.details["texts"][number],
            each.token_ids,
            each.finish_reason,
            each.logprobs if asks else None,
        )
        for number, each in enumerate(answer.others, 1)
    )
    return RequestOutput(
        index=row.index,
        prompt=row.prompt,
        prompt_token_ids=tuple(answer.prompt_token_ids),
        outputs=(
            CompletionOutput(
                0,
                result.text,
                answer.token_ids,
                answer.finish_reason,
                answer.logprobs if asks else None,
                _probabilities(result) if answer.choices else None,
            ),
            *others,
        ),
        num_image_tokens=answer.image_tokens,
        num_cached_tokens=answer.cached_tokens,
        num_retries=answer.retries,
    )


def _probabilities(result: Result) -> dict[str, float]:
    return {each["choice"]: each["probability"] for each in result.details["choices"]}
