"""Log-probabilities with the texts of their tokens, as outputs and responses show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.types import TokenLogprob


def described(logprobs: Iterable[TokenLogprob], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """An object a token: ``token_id``, ``token``, ``logprob``, and ``top_logprobs`` like itself."""
    return [
        {
            **_described(each.token_id, each.logprob, tokenizer),
            "top_logprobs": [_described(*candidate, tokenizer) for candidate in each.top],
        }
        for each in logprobs
    ]


def _described(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    return {"token_id": token_id, "token": tokenizer.piece(token_id), "logprob": logprob}
