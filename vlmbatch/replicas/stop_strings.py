"""Stop strings: which token ends an answer, and where its text is cut. Decided here and only here.

Whoever turns an answer's tokens into text slices it where ``StopChecker`` says.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmbatch.models.tokenizer import IncrementalDecoder, Tokenizer


class StopChecker:
    """Watches one sequence's tokens for the first of several strings, none of them empty.

    Those that end before the text has ``min_tokens`` tokens pass.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], min_tokens: int = 0) -> None:
        self._decoder = IncrementalDecoder(tokenizer)
        self._stop = stop
        self._num_early = max(0, min_tokens - 1)  # tokens before any may end it
        self._early_end = 0  # characters of these
        self._keep = max(map(len, stop)) - 1  # characters that a later match can begin in
        self._tail = ""  # the last of them; all of the text, while it is shorter
        self._tail_start = 0  # characters of the text before ``_tail``

    def push(self, token_id: int) -> int | None:
        """Where the text is to be cut, as soon as the text up to this token holds a stop string.

        That is the number of characters before the earliest of them.
        """
        text = self._tail + self._decoder.push(token_id)
        # What the decoder holds back is the end of the text, if this token is the last. It is not
        # kept: a later token may change it.
        whole = text + self._decoder.flush()
        if self._num_early:
            self._num_early -= 1
            self._early_end = self._tail_start + len(text)
            found = []
        else:
            early = self._early_end - self._tail_start
            starts = (whole.find(stop, max(0, early - len(stop) + 1)) for stop in self._stop)
            found = [place for place in starts if place >= 0]
        if found:
            return self._tail_start + min(found)
        num_passed = max(0, len(text) - self._keep)
        self._tail = text[num_passed:]
        self._tail_start += num_passed
        return None
