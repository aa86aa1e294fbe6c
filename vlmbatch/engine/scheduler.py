"""Decides what each step computes: continuous batching over the paged pool. No torch.

Sequences run in the order they were admitted. Each step gives every running sequence its next
tokens, then admits waiting ones while tokens and blocks last; a prompt longer than what is left of
the step's token budget is continued in the next step (chunked prefill). When the pool is full, the
sequence that was admitted last gives its blocks back and is recomputed later (preemption by
recomputation).

A sequence shares the full blocks of a prefix that others have computed. Where the common prefix
ends within a block, that part is copied into a block of its own, once the step that computes it has
been launched: until then the sequence is passed over.

When a step fails, its sequences are recomputed in smaller steps (see ``quarantine``).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import chain

from vlmbatch.engine.block_pool import BlockPool
from vlmbatch.engine.prefix_cache import Prefix, PrefixCache
from vlmbatch.engine.quarantine import Quarantine
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import GranuleCopy, ScheduledChunk
from vlmbatch.types import FinishReason


class Scheduler:
    """Owns the waiting and the running sequences, and the block pool.

    ``schedule`` may be called again before the results of the previous step are in: sampled tokens
    are pending until ``update`` brings them.
    """

    def __init__(
        self,
        pool: BlockPool,
        granule: int,
        max_num_seqs: int,
        max_batched_tokens: int,
        enable_prefix_caching: bool = True,
    ) -> None:
        self.pool = pool
        self.granule = granule
        self.block_size = granule * pool.granules_per_block
        self.max_num_seqs = max_num_seqs
        self.max_batched_tokens = max_batched_tokens
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self._quarantine = Quarantine()
        self._prefixes = PrefixCache(pool, granule) if enable_prefix_caching else None
        self.num_preemptions = 0

    @property
    def num_unfinished(self) -> int:
        return len(self.waiting) + len(self.running) + self._quarantine.num_waiting

    def fits(self, num_tokens: int) -> bool:
        """Whether a sequence of ``num_tokens`` can run at all, alone in the pool."""
        return -(-num_tokens // self.granule) <= self.pool.num_granules

    def add(self, sequence: Sequence) -> None:
        assert self.fits(sequence.max_len)
        self.waiting.append(sequence)

    def sort_waiting(self) -> None:
        """Sort by answer length limit, longest first; a stable sort.

        Preempted sequences stay in front: what was computed for them should not be lost.
        """
        self.waiting = deque(sorted(self.waiting, key=_admission_order))

    def schedule(self) -> list[ScheduledChunk]:
        """The next step's chunks. Empty when nothing can run until results come in."""
        if self._prefixes is not None:
            self._prefixes.begin_step()
        chunks: list[ScheduledChunk] = []
        budget = self.max_batched_tokens
        preempted = False
        position = 0
        while position < len(self.running) and budget:
            sequence = self.running[position]
            length = min(sequence.num_uncomputed_tokens, budget)
            if length and not self._grow(sequence, sequence.num_computed_tokens + length):
                # The last in line has not been given a chunk yet: it may be this very sequence.
                self._preempt(self.running[-1])
                preempted = True
                continue
            if length:
                chunks.append(self._chunk(sequence, length))
                budget -= length
            position += 1
        # Admitted again at once, a preempted sequence would take back what others need.
        if not preempted or not self.running:
            self._admit_waiting(chunks, budget)
        if self._prefixes is not None:
            self._prefixes.end_step()
        return chunks

    def update(self, sequence: Sequence, token_id: int) -> bool:
        """Take in a sampled token; True if it belongs to the output. Frees a finished sequence."""
        if sequence.finished or sequence.num_pending == 0:
            return False  # a step that was in flight when the sequence ended or failed
        if sequence.resolve(token_id):
            self._remove(sequence)
        else:
            self._register(sequence)
        return True

    def finish(self, sequence: Sequence, reason: FinishReason | None) -> None:
        """End a sequence from outside: at a stop string, or cancelled (no reason)."""
        if not sequence.finished:
            sequence.finished = True
            sequence.finish_reason = reason
            self._remove(sequence)

    def abort_step(self, chunks: list[ScheduledChunk]) -> Sequence | None:
        """Undo a step that failed; nothing that it wrote can be found any more.

        Returns the sequence that makes steps fail, once it is known, for the caller to finish.
        Until then the step's sequences are quarantined in halves. No other step may be in flight.
        """
        starts = {id(chunk.sequence): chunk.start for chunk in chunks}
        for sequence in reversed(self.running[:]):
            first = starts.get(id(sequence), sequence.num_tokens) // self.block_size
            for block in sequence.blocks[first:]:
                self.pool.forget(block)
            sequence.drop_pending()
            self._preempt(sequence)
        failed = [chunk.sequence for chunk in chunks]
        return self._quarantine.set_apart(failed, self._next_queue())

    def check_integrity(self) -> None:
        """Assert that blocks are held exactly by the running sequences, each within its bounds."""
        self.pool.check_integrity()
        holds: dict[int, int] = {}
        for sequence in self.running:
            sequence.check_integrity(self.block_size, self.granule)
            for block in sequence.blocks:
                holds[block.start] = holds.get(block.start, 0) + 1
                assert block.ref_count >= holds[block.start]
        assert holds == self.pool.holds(), "blocks are held by no running sequence"
        assert all(not s.blocks for queue in self._queues() for s in queue)
        assert len(self.running) <= self.max_num_seqs

    def _admit_waiting(self, chunks: list[ScheduledChunk], budget: int) -> None:
        queue = self._next_queue()
        position = 0
        while budget and position < len(queue) and len(self.running) < self.max_num_seqs:
            sequence = queue[position]
            if sequence.num_pending:
                break
            prefix = Prefix()
            # What is found in the cache is not computed, and nothing can be told of it.
            if self._prefixes is not None and sequence.request.prompt_logprobs is None:
                prefix = self._prefixes.find(sequence)
            if prefix.is_growing:
                position += 1
                continue
            if not self._admit(sequence, prefix):
                if self.running:
                    break
                # Nothing to wait for: cached blocks only split the free space into short pieces.
                self.pool.clear_cache()
                prefix = Prefix()
                admitted = self._admit(sequence, prefix)
                assert admitted
            del queue[position]
            self.running.append(sequence)
            length = min(sequence.num_uncomputed_tokens, budget)
            chunks.append(self._chunk(sequence, length, self._copy(sequence, prefix)))
            budget -= length

    def _chunk(
        self, sequence: Sequence, length: int, copy: GranuleCopy | None = None
    ) -> ScheduledChunk:
        start = sequence.num_computed_tokens
        needs_sampling = sequence.advance(length)
        self._register(sequence)
        return ScheduledChunk(sequence, start, length, needs_sampling, copy)

    def _copy(self, sequence: Sequence, prefix: Prefix) -> GranuleCopy | None:
        if prefix.source is None:
            return None
        target = sequence.blocks[len(prefix.blocks)]
        return GranuleCopy(prefix.source.start, target.start, prefix.num_copied)

    def _block_sizes(self, sequence: Sequence, first: int, num_tokens: int) -> list[int]:
        """Granules of the blocks from index ``first`` that ``num_tokens`` tokens need.

        A block is made as long as the sequence can ever fill it, so that it never has to grow.
        """
        num_blocks = -(-num_tokens // self.block_size)
        return [
            -(-min(self.block_size, sequence.max_len - index * self.block_size) // self.granule)
            for index in range(first, num_blocks)
        ]

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        sizes = self._block_sizes(sequence, len(sequence.blocks), num_tokens)
        blocks = self.pool.allocate_all(sizes)
        if blocks is None:
            return False
        sequence.blocks += blocks
        return True

    def _admit(self, sequence: Sequence, prefix: Prefix) -> bool:
        """Share the cached prefix and allocate blocks for all known tokens, or change nothing."""
        for block in prefix.held:
            self.pool.share(block)
        sizes = self._block_sizes(sequence, len(prefix.blocks), sequence.num_tokens)
        # Every running sequence may need a granule soon; filling the pool to the brim would thrash.
        headroom = len(self.running)
        blocks = None
        if sum(sizes) + headroom <= self.pool.num_available or not self.running:
            blocks = self.pool.allocate_all(sizes)
        if blocks is None:
            self.pool.free(reversed(prefix.held))
            return False
        if self._prefixes is not None and prefix.source is not None:
            self._prefixes.hold_until_copied(prefix.source)
        sequence.blocks = prefix.blocks + blocks
        sequence.num_computed_tokens = (
            len(prefix.blocks) * self.block_size + prefix.num_copied * self.granule
        )
        sequence.num_registered_granules = sequence.num_computed_tokens // self.granule
        if sequence.num_cached_tokens is None:
            sequence.num_cached_tokens = sequence.num_computed_tokens
        return True

    def _register(self, sequence: Sequence) -> None:
        if self._prefixes is not None:
            self._prefixes.register(sequence)

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        queue = self._next_queue()
        self.running.remove(sequence)
        self._release(sequence)
        sequence.num_computed_tokens = 0
        queue.appendleft(sequence)

    def _next_queue(self) -> deque[Sequence]:
        """Where sequences are admitted from, and put back to."""
        return self._quarantine.queue(self.waiting, idle=not self.running)

    def _queues(self) -> Iterator[deque[Sequence]]:
        return chain((self.waiting,), self._quarantine.groups)

    def _remove(self, sequence: Sequence) -> None:
        sequence.drop_pending()
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
        else:
            next(queue for queue in self._queues() if sequence in queue).remove(sequence)

    def _release(self, sequence: Sequence) -> None:
        # Last block first: what comes earlier is the prefix of more sequences.
        self.pool.free(reversed(sequence.blocks))
        sequence.blocks = []


def _admission_order(sequence: Sequence) -> tuple[bool, int]:
    if sequence.num_cached_tokens is not None:  # it was admitted once
        return False, 0
    return True, sequence.num_prompt_tokens - sequence.max_len
