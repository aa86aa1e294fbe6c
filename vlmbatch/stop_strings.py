"""Stop strings: seen as tokens arrive, cut from the text at the end."""

from __future__ import annotations

from collections.abc import Sequence

from vlmbatch.models.tokenizer import IncrementalDecoder, Tokenizer


class StopChecker:
    """Watches one sequence's tokens for the first of several strings."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = stop
        self._keep = max(len(text) for text in stop) - 1  # what a later match could begin in
        self._tail = ""

    def push(self, token_id: int) -> bool:
        """True as soon as the text up to this token holds a stop string."""
        text = self._tail + self._decoder.push(token_id)
        self._tail = text[len(text) - self._keep :] if self._keep else ""
        # A newline may be a byte token, whose text is final only when the run of bytes ends.
        whole = text + self._decoder.flush()
        return any(stop in whole for stop in self._stop)


def cut_at_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` before the earliest stop string."""
    ends = [position for each in stop if (position := text.find(each)) >= 0]
    return text[: min(ends, default=len(text))]
