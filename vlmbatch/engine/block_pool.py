"""The pages of the KV pool: who holds them, which can be found again by content. No torch.

The pool is a line of granules (a few tokens each). A block is a run of adjacent granules, as long
as a backend's page or shorter: a sequence's last page need only be as long as what it will hold.
With pages of one granule this is the usual pool of equal blocks.

A block whose tokens are known can be registered under a hash of its content, once for each granule
that is full: what is found may be a prefix of a block only. When its last holder frees it, it
keeps its place until the space is needed, least recently used first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True, eq=False)
class Block:
    """``size`` granules from ``start``, held by ``ref_count`` sequences.

    ``hashes``: what it is registered under.
    """

    start: int
    size: int
    ref_count: int = 1
    hashes: list[bytes] = field(default_factory=list)


class _FreeRuns:
    """Maximal runs of free granules, found best-fit first and merged when neighbours meet."""

    def __init__(self, num_granules: int, largest_request: int) -> None:
        self._size_at: dict[int, int] = {}
        self._start_before: dict[int, int] = {}  # end of a run -> its start
        # Runs by length; those longer than any request share the last bucket. Dicts keep order.
        self._buckets: list[dict[int, None]] = [{} for _ in range(largest_request + 2)]
        self.total = 0
        if num_granules:
            self.add(0, num_granules)

    def add(self, start: int, size: int) -> None:
        self.total += size
        end = start + size
        if start in self._start_before:
            before = self._start_before[start]
            self._remove(before)
            start = before
        if end in self._size_at:
            end += self._remove(end)
        self._insert(start, end - start)

    def take(self, size: int) -> int | None:
        """Start of ``size`` free granules, now taken, or None if no run is long enough."""
        for bucket in self._buckets[size:]:
            if bucket:
                start = next(iter(bucket))
                length = self._remove(start)
                if length > size:
                    self._insert(start + size, length - size)
                self.total -= size
                return start
        return None

    def runs(self) -> list[tuple[int, int]]:
        return sorted(self._size_at.items())

    def _insert(self, start: int, size: int) -> None:
        self._size_at[start] = size
        self._start_before[start + size] = start
        self._bucket(size)[start] = None

    def _remove(self, start: int) -> int:
        size = self._size_at.pop(start)
        del self._start_before[start + size]
        del self._bucket(size)[start]
        return size

    def _bucket(self, size: int) -> dict[int, None]:
        return self._buckets[min(size, len(self._buckets) - 1)]


class BlockPool:
    """Allocates, shares and frees blocks of at most ``granules_per_block`` granules."""

    def __init__(self, num_granules: int, granules_per_block: int = 1) -> None:
        assert num_granules >= 1 and granules_per_block >= 1
        self.num_granules = num_granules
        self.granules_per_block = granules_per_block
        self._free = _FreeRuns(num_granules, granules_per_block)
        self._held: dict[int, Block] = {}  # by start
        self._by_hash: dict[bytes, Block] = {}
        self._evictable: OrderedDict[int, Block] = OrderedDict()  # by start, least recent first
        self._num_evictable_granules = 0

    @property
    def num_available(self) -> int:
        """Granules that are free or can be made so by forgetting cached content."""
        return self._free.total + self._num_evictable_granules

    def allocate(self, size: int) -> Block | None:
        """A block of ``size`` adjacent granules, or None when even eviction cannot make room."""
        assert 1 <= size <= self.granules_per_block
        if size > self.num_available:
            return None
        while (start := self._free.take(size)) is None:
            if not self._evictable:
                return None
            self._evict(next(iter(self._evictable.values())))
        block = Block(start, size)
        self._held[start] = block
        return block

    def allocate_all(self, sizes: Iterable[int]) -> list[Block] | None:
        """One block for each size, or None and nothing changed but for evictions."""
        blocks: list[Block] = []
        for size in sizes:
            block = self.allocate(size)
            if block is None:
                self.free(blocks)
                return None
            blocks.append(block)
        return blocks

    def free(self, blocks: Iterable[Block]) -> None:
        """Give up one hold on each. The first of ``blocks`` is the first to be evicted later."""
        for block in blocks:
            assert block.ref_count > 0
            block.ref_count -= 1
            if block.ref_count:
                continue
            del self._held[block.start]
            if not block.hashes:
                self._free.add(block.start, block.size)
            else:
                self._evictable[block.start] = block
                self._num_evictable_granules += block.size

    def find(self, content_hash: bytes) -> Block | None:
        """The block that begins with this content, if any; take hold of it with ``share``."""
        return self._by_hash.get(content_hash)

    def share(self, block: Block) -> None:
        """Take one more hold on a registered block."""
        if block.ref_count == 0:
            del self._evictable[block.start]
            self._num_evictable_granules -= block.size
            self._held[block.start] = block
        block.ref_count += 1

    def register(self, block: Block, content_hash: bytes) -> bool:
        """Let later sequences find a held block by content that it begins with.

        The first of equals stays: False if this is not it.
        """
        assert block.ref_count > 0
        if content_hash in self._by_hash:
            return False
        assert len(block.hashes) < block.size
        block.hashes.append(content_hash)
        self._by_hash[content_hash] = block
        return True

    def forget(self, block: Block) -> None:
        """Make a held block's content unfindable, because it was never written."""
        assert block.ref_count > 0
        self._unregister(block)

    def clear_cache(self) -> None:
        """Free every cached block that no sequence holds."""
        for block in list(self._evictable.values()):
            self._evict(block)

    def holds(self) -> dict[int, int]:
        """Number of holds on each held block, by its start."""
        return {start: block.ref_count for start, block in self._held.items()}

    def check_integrity(self) -> None:
        """Assert that every granule is held, cached or free, exactly once."""
        runs = self._free.runs()
        cached = [(b.start, b.size) for b in self._evictable.values()]
        held = [(b.start, b.size) for b in self._held.values()]
        position = 0
        for start, size in sorted(runs + cached + held):
            assert start == position, f"granules {position} to {start} are lost or owned twice"
            position = start + size
        assert position == self.num_granules
        assert self._free.total == sum(size for _, size in runs)
        assert self._num_evictable_granules == sum(size for _, size in cached)
        assert all(a[0] + a[1] < b[0] for a, b in pairwise(runs)), "unmerged"
        assert all(b.ref_count > 0 for b in self._held.values())
        assert all(b.ref_count == 0 and b.hashes for b in self._evictable.values())
        blocks = (*self._held.values(), *self._evictable.values())
        assert self._by_hash == {key: block for block in blocks for key in block.hashes}
        assert all(len(block.hashes) <= block.size for block in blocks)

    def _evict(self, block: Block) -> None:
        self._unregister(block)
        del self._evictable[block.start]
        self._num_evictable_granules -= block.size
        self._free.add(block.start, block.size)

    def _unregister(self, block: Block) -> None:
        for content_hash in block.hashes:
            del self._by_hash[content_hash]
        block.hashes.clear()
