"""``echo``: the prompt before its answer, and what the model would have said in its place."""

from __future__ import annotations

from collections.abc import Sequence

from vlmbatch.models.described_tokens import described
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.openai.responses import JsonObject
from vlmbatch.types import TokenLogprob


def echoed_text(
    prompt: str | Sequence[int],
    token_ids: Sequence[int],
    answer_ids: Sequence[int],
    tokenizer: Tokenizer,
) -> str:
    """The prompt as it was sent, or the text of its tokens, up to the text of the answer alone.

    ``token_ids``: what the model saw of it. Decoders cut the blank that an answer begins with.
    """
    seen = tokenizer.decode(token_ids)
    behind = tokenizer.decode([*token_ids, *answer_ids])[len(seen) :]
    blank = behind[: len(behind) - len(tokenizer.decode(answer_ids))]
    return (prompt if isinstance(prompt, str) else seen) + blank


def echoed_tokens(
    token_ids: Sequence[int], logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer
) -> list[JsonObject]:
    """The prompt's tokens as ``described`` has those of an answer.

    ``logprobs``: of all but the first, which has none, as nothing stands before it.
    """
    first = {
        "token_id": token_ids[0],
        "token": tokenizer.piece(token_ids[0]),
        "logprob": None,
        "top_logprobs": None,
    }
    return [first, *described(logprobs, tokenizer)]
