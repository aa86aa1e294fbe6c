"""A tokenizer whose texts are as easy to reason about as token ids."""

from __future__ import annotations

from collections.abc import Sequence


class LetterTokenizer:
    """Token n is the letter of that number."""

    def has_text(self, token_id: int) -> bool:
        return True

    def is_byte(self, token_id: int) -> bool:
        return False

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(0x100 + token_id) for token_id in ids)
