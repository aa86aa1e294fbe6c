"""A row becomes a request, or the error that stands for it, whichever way its images come."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from pixel_scaling import GRID

from vlmbatch.config import ImageLoading, ManifestConfig, SamplingParams, SessionConfig
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models.llava.processor import LlavaProcessor
from vlmbatch.session.open import open_inputs
from vlmbatch.stages.feed import RowFeed
from vlmbatch.stages.prepare import prepare, start_preparing
from vlmbatch.types import ImageInput, ImageRef, PixelImage, Row

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "samples"


class HeldLoader:
    """Completes images only when all that a row has are asked for; fails those it is told to."""

    def __init__(self, num_images: int, bad: str = "") -> None:
        self._num_images = num_images
        self._bad = bad
        self.asked: list[tuple[str | None, Future[ImageInput]]] = []

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        future: Future[ImageInput] = Future()
        self.asked.append((ref.path, future))
        if len(self.asked) == self._num_images:
            for path, waiting in self.asked:
                if path == self._bad:
                    waiting.set_exception(
                        RowError(ErrorCode.IMAGE_MISSING, f"{path}: no such file")
                    )
                else:
                    name = str(path).encode()
                    waiting.set_result(PixelImage(np.zeros((80, 80, 3), np.uint8), name, GRID))
        return future

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    manifest = ManifestConfig(str(SAMPLES / "manifest.jsonl"))
    opened = open_inputs(SessionConfig(str(SAMPLES / "tiny-llava")), manifest).processor
    assert isinstance(opened, LlavaProcessor)
    return opened


def nothing_known(row: Row) -> None:
    return None


def row(prompt: str, *images: str) -> Row:
    refs = tuple(ImageRef(path) for path in images)
    return Row(0, "0", 1, "m.jsonl", prompt, images=refs, sampling=SamplingParams())


@pytest.mark.timeout(60)  # one image after another would wait for ever
def test_images_of_a_row_are_asked_for_together(processor: LlavaProcessor) -> None:
    loader = HeldLoader(num_images=2)
    prepared = prepare(row("<image> and <image>", "a", "b"), processor, loader, nothing_known)
    assert prepared.error is None
    assert prepared.request is not None
    assert [image.content_hash for image in prepared.request.images] == [b"a", b"b"]


def test_a_bad_image_is_the_rows_error(processor: LlavaProcessor) -> None:
    loader = HeldLoader(num_images=2, bad="b")
    prepared = prepare(row("<image> and <image>", "a", "b"), processor, loader, nothing_known)
    assert prepared.request is None
    assert prepared.error is not None
    assert prepared.error.code == ErrorCode.IMAGE_MISSING


def test_no_image_is_loaded_for_a_bad_prompt(processor: LlavaProcessor) -> None:
    loader = HeldLoader(num_images=1)
    prepared = prepare(row("no image token", "a"), processor, loader, nothing_known)
    assert prepared.error is not None
    assert prepared.error.code == ErrorCode.IMAGE_TOKEN_MISMATCH
    assert loader.asked == []


@pytest.mark.parametrize(
    ("workers", "timeout", "message"),
    [
        (-1, 1.0, "image_workers must be from 0 to 1024, got -1"),
        (1, 0.0, "above 0 and at most 86400 seconds, got 0"),
        (1, float("nan"), "got nan"),
        (1, float("inf"), "got inf"),
    ],
)
def test_settings_out_of_range_are_refused(workers: int, timeout: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ImageLoading(workers=workers, timeout_s=timeout)


PIXELS = PixelImage(np.zeros((80, 80, 3), np.uint8), b"pixels", GRID)


class SlowLoader:
    """Images are ready when told to be."""

    def __init__(self) -> None:
        self.under_way: dict[str, Future[ImageInput]] = {}

    def submit(self, ref: ImageRef) -> Future[ImageInput]:
        return self.under_way.setdefault(str(ref.path), Future())

    def wait_ready(self) -> None:
        pass

    def close(self) -> None:
        raise AssertionError("whoever opened it closes it")


def test_rows_that_wait_for_images_hold_no_thread(processor: LlavaProcessor) -> None:
    loader = SlowLoader()
    rows = iter([replace(row("<image>", "a"), index=index) for index in range(20)])
    rows = chain(rows, [replace(row("<image>", "b"), index=20)])
    start = partial(start_preparing, processor=processor, loader=loader, known=nothing_known)
    feed = RowFeed(rows, start, threads=1, depth=30, window=30)
    try:
        assert feed.poll(timeout=0.3) is None
        assert loader.under_way.keys() == {"a", "b"}
        loader.under_way["b"].set_result(PIXELS)
        assert feed.poll(timeout=5.0).row.index == 20
        loader.under_way["a"].set_exception(RowError(ErrorCode.IMAGE_MISSING, "no file"))
        errors = [feed.poll(timeout=5.0).error for _ in range(20)]
        assert {error.code for error in errors} == {ErrorCode.IMAGE_MISSING}
    finally:
        feed.close()


def test_the_first_error_of_several_images_counts(processor: LlavaProcessor) -> None:
    loader = SlowLoader()
    outcome = start_preparing(
        row("<image> and <image>", "a", "b"), processor, loader, nothing_known
    )
    loader.under_way["b"].set_exception(RowError(ErrorCode.IMAGE_UNREADABLE, "b"))
    assert not outcome.done(), "the first image may have an error too"
    loader.under_way["a"].set_exception(RowError(ErrorCode.IMAGE_MISSING, "a"))
    assert outcome.result(timeout=5).error.code is ErrorCode.IMAGE_MISSING


def test_a_pool_that_is_closed_reaches_whoever_polls(processor: LlavaProcessor) -> None:
    loader = SlowLoader()
    start = partial(start_preparing, processor=processor, loader=loader, known=nothing_known)
    feed = RowFeed(iter([row("<image>", "a")]), start, threads=1, depth=3, window=3)
    try:
        assert feed.poll(timeout=0.2) is None
        loader.under_way["a"].set_exception(CancelledError())
        with pytest.raises(CancelledError):
            feed.poll(timeout=5.0)
    finally:
        feed.close()
