"""Checking rows without a model: prompt, image tokens, context length, images."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from vlmbatch.errors import RowError
from vlmbatch.images.read_ahead import read_ahead
from vlmbatch.models.processor import EncodedPrompt, Tokens
from vlmbatch.types import ImageGrid, ImageRef, Row

THREADS = 4  # headers are small: more than one because files may lie on a network
FETCH_THREADS = 32  # where images are behind URLs
_WINDOW = 64
_WINDOW_BYTES = 2**27  # of embedded images, and one row more


class PromptEncoder(Protocol):
    """The part of a ``Processor`` that needs no pixels."""

    def tokenize(self, row: Row, /) -> Tokens: ...

    def place(self, tokens: Tokens, grids: Sequence[ImageGrid], /) -> EncodedPrompt: ...


class ImageGrids(Protocol):
    """What the model makes of images. Thread-safe."""

    def of(self, ref: ImageRef, /) -> ImageGrid | None:
        """None of features behind a URL, which the run alone fetches. Raises RowError."""
        ...

    def close(self) -> None:
        """Give up what may take long: ``of`` raises CancelledError."""
        ...


@dataclass(frozen=True, slots=True)
class RowSize:
    """``prompt_tokens``: with those of its images. None: features behind a URL are not known."""

    prompt_tokens: int | None
    grids: tuple[ImageGrid, ...]


def validate_rows(
    rows: Iterable[Row],
    encoder: PromptEncoder,
    images: ImageGrids,
    threads: int = THREADS,
) -> Generator[tuple[Row, RowError | None]]:
    """Yield every row, in order, with the first thing that is wrong with it; as ``sized_rows``."""
    for row, found in sized_rows(rows, encoder, images, threads):
        yield row, found if isinstance(found, RowError) else None


def sized_rows(
    rows: Iterable[Row],
    encoder: PromptEncoder,
    images: ImageGrids,
    threads: int = THREADS,
) -> Generator[tuple[Row, RowSize | RowError]]:
    """Yield every row, in order, with its size, or the first thing that is wrong with it.

    ``images`` is asked on ``threads`` threads, at most ``_WINDOW`` rows or ``_WINDOW_BYTES`` of
    images ahead, and closed at the end. Tokenizers stay on the caller's thread.
    """
    check = partial(_with_images, encoder=encoder, images=images)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="validate")

    def start(row: Row) -> Future[RowSize | RowError]:
        outcome = row.error or _tokenized(row, encoder)
        if row.images and not isinstance(outcome, RowError):
            return pool.submit(check, row, outcome)
        known: Future[RowSize | RowError] = Future()
        known.set_result(outcome if isinstance(outcome, RowError) else check(row, outcome))
        return known

    try:
        yield from read_ahead(((row, start(row)) for row in rows), _WINDOW, _WINDOW_BYTES)
    finally:
        images.close()  # first: the threads wait for what is under way
        pool.shutdown(cancel_futures=True)


def _tokenized(row: Row, encoder: PromptEncoder) -> Tokens | RowError:
    try:
        return encoder.tokenize(row)
    except RowError as error:
        return error


def _with_images(
    row: Row,
    tokens: Tokens,
    encoder: PromptEncoder,
    images: ImageGrids,
) -> RowSize | RowError:
    try:
        grids = [grid for image in row.images if (grid := images.of(image)) is not None]
        if len(grids) < len(row.images):
            return RowSize(None, tuple(grids))
        return RowSize(len(encoder.place(tokens, grids).token_ids), tuple(grids))
    except RowError as error:
        return error
