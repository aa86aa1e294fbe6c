"""The tokens of the rows that a run answers, which its output does not have."""

from __future__ import annotations

import pytest

from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.stages.answer import Answer, to_result
from vlmbatch.types import Result


def answered_tokens(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[int]]:
    """By row index; filled by runs of this process until the test ends."""
    found: dict[int, list[int]] = {}

    def noted(answer: Answer, tokenizer: Tokenizer) -> Result:
        if answer.error is None:
            found[answer.row.index] = list(answer.token_ids)
        return to_result(answer, tokenizer)

    monkeypatch.setattr("vlmbatch.stages.sink.to_result", noted)
    return found
