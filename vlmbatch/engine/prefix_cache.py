"""Finds the prefix of a sequence that the pool already holds. No torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from vlmbatch.engine.block_pool import Block, BlockPool
from vlmbatch.engine.sequence import Sequence


@dataclass(slots=True)
class Prefix:
    """Full blocks to share, and the block whose first ``num_copied`` granules are to be copied.

    ``is_growing``: the step being scheduled writes more of it, which the next one can copy.
    """

    blocks: list[Block] = field(default_factory=list)
    source: Block | None = None
    num_copied: int = 0
    is_growing: bool = False

    @property
    def held(self) -> list[Block]:
        """Blocks that must not be evicted while the sequence is admitted."""
        return self.blocks if self.source is None else [*self.blocks, self.source]


class PrefixCache:
    """The pool's content by hash, granule by granule.

    Full blocks may be shared as soon as the step that writes them is scheduled: a step writes
    before it reads. Copies come before both, so they need a step launched earlier.
    """

    def __init__(self, pool: BlockPool, granule: int) -> None:
        self._pool = pool
        self._granule = granule
        self._fresh: set[bytes] = set()  # content that the step being scheduled will write
        self._sources: list[Block] = []  # of its copies

    def find(self, sequence: Sequence) -> Prefix:
        """The longest cached prefix of the sequence."""
        prefix = Prefix()
        # At least one token has to be computed: its logits are what the step is for.
        num_granules = (sequence.num_tokens - 1) // self._granule
        per_block = self._pool.granules_per_block
        for last in range(per_block - 1, num_granules, per_block):
            block = self._pool.find(sequence.prefix_hash(last, self._granule))
            if block is None:
                break
            prefix.blocks.append(block)
        first = len(prefix.blocks) * per_block
        for index in reversed(range(first, min(num_granules, first + per_block - 1))):
            content = sequence.prefix_hash(index, self._granule)
            if content in self._fresh:
                prefix.is_growing = True
                break
            prefix.source = self._pool.find(content)
            if prefix.source is not None:
                prefix.num_copied = index + 1 - first
                break
        return prefix

    def register(self, sequence: Sequence) -> None:
        """Register the granules of the sequence that are full by now, for others to find."""
        per_block = self._pool.granules_per_block
        full = min(sequence.num_computed_tokens, sequence.num_known_tokens) // self._granule
        if full <= sequence.num_registered_granules:
            return
        for index in range(sequence.num_registered_granules, full):
            content = sequence.prefix_hash(index, self._granule)
            if self._pool.register(sequence.blocks[index // per_block], content):
                self._fresh.add(content)
        sequence.num_registered_granules = full

    def hold_until_copied(self, source: Block) -> None:
        """Take over the caller's hold on a block until the step that copies it is scheduled."""
        self._sources.append(source)

    def begin_step(self) -> None:
        """What is registered so far is written before the next step runs, which may copy it."""
        self._fresh.clear()

    def end_step(self) -> None:
        """All blocks of the step are allocated, so it can no longer evict copy sources."""
        self._pool.free(self._sources)
        self._sources = []
