"""A request under way: its tokens, how far they are computed, the blocks they live in. No torch."""

from __future__ import annotations

import hashlib
import struct
from array import array
from itertools import pairwise

from vlmbatch.engine.block_pool import Block
from vlmbatch.engine.grammars import Constraint
from vlmbatch.engine.token_history import TokenHistory
from vlmbatch.types import FinishReason, Request, TokenLogprob

_PLACE = struct.Struct("qq")
PENDING = -1  # stands for a token that a step under way will sample


class Sequence:
    """The scheduler's view of a request.

    ``token_ids`` holds the prompt and what was generated. ``num_computed_tokens`` counts the tokens
    whose keys and values are in the pool once every step scheduled so far has run.
    """

    def __init__(self, request: Request, max_len: int, eos_token_ids: frozenset[int]) -> None:
        self.request = request
        self.token_ids = list(request.token_ids)
        self.num_prompt_tokens = len(request.token_ids)
        self.max_len = max_len  # tokens it can ever have
        self.num_pending = 0  # trailing PENDING tokens
        self.num_computed_tokens = 0
        self.num_cached_tokens: int | None = None  # prompt tokens found in the prefix cache
        self.blocks: list[Block] = []
        self.num_registered_granules = 0  # leading ones already offered to the prefix cache
        # Of those alone whose next token depends on it.
        penalised = request.sampling.penalises
        self.history = TokenHistory(request, max_len) if penalised else None
        self.constraint: Constraint | None = None  # where a grammar rules tokens out
        # By place in the prompt, where they are asked for; the first token has none.
        self.prompt_logprobs: dict[int, TokenLogprob] = {}
        self.finished = False
        self.finish_reason: FinishReason | None = None  # stays None when the engine failed on it
        self._prefix_hashes: list[bytes] = []
        stop = set(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            stop |= eos_token_ids
        self.stop_token_ids = stop
        # Tokens of prompt and answer before none of these may end it.
        self.earliest_end = self.num_prompt_tokens + request.sampling.min_tokens

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_known_tokens(self) -> int:
        return len(self.token_ids) - self.num_pending

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens that a next step could compute; 0 while the sequence only awaits results."""
        # The last token needs no keys and values: nothing follows it.
        if self.num_tokens >= self.max_len:
            return 0
        return self.num_tokens - self.num_computed_tokens

    @property
    def output_token_ids(self) -> list[int]:
        return self.token_ids[self.num_prompt_tokens : self.num_known_tokens]

    def advance(self, num_tokens: int) -> bool:
        """Count a scheduled chunk as computed; True if its step samples a token."""
        self.num_computed_tokens += num_tokens
        assert self.num_computed_tokens <= self.num_tokens
        samples = self.num_computed_tokens == self.num_tokens
        if samples:
            self.token_ids.append(PENDING)
            self.num_pending += 1
        return samples

    def resolve(self, token_id: int) -> bool:
        """Put a sampled token in the place of the oldest pending one; True if it is the last."""
        assert self.num_pending > 0
        self.token_ids[self.num_known_tokens] = token_id
        self.num_pending -= 1
        if token_id in self.stop_token_ids:
            self.finish_reason = "stop"
        elif self.num_known_tokens == self.max_len:
            self.finish_reason = "length"
        self.finished = self.finish_reason is not None
        return self.finished

    def drop_pending(self) -> None:
        """Forget the tokens of steps that failed or no longer matter."""
        del self.token_ids[self.num_known_tokens :]
        self.num_pending = 0
        self.num_computed_tokens = min(self.num_computed_tokens, self.num_known_tokens)

    def prefix_hash(self, index: int, granule: int) -> bytes:
        """Digest of all content up to and including granule ``index``, full of known tokens.

        Image tokens all have the same id, so the digest takes in the content hash of each image
        that reaches into the granule, and where in it the granule lies.
        """
        if index >= len(self._prefix_hashes):
            self._hash_granules(len(self._prefix_hashes), index + 1, granule)
        return self._prefix_hashes[index]

    def _hash_granules(self, first: int, end: int, granule: int) -> None:
        assert end * granule <= self.num_known_tokens
        tokens = array("q", self.token_ids[first * granule : end * granule])
        content, size = tokens.tobytes(), granule * tokens.itemsize
        parent = self._prefix_hashes[-1] if self._prefix_hashes else b""
        for index in range(first, end):
            parts = [parent, content[(index - first) * size : (index - first + 1) * size]]
            start = index * granule
            for span in self.request.image_spans:
                if span.start < start + granule and start < span.start + span.length:
                    parts.append(self.request.images[span.image].content_hash)
                    parts.append(_PLACE.pack(span.start - start, span.offset))
            parent = hashlib.blake2b(b"".join(parts), digest_size=16).digest()
            self._prefix_hashes.append(parent)

    def registered_hashes(self, limit: int) -> list[bytes]:
        """Prefix hashes of the granules that the prefix cache was offered, at most ``limit``.

        Each covers all content before it: sequences that differ in one differ in all behind it.
        """
        return self._prefix_hashes[: min(limit, self.num_registered_granules)]

    def check_integrity(self, block_size: int, granule: int) -> None:
        """Assert that the blocks hold all computed tokens and that counters agree."""
        assert 0 <= self.num_computed_tokens <= self.num_tokens <= self.max_len
        assert self.token_ids[self.num_known_tokens :] == [PENDING] * self.num_pending
        capacity = sum(block.size for block in self.blocks) * granule
        assert self.num_computed_tokens <= capacity
        assert all(a.size * granule == block_size for a, _ in pairwise(self.blocks))
