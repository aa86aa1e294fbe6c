"""Answers that loop: that end in the same few tokens again and again, up to their length's limit.

"Neural text degeneration", Holtzman et al., arXiv:1904.09751, shows how models fall into it.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmbatch.types import FinishReason

# A repeated tail is a loop if it is there three times, and long: rules of tables and rows of dots
# are shorter, a few dozen tokens.
MIN_REPEATS = 3
MIN_TOKENS = 64
MAX_PERIOD = 512  # tokens, about a page of text


def loops(token_ids: Sequence[int], reason: FinishReason) -> bool:
    """Whether an answer loops.

    It was cut at its length's limit, and its last tokens, at least ``MIN_TOKENS`` of them, are at
    least ``MIN_REPEATS`` times the same 1 to ``MAX_PERIOD`` tokens. An answer that ends by itself
    does not loop, whatever it repeats.
    """
    if reason != "length" or len(token_ids) < MIN_TOKENS:
        return False
    tail = token_ids[: -1 - MIN_REPEATS * MAX_PERIOD : -1]  # the last token first
    longest = min(MAX_PERIOD, len(tail) // MIN_REPEATS)
    matches = _matches(tail)
    return any(
        period + matches[period] >= max(MIN_TOKENS, MIN_REPEATS * period)
        for period in range(1, longest + 1)
    )


def _matches(tokens: Sequence[int]) -> list[int]:
    """How many tokens from each place on are those from the start on (the Z array).

    Gusfield, "Algorithms on Strings, Trees, and Sequences" (1997), section 1.4: in linear time.
    """
    found = [0] * len(tokens)
    left = right = 0  # of the match that reaches furthest
    for place in range(1, len(tokens)):
        length = min(right - place, found[place - left]) if place < right else 0
        while place + length < len(tokens) and tokens[length] == tokens[place + length]:
            length += 1
        found[place] = length
        if place + length > right:
            left, right = place, place + length
    return found
