"""The pool never loses a granule, owns one twice, or finds content that is gone."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from vlmbatch.engine.block_pool import Block, BlockPool


class PoolMachine(RuleBasedStateMachine):
    """Random allocations, holds, registrations and frees, beside a plain model of them."""

    @initialize(num_granules=st.integers(1, 40), per_block=st.integers(1, 5))
    def start(self, num_granules: int, per_block: int) -> None:
        self.pool = BlockPool(num_granules, per_block)
        self.holds: list[Block] = []
        self.cached: dict[bytes, Block] = {}
        self.next_hash = 0

    @rule(data=st.data())
    def allocate(self, data: st.DataObject) -> None:
        size = data.draw(st.integers(1, self.pool.granules_per_block))
        available = self.pool.num_available
        block = self.pool.allocate(size)
        if block is None:
            # With pages of one granule nothing but a full pool may refuse.
            assert available < size or self.pool.granules_per_block > 1
        else:
            assert block.size == size and block.ref_count == 1 and not block.hashes
            self.holds.append(block)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        block = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        self.pool.free([block])

    @precondition(lambda self: any(len(b.hashes) < b.size for b in self.holds))
    @rule(data=st.data(), repeat=st.booleans())
    def register(self, data: st.DataObject, repeat: bool) -> None:
        block = data.draw(st.sampled_from([b for b in self.holds if len(b.hashes) < b.size]))
        self.next_hash += not repeat
        content_hash = self.next_hash.to_bytes(4, "big")
        known = self.pool.find(content_hash)
        assert self.pool.register(block, content_hash) is (known is None)
        assert self.pool.find(content_hash) is (known or block)
        self.cached[content_hash] = known or block

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        content_hash = data.draw(st.sampled_from(sorted(self.cached)))
        block = self.pool.find(content_hash)
        if block is not None:
            assert block is self.cached[content_hash], "content moved to another block"
            self.pool.share(block)
            self.holds.append(block)

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.holds))
        hashes = list(block.hashes)
        self.pool.forget(block)
        assert all(self.pool.find(content_hash) is None for content_hash in hashes)

    @rule()
    def clear_cache(self) -> None:
        self.pool.clear_cache()
        held = sum({b.start: b.size for b in self.holds}.values())
        assert self.pool.num_available == self.pool.num_granules - held

    @invariant()
    def sound(self) -> None:
        self.pool.check_integrity()
        counts: dict[int, int] = {}
        for block in self.holds:
            counts[block.start] = counts.get(block.start, 0) + 1
        assert self.pool.holds() == counts

    def teardown(self) -> None:
        self.pool.free(self.holds)
        self.pool.clear_cache()
        assert self.pool.num_available == self.pool.num_granules


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
test_pool = PoolMachine.TestCase


def test_free_neighbours_merge_into_one_run() -> None:
    pool = BlockPool(4, granules_per_block=4)
    blocks = pool.allocate_all([1, 1, 1, 1])
    assert blocks is not None and pool.allocate(1) is None
    for index in (0, 2, 1, 3):
        pool.free([blocks[index]])
    whole = pool.allocate(4)
    assert whole is not None and (whole.start, whole.size) == (0, 4)


def test_allocate_all_gives_back_what_it_took() -> None:
    pool = BlockPool(3)
    assert pool.allocate_all([1, 1, 1, 1]) is None
    assert pool.num_available == 3
    pool.check_integrity()


def test_the_least_recently_freed_content_is_evicted_first() -> None:
    pool = BlockPool(3)
    blocks = pool.allocate_all([1, 1, 1])
    assert blocks is not None
    for block, name in zip(blocks, (b"a", b"b", b"c"), strict=True):
        pool.register(block, name)
    pool.free([blocks[1], blocks[0], blocks[2]])
    pool.allocate(1)
    assert [pool.find(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]


@pytest.mark.parametrize("per_block", [1, 4])
def test_an_empty_pool_serves_one_sequence_whole(per_block: int) -> None:
    pool = BlockPool(10, per_block)
    sizes = [per_block] * (10 // per_block) + ([10 % per_block] if 10 % per_block else [])
    assert pool.allocate_all(sizes) is not None
    assert pool.num_available == 0
