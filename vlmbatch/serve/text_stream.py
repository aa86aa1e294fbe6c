"""Tokens to text while they arrive, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from vlmbatch.models.tokenizer import IncrementalDecoder, Tokenizer
from vlmbatch.serve.engine_thread import TokenChunk


class TextStream:
    """The text of one answer, piece by piece.

    The pieces add up to what ``decode`` of all tokens gives, cut where the last chunk says. Text
    that one of the ``stop`` strings may begin in is held back until it is known whether it does.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = stop
        self._held = ""
        self._num_given = 0  # characters

    def push(self, chunk: TokenChunk) -> str:
        """The text that these tokens make final."""
        text = self._held + "".join(map(self._decoder.push, chunk.token_ids))
        if chunk.finish_reason is not None:
            text += self._decoder.flush()
            end = len(text) if chunk.text_end is None else chunk.text_end - self._num_given
            assert end >= 0
            return text[:end]
        end = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[end:]
        self._num_given += end
        return text[:end]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` that ``stop`` begins with, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next(n for n in range(longest, -1, -1) if text.endswith(stop[:n]))
