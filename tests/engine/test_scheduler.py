"""Random workloads through the scheduler, with a pool whose content is checked on every read."""

from __future__ import annotations

import hashlib
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_scaling import GRID

from vlmbatch.config import SamplingParams
from vlmbatch.engine.block_pool import BlockPool
from vlmbatch.engine.scheduler import Scheduler
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import GranuleCopy, ScheduledChunk
from vlmbatch.types import ImageInput, ImageSpan, PixelImage, Request

EOS = 7
IMAGE_TOKEN = 9


class ContentPool:
    """Plays the model: a token's "key" is the digest of all content up to it.

    What a chunk reads back must be what its own sequence would have written, however its pages came
    to be shared, cached, preempted or reused.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.slots: dict[int, bytes] = {}
        self.true_tokens: dict[int, list[int]] = {}

    def contents(self, sequence: Sequence, tokens: list[int]) -> list[bytes]:
        digest = hashlib.sha256()
        keys = []
        for position, token in enumerate(tokens):
            digest.update(token.to_bytes(8, "little"))
            for span in sequence.request.image_spans:
                if span.start <= position < span.start + span.length:
                    digest.update(sequence.request.images[span.image].content_hash)
                    digest.update((span.offset + position - span.start).to_bytes(8, "little"))
            keys.append(digest.digest())
        return keys

    def slot(self, sequence: Sequence, position: int) -> int:
        block = sequence.blocks[position // self.scheduler.block_size]
        offset = position % self.scheduler.block_size
        assert offset < block.size * self.scheduler.granule, "write past the end of a block"
        return block.start * self.scheduler.granule + offset

    def run(self, chunks: list[ScheduledChunk]) -> list[tuple[Sequence, int]]:
        """Copy, write all, then read all, as attention does; returns the sampled tokens."""
        copies = [chunk.copy for chunk in chunks if chunk.copy is not None]
        granule = self.scheduler.granule
        targets = [copy.target + i for copy in copies for i in range(copy.count)]
        assert len(set(targets)) == len(targets)
        for copy in copies:  # in no order: no copy may read what another writes
            sources = range(copy.source, copy.source + copy.count)
            assert not set(targets).intersection(sources)
            for offset in range(copy.count * granule):
                self.slots[copy.target * granule + offset] = self.slots[
                    copy.source * granule + offset
                ]
        for chunk in chunks:
            tokens = self._tokens(chunk.sequence)
            keys = self.contents(chunk.sequence, tokens[: chunk.start + chunk.length])
            for position in range(chunk.start, chunk.start + chunk.length):
                self.slots[self.slot(chunk.sequence, position)] = keys[position]
        sampled = []
        for chunk in chunks:
            tokens = self._tokens(chunk.sequence)
            keys = self.contents(chunk.sequence, tokens[: chunk.start + chunk.length])
            read = [self.slots[self.slot(chunk.sequence, p)] for p in range(len(keys))]
            assert read == keys, "a sequence read another's keys"
            if chunk.needs_sampling:
                token = keys[-1][0] % 8  # content alone decides; one in eight ends
                tokens.append(token)
                sampled.append((chunk.sequence, token))
        return sampled

    def _tokens(self, sequence: Sequence) -> list[int]:
        known = sequence.token_ids[: sequence.num_known_tokens]
        tokens = self.true_tokens.setdefault(id(sequence), list(known))
        assert tokens[: len(known)] == known
        return tokens


def reference_output(sequence: Sequence, pool: ContentPool) -> list[int]:
    tokens = list(sequence.request.token_ids)
    while len(tokens) < sequence.max_len:
        tokens.append(pool.contents(sequence, tokens)[-1][0] % 8)
        if tokens[-1] == EOS and not sequence.request.sampling.ignore_eos:
            break
    return tokens[sequence.num_prompt_tokens :]


def image(name: bytes) -> PixelImage:
    return PixelImage(np.zeros((1, 1, 3), np.uint8), name, GRID)


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    result = []
    for index in range(draw(st.integers(1, 14))):
        # Few distinct tokens and images, so that prefixes meet.
        text = draw(st.lists(st.integers(0, 1), min_size=1, max_size=12))
        spans: tuple[ImageSpan, ...] = ()
        images: tuple[PixelImage, ...] = ()
        if draw(st.booleans()):
            length = draw(st.sampled_from([3, 8]))
            images = (image(draw(st.sampled_from([b"red", b"blue"]))),)
            at = draw(st.integers(0, 1))
            spans = (ImageSpan(at, length, 0),)
            text[at:at] = [IMAGE_TOKEN] * length
        sampling = SamplingParams(
            max_tokens=draw(st.integers(1, 12)), ignore_eos=draw(st.booleans())
        )
        result.append(Request(index, text, sampling, images, spans))
    return result


@settings(max_examples=40, deadline=None)
@given(
    requests(),
    st.data(),
    st.integers(1, 3),  # granule
    st.integers(1, 4),  # granules in a block
    st.integers(1, 6),  # sequences in a step
    st.integers(1, 24),  # tokens in a step
    st.booleans(),  # prefix cache
    st.integers(1, 3),  # steps under way at once
    st.booleans(),  # longest first, once all are there
)
def test_every_sequence_finishes_with_its_own_tokens(
    workload: list[Request],
    data: st.DataObject,
    granule: int,
    per_block: int,
    max_num_seqs: int,
    max_batched_tokens: int,
    caching: bool,
    depth: int,
    longest_first: bool,
) -> None:
    sequences = [
        Sequence(r, len(r.token_ids) + r.sampling.max_tokens, frozenset([EOS])) for r in workload
    ]
    needed = max(-(-s.max_len // granule) for s in sequences)
    pool = BlockPool(data.draw(st.integers(needed, needed + 12)), per_block)
    scheduler = Scheduler(pool, granule, max_num_seqs, max_batched_tokens, caching)
    content = ContentPool(scheduler)
    to_add = deque(sequences)
    under_way: deque[tuple[list[ScheduledChunk], list[tuple[Sequence, int]]]] = deque()
    failures = data.draw(st.integers(0, 3))
    given_up: set[int] = set()
    steps = 0
    while to_add or scheduler.num_unfinished or under_way:
        steps += 1
        assert steps < 3000, "no progress"
        adds_one: bool = bool(to_add) and data.draw(st.booleans())
        if to_add and (adds_one or not scheduler.num_unfinished):
            scheduler.add(to_add.popleft())
            if longest_first and not to_add:
                scheduler.sort_waiting()
        chunks = scheduler.schedule()
        scheduler.check_integrity()
        assert sum(chunk.length for chunk in chunks) <= max_batched_tokens
        assert len({id(chunk.sequence) for chunk in chunks}) == len(chunks)
        if chunks and failures and data.draw(st.integers(0, 9)) == 0:
            failures -= 1
            for sequence, token in [pair for step in under_way for pair in step[1]]:
                scheduler.update(sequence, token)
            under_way.clear()
            culprit = scheduler.abort_step(chunks)
            assert culprit is None or [chunk.sequence for chunk in chunks] == [culprit]
            if culprit is not None:
                scheduler.finish(culprit, None)
                given_up.add(id(culprit))
            scheduler.check_integrity()
            content.true_tokens.clear()
            continue
        if chunks:
            under_way.append((chunks, content.run(chunks)))
        if under_way and (len(under_way) >= depth or not chunks):
            for sequence, token in under_way.popleft()[1]:
                scheduler.update(sequence, token)
            scheduler.check_integrity()
        else:
            assert chunks or to_add, "nothing scheduled, nothing to wait for"
    for sequence in sequences:
        expected = reference_output(sequence, content)
        assert sequence.finished
        if id(sequence) in given_up:
            assert sequence.finish_reason is None
            assert sequence.output_token_ids == expected[: len(sequence.output_token_ids)]
        else:
            assert sequence.finish_reason is not None
            assert sequence.output_token_ids == expected
    assert pool.holds() == {}
    assert pool.num_available == pool.num_granules


def make_scheduler(num_granules: int = 8, **options: int) -> Scheduler:
    limits: dict[str, Any] = {"granule": 4, "max_num_seqs": 8, "max_batched_tokens": 64, **options}
    return Scheduler(BlockPool(num_granules), **limits)


def sequence(
    tokens: list[int],
    max_tokens: int = 4,
    images: tuple[ImageInput, ...] = (),
    spans: tuple[ImageSpan, ...] = (),
):
    request = Request(0, tokens, SamplingParams(max_tokens=max_tokens), images, spans)
    return Sequence(request, len(tokens) + max_tokens, frozenset([EOS]))


def test_a_prefix_is_shared_within_the_step_that_computes_it() -> None:
    scheduler = make_scheduler()
    first, second = sequence([1] * 9), sequence([1] * 9)
    scheduler.add(first)
    scheduler.add(second)
    chunks = scheduler.schedule()
    assert [(c.start, c.length) for c in chunks] == [(0, 9), (8, 1)]
    assert second.num_cached_tokens == 8
    assert first.blocks[:2] == second.blocks[:2] and first.blocks[2] is not second.blocks[2]


def test_equal_token_ids_of_different_images_share_nothing() -> None:
    scheduler = make_scheduler(num_granules=16)
    spans = (ImageSpan(0, 8, 0),)
    for name in (b"red", b"blue", b"red"):
        scheduler.add(sequence([IMAGE_TOKEN] * 8 + [1], 1, (image(name),), spans))
    chunks = scheduler.schedule()
    assert [c.start for c in chunks] == [0, 0, 8]


@pytest.mark.parametrize(
    "spans",
    [
        (ImageSpan(0, 8, 0, offset=0), ImageSpan(0, 8, 0, offset=8)),  # other rows of the features
        (ImageSpan(0, 8, 0), ImageSpan(2, 6, 0)),  # the same rows, at other tokens
    ],
)
def test_other_features_of_the_same_image_are_not_shared(spans: tuple[ImageSpan, ...]) -> None:
    scheduler = make_scheduler(num_granules=16)
    for span in (*spans, spans[0]):
        scheduler.add(sequence([IMAGE_TOKEN] * 8 + [1], 1, (image(b"red"),), (span,)))
    assert [c.start for c in scheduler.schedule()] == [0, 0, 8]


def test_a_new_sequence_leaves_the_running_ones_room_to_grow() -> None:
    scheduler = make_scheduler(num_granules=5, enable_prefix_caching=False)
    old, young = sequence([1] * 8, 9), sequence([2] * 8, 1)
    scheduler.add(old)
    scheduler.schedule()
    scheduler.add(young)  # its blocks would take the pool's last
    scheduler.update(old, 1)
    assert [chunk.sequence for chunk in scheduler.schedule()] == [old]
    while not old.finished:
        scheduler.update(old, 1)
        chunks = scheduler.schedule()
    assert [chunk.sequence for chunk in chunks] == [young]
    assert scheduler.num_preemptions == 0


def test_long_answers_begin_first_and_equal_ones_in_order() -> None:
    scheduler = make_scheduler(num_granules=64, max_num_seqs=2)
    short, long, other_short, longest, other_long = (
        sequence([index] * 4, length) for index, length in enumerate((2, 5, 2, 9, 5))
    )
    for each in (short, long, other_short, longest, other_long):
        scheduler.add(each)
    scheduler.sort_waiting()
    order = []
    while scheduler.num_unfinished:
        chunks = scheduler.schedule()
        order += [chunk.sequence for chunk in chunks if chunk.start == 0]
        for chunk in chunks:
            scheduler.update(chunk.sequence, 1)
    assert order == [longest, long, other_long, short, other_short]


def test_a_preempted_sequence_goes_on_before_longer_ones() -> None:
    scheduler = make_scheduler(num_granules=5, enable_prefix_caching=False)
    old, young = sequence([1] * 8, 9), sequence([2] * 4, 8)
    for each in (old, young):
        scheduler.add(each)
    while not scheduler.num_preemptions:
        for chunk in scheduler.schedule():
            scheduler.update(chunk.sequence, 1)
    longer = sequence([3] * 4, 12)
    scheduler.waiting.appendleft(longer)
    scheduler.sort_waiting()
    assert list(scheduler.waiting) == [young, longer]


def test_the_last_admitted_is_preempted_and_computed_anew() -> None:
    scheduler = make_scheduler(num_granules=5, enable_prefix_caching=False)
    old, young = sequence([1] * 4, 12), sequence([2] * 4, 12)
    for each in (old, young, sequence([3] * 12, 1)):
        scheduler.add(each)
    for _ in range(40):
        for chunk in scheduler.schedule():
            if chunk.needs_sampling:
                scheduler.update(chunk.sequence, 1)
        if scheduler.num_preemptions:
            break
    assert scheduler.waiting[0] is young, "what was preempted comes back before what is new"
    assert scheduler.running == [old]
    assert young.num_computed_tokens == 0 and not young.blocks


def test_a_failed_step_leaves_nothing_to_be_found() -> None:
    scheduler = make_scheduler()
    scheduler.add(sequence([2] * 4, 1))
    scheduler.schedule()
    failed = [sequence([1] * 9), sequence([3] * 5)]
    for each in failed:
        scheduler.add(each)
    assert scheduler.abort_step(scheduler.schedule()) is None
    (chunk,) = scheduler.schedule()
    assert (chunk.sequence, chunk.start, chunk.length) == (failed[0], 0, 9)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 5, 9, 100])
def test_prefill_is_cut_to_the_budget(chunk_size: int) -> None:
    scheduler = make_scheduler(max_batched_tokens=chunk_size)
    scheduler.add(sequence([1] * 9, 1))
    lengths = []
    while scheduler.num_unfinished:
        (chunk,) = scheduler.schedule()
        lengths.append(chunk.length)
        assert chunk.needs_sampling == (sum(lengths) == 9)
        if chunk.needs_sampling:
            scheduler.update(chunk.sequence, 1)
    assert sum(lengths) == 9 and max(lengths) == min(chunk_size, 9)


def test_cached_blocks_in_the_way_are_given_up() -> None:
    scheduler = Scheduler(BlockPool(8, granules_per_block=4), 1, 8, 64)
    short, full = sequence([1], 1), sequence([2] * 4, 1)
    for first in (short, full):
        scheduler.add(first)
    scheduler.schedule()
    for first in (short, full):
        scheduler.finish(first, "stop")
    # The cached block lies at granules 2 to 6: what is left on both sides is too short.
    follower = sequence([2] * 5, 3)
    scheduler.add(follower)
    (chunk,) = scheduler.schedule()
    assert (chunk.start, chunk.length) == (0, 5)


def test_a_sequence_alone_in_a_pool_in_pieces_begins_anew_in_the_same_step() -> None:
    """What another left in the cache divides the free space; it is given up, and the place kept."""
    scheduler = Scheduler(BlockPool(24, granules_per_block=3), 1, 1, 24)
    for each in (sequence([0], 1), sequence([1] * 18, 6)):
        scheduler.add(each)
        while scheduler.num_unfinished:
            chunks = scheduler.schedule()
            assert chunks, "a step with nothing in it"
            for chunk in chunks:
                scheduler.update(chunk.sequence, 1)
            scheduler.check_integrity()
    assert scheduler.num_preemptions == 1


def test_finishing_from_outside_frees_the_blocks() -> None:
    scheduler = make_scheduler()
    running, waiting = sequence([1] * 4, 9), sequence([2] * 4, 9)
    scheduler.add(running)
    scheduler.schedule()
    scheduler.add(waiting)
    scheduler.finish(running, "stop")
    scheduler.finish(waiting, "stop")
    assert not scheduler.update(running, 1), "a late token of a finished sequence is dropped"
    assert scheduler.num_unfinished == 0 and scheduler.pool.holds() == {}


def test_the_first_part_of_a_block_is_copied_once_it_has_been_computed() -> None:
    scheduler = Scheduler(BlockPool(24, granules_per_block=4), 2, 8, 64)
    first, second = sequence([1] * 13), sequence([1] * 11 + [2] * 4)
    scheduler.add(first)
    scheduler.add(second)
    (chunk,) = scheduler.schedule()
    assert chunk.sequence is first, "the second waits for what the first computes"
    chunk = next(c for c in scheduler.schedule() if c.sequence is second)
    assert (chunk.start, chunk.length) == (10, 5)
    assert second.blocks[0] is first.blocks[0]
    assert chunk.copy == GranuleCopy(first.blocks[1].start, second.blocks[1].start, 1)
    assert second.num_cached_tokens == 10


def test_sequences_without_a_common_prefix_pass_those_that_wait_for_one() -> None:
    scheduler = Scheduler(BlockPool(24, granules_per_block=4), 2, 8, 64)
    for tokens in ([1] * 5, [1] * 6, [2] * 5):
        scheduler.add(sequence(tokens))
    assert [chunk.sequence.token_ids[0] for chunk in scheduler.schedule()] == [1, 2]
    assert len(scheduler.waiting) == 1


def test_what_is_to_be_copied_is_not_overwritten_by_the_same_step() -> None:
    scheduler = Scheduler(BlockPool(8, granules_per_block=4), 2, 8, 64)
    first = sequence([1] * 5, 1)
    scheduler.add(first)
    scheduler.schedule()
    scheduler.finish(first, "stop")
    source = first.num_registered_granules
    assert source == 2
    # The pool has room for both only where the first sequence's block lies.
    scheduler.add(sequence([1] * 5, 1))
    scheduler.add(sequence([2] * 7, 1))
    copied, *others = scheduler.schedule()
    assert copied.copy is not None
    taken = [block for chunk in others for block in chunk.sequence.blocks]
    assert all(not block.start <= copied.copy.source < block.start + block.size for block in taken)
