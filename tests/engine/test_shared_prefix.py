"""Which rows of a decode step share a prefix, and that reading it once changes no answer."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pixel_scaling import GRID
from sample_model import SampleModel, answer, make_rows
from torch import Tensor
from vlmbatch_kernels.shared_decode import MAX_TILE_ROWS, shared_decode

from vlmbatch.attention import triton_paged
from vlmbatch.attention.triton_paged import TritonBackend
from vlmbatch.config import EngineConfig, SamplingParams
from vlmbatch.engine import loading, shared_prefix
from vlmbatch.engine.assembly import make_engine
from vlmbatch.engine.batch import build_step_inputs
from vlmbatch.engine.block_pool import Block
from vlmbatch.engine.sequence import PENDING, Sequence
from vlmbatch.engine.shared_prefix import STEP, PrefixTiles, find_shared_prefixes, sort_by_prefix
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.types import ImageSpan, PixelImage, Request

GRANULE = 16
IMAGE_TOKEN = 9
ANSWER = SamplingParams(max_tokens=12, ignore_eos=True)


@pytest.fixture
def share_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_prefix, "_MIN_TOKENS", STEP)
    monkeypatch.setattr(shared_prefix, "_MIN_SAVED", 0)


def row(
    token_ids: list[int], image: str = "", image_tokens: int = 0, registered: int | None = None
) -> ScheduledChunk:
    """A sequence that computes its last token; the image stands in front.

    ``registered``: granules offered to the prefix cache; None: all that are full, as they are by
    then, the one that this step completes included.
    """
    images: tuple[PixelImage, ...] = ()
    spans: tuple[ImageSpan, ...] = ()
    if image:
        images = (PixelImage(np.zeros((1, 1, 3), np.uint8), image.encode(), GRID),)
        spans = (ImageSpan(0, image_tokens, 0),)
    tokens = [IMAGE_TOKEN] * image_tokens + token_ids
    request = Request(0, tokens, SamplingParams(), images, spans)
    sequence = Sequence(request, len(tokens) + 1, frozenset())
    full = len(tokens) // GRANULE
    if full:
        sequence.prefix_hash(full - 1, GRANULE)
    sequence.num_registered_granules = full if registered is None else min(full, registered)
    return ScheduledChunk(sequence, len(tokens) - 1, 1, needs_sampling=True)


def question(image: str, number: int) -> ScheduledChunk:
    """576 tokens of an image, 24 of a question of its own."""
    return row([number] * 24, image, 576)


def in_common(rows: Seq[ScheduledChunk]) -> int:
    """Tokens that all rows begin with, by token and image, before the ones they compute."""

    def content(row: ScheduledChunk) -> list[object]:
        request = row.sequence.request
        tokens: list[object] = list(request.token_ids[: row.start])
        for span in request.image_spans:
            for i in range(span.start, min(span.start + span.length, row.start)):
                tokens[i] = (request.images[span.image].content_hash, span.offset + i - span.start)
        return tokens

    count = 0
    for tokens in zip(*map(content, rows), strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def check(found: PrefixTiles, rows: list[ScheduledChunk]) -> None:
    covered: set[int] = set()
    for first, num_rows in found.tiles:
        tile = range(first, first + num_rows)
        assert 2 <= num_rows <= MAX_TILE_ROWS
        assert not covered.intersection(tile)
        covered.update(tile)
        (shared,) = {found.lens[i] for i in tile}
        assert shared > 0 and shared % STEP == 0
        assert shared <= in_common([rows[i] for i in tile])
        for i in tile:
            assert shared < rows[i].start + 1
            assert shared <= rows[i].sequence.num_registered_granules * GRANULE
    assert covered == {i for i, shared in enumerate(found.lens) if shared}
    assert len(found.lens) == len(rows)


@st.composite
def steps(draw: st.DrawFn) -> list[ScheduledChunk]:
    rows = []
    for _ in range(draw(st.integers(1, 40))):
        # Few distinct prefixes, and few continuations of each.
        parts = draw(
            st.lists(st.tuples(st.integers(0, 2), st.sampled_from([16, 40, 64])), max_size=4)
        )
        text = [token for token, count in parts for _ in range(count)]
        text += [7] * draw(st.integers(1, 32))
        image, length = draw(st.sampled_from([("", 0), ("red", 100), ("blue", 100)]))
        rows.append(row(text, image, length, draw(st.none() | st.integers(0, 8))))
    return rows


@settings(max_examples=50, deadline=None)
@given(rows=steps(), share_anything=st.booleans(), in_order=st.booleans())
def test_tiles_cover_what_their_rows_have_in_common(
    rows: list[ScheduledChunk], share_anything: bool, in_order: bool
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_prefix, "_MIN_SAVED", 0)
        if share_anything:
            patch.setattr(shared_prefix, "_MIN_TOKENS", STEP)
        ordered = rows if in_order else sort_by_prefix(rows, GRANULE)
        assert sorted(map(id, ordered)) == sorted(map(id, rows))
        found = find_shared_prefixes(ordered, GRANULE)
    if found is not None:
        check(found, ordered)


def test_eight_questions_about_each_of_many_images() -> None:
    rows = [question(f"image {i % 20}", i) for i in range(160)]
    found = find_shared_prefixes(sort_by_prefix(rows, GRANULE), GRANULE)
    assert found == PrefixTiles([576] * 160, [(first, 8) for first in range(0, 160, 8)])
    assert found.num_saved == 20 * 7 * 576


def test_a_prefix_of_more_rows_than_a_tile_holds_is_read_by_several() -> None:
    found = find_shared_prefixes([question("image", i) for i in range(40)], GRANULE)
    assert found is not None
    assert found.tiles == [(0, 16), (16, 16), (32, 8)]


def test_a_row_left_over_costs_its_neighbours_nothing() -> None:
    """All begin with the same 160 tokens, and those before and behind continue alike."""
    head = list(range(160))
    before = [row(head + [3] * 500 + [i] * 20) for i in range(14)]
    behind = [row(head + [5] * 500 + [i] * 20) for i in range(14)]
    found = find_shared_prefixes([*before, row(head + [4] * 500), *behind], GRANULE)
    assert found == PrefixTiles([640] * 14 + [0] + [640] * 14, [(0, 14), (15, 14)])


def test_images_of_the_same_shape_are_not_the_same() -> None:
    assert find_shared_prefixes([question(f"image {i}", 0) for i in range(60)], GRANULE) is None


def test_a_row_reads_the_token_that_it_computes_by_itself() -> None:
    found = find_shared_prefixes([row([1] * 640) for _ in range(40)], GRANULE)
    assert found is not None
    assert found.lens == [608] * 40


def test_little_is_not_shared() -> None:
    assert find_shared_prefixes([question("image", i) for i in range(8)], GRANULE) is None
    assert find_shared_prefixes([row([1] * 120 + [i] * 90) for i in range(400)], GRANULE) is None
    assert find_shared_prefixes([], GRANULE) is None


def test_a_few_rows_with_a_very_long_prefix_are_left_to_who_divides_it() -> None:
    document = [1] * 20_000
    few = [row([*document, i]) for i in range(8)]
    assert find_shared_prefixes(few, GRANULE) is None
    many = [row([*document, i]) for i in range(16 * 20)]
    assert find_shared_prefixes(many, GRANULE) is not None


def test_what_the_prefix_cache_was_not_offered_is_not_shared() -> None:
    rows = [row([1] * 600, registered=0) for _ in range(60)]
    assert find_shared_prefixes(rows, GRANULE) is None


@pytest.mark.usefixtures("share_anything")
def test_what_a_step_samples_and_awaits_follows_its_rows() -> None:
    rows = [question(f"image {i % 3}", i) for i in range(9)]
    for i, chunk in enumerate(rows):
        chunk.sequence.blocks = [Block(64 * i, 64)]
        if i % 2:
            chunk.sequence.token_ids[-1] = PENDING
            chunk.sequence.num_pending = 1
    prompt = ScheduledChunk(question("image 1", 9).sequence, 0, 600, needs_sampling=True)
    prompt.sequence.blocks = [Block(576, 64)]
    inputs = build_step_inputs(
        [*rows[:4], prompt, *rows[4:]], 1024, GRANULE, torch.device("cpu"), True
    )
    shared = inputs.metadata.shared
    assert shared is not None
    assert shared.lens.tolist() == [576] * 9
    assert shared.tiles.tolist() == [[0, 3], [3, 3], [6, 3]]
    assert inputs.sampled[-1] is prompt.sequence
    assert all(inputs.sampled[token] is sequence for token, sequence in inputs.pending_tokens)
    numbers = [rows.index(chunk) for chunk in sort_by_prefix(rows, GRANULE)]
    assert [sequence.blocks[0].start // 64 for sequence in inputs.sampled] == [*numbers, 9]
    ids = [0 if number % 2 else number for number in numbers]
    assert inputs.input_ids[:9].tolist() == ids
    assert len(inputs.pending_tokens) == 4


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.usefixtures("share_anything")
def test_answers_are_those_of_rows_by_themselves(
    ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sample model, with the Triton backend's kernels as their twins in torch."""
    sample = SampleModel.open(make_rows(24, 4004, tmp_path))
    requests = [replace(request, sampling=ANSWER) for request in sample.requests]
    expected = answer(sample.engine(EngineConfig(device="cpu")), requests)
    calls = []

    def counted(query: Tensor, *args: Any) -> Tensor:
        calls.append(len(query))
        return shared_decode(query, *args)

    monkeypatch.setattr(triton_paged, "shared_decode", counted)
    monkeypatch.setattr(loading, "make_backend", lambda *args: TritonBackend())
    monkeypatch.setattr(loading, "make_engine", partial(make_engine, ahead=ahead))
    engine = sample.engine(EngineConfig(device="cpu"))
    assert answer(engine, requests) == expected
    assert len(calls) >= 4 * 8, "steps of four layers"
