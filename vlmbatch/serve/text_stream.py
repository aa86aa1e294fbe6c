"""Tokens to text while they arrive, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from vlmbatch.models.tokenizer import IncrementalDecoder, Tokenizer
from vlmbatch.stop_strings import cut_at_stop


class TextStream:
    """The text of one answer, piece by piece.

    The pieces add up to what ``decode`` of all tokens gives, cut at the first stop string. Text
    that a stop string may begin in is held back until it is known whether it does.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = stop
        self._held = ""

    def push(self, token_ids: Sequence[int], last: bool) -> str:
        """The text that these tokens make final; ``last``: no others follow.

        A whole stop string may only stand among the last ones, as it ends the answer.
        """
        text = self._held + "".join(map(self._decoder.push, token_ids))
        if last:
            return cut_at_stop(text + self._decoder.flush(), self._stop)
        end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[end:]
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
