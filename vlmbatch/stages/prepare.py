"""A row becomes an engine request: its prompt as tokens, its images as pixels or features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

from vlmbatch.errors import RowError
from vlmbatch.images.loading.loader import ImageLoader
from vlmbatch.models.processor import EncodedPrompt, Processor
from vlmbatch.types import ImageInput, ImageRef, Request, Result, Row


@dataclass(frozen=True, slots=True)
class Prepared:
    """A row with its request, or with the error or the known result that stands for it."""

    row: Row
    request: Request | None = None
    error: RowError | None = None
    known: Result | None = None


def prepare(
    row: Row,
    processor: Processor,
    loader: ImageLoader,
    known: Callable[[Row], Result | None],
) -> Prepared:
    """Tokenize the prompt, have the images loaded. Errors of the row become its result.

    A row whose result ``known`` has needs neither.
    """
    return start_preparing(row, processor, loader, known).result()


def start_preparing(
    row: Row,
    processor: Processor,
    loader: ImageLoader,
    known: Callable[[Row], Result | None],
) -> Future[Prepared]:
    """``prepare`` without waiting for the images: rows that share one hold no threads."""
    outcome: Future[Prepared] = Future()
    light = _without_bytes(row)
    result = known(row)
    if result is not None or row.error is not None:
        outcome.set_result(Prepared(light, known=result, error=None if result else row.error))
        return outcome
    try:
        tokens = processor.tokenize(row)
        loading = [loader.submit(image) for image in row.images]
    except RowError as error:
        outcome.set_result(Prepared(light, error=_without_frames(error)))
        return outcome

    def go_on(_: object = None) -> None:
        if (pending := next((image for image in loading if not image.done()), None)) is not None:
            pending.add_done_callback(go_on)
            return
        try:
            images = [image.result() for image in loading]
            encoded = processor.encode(tokens, images)
            outcome.set_result(Prepared(light, request=_request(light, encoded, images)))
        except RowError as error:
            outcome.set_result(Prepared(light, error=_without_frames(error)))
        except BaseException as error:  # noqa: BLE001  raised again to whoever takes the outcome
            outcome.set_exception(error)

    go_on()
    return outcome


def _request(row: Row, encoded: EncodedPrompt, images: Sequence[ImageInput]) -> Request:
    """The row in the engine's terms."""
    assert row.sampling is not None
    return Request(
        index=row.index,
        token_ids=encoded.token_ids,
        sampling=row.sampling,
        images=() if encoded.inputs is not None else tuple(images),
        image_spans=encoded.image_spans,
        positions=encoded.positions,
        next_position=encoded.next_position,
        inputs=encoded.inputs,
    )


def _without_frames(error: RowError) -> RowError:
    """The error as it waits to be written: the frames that raised it hold the image's bytes."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _without_bytes(row: Row) -> Row:
    """The row as it waits for its answer: thousands may wait, and none needs its file again."""
    if not any(image.num_bytes for image in row.images):
        return row
    images = tuple(ImageRef(image.path, url=image.url) for image in row.images)
    return replace(row, images=images)
