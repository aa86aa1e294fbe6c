from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import decode_image, probe_image
from vlmbatch.manifest import validate
from vlmbatch.manifest.validate import validate_rows
from vlmbatch.models.processor import EncodedPrompt, Tokens
from vlmbatch.types import ImageGrid, ImageRef, Row

LIMITS = ImageLimits()


class Grids:
    """Asks ``find`` about images."""

    def __init__(self, find: Callable[[ImageRef], ImageGrid | None]) -> None:
        self.of = find
        self.closed = threading.Event()

    def close(self) -> None:
        self.closed.set()


class Encoder:
    """Refuses prompts that say so, and images of more than 8 tokens together."""

    def tokenize(self, row: Row) -> Tokens:
        if row.prompt == "long":
            raise RowError(ErrorCode.PROMPT_TOO_LONG, "9 tokens, over the limit of 8")
        return Tokens([1])

    def place(self, tokens: Tokens, grids: Sequence[ImageGrid]) -> EncodedPrompt:
        num_tokens = sum(grid.num_tokens for grid in grids)
        if num_tokens > 8:
            raise RowError(ErrorCode.PROMPT_TOO_LONG, "over the limit of 8")
        return EncodedPrompt([1] * (1 + num_tokens))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "good.jpg"
    Image.effect_noise((32, 64), 50).convert("RGB").save(path)
    return path


def row(index: int, prompt: str = "p", images: tuple[Path, ...] = (), error=None) -> Row:
    refs = tuple(ImageRef(str(path)) for path in images)
    return Row(index, f"r{index}", index + 1, "m.jsonl", prompt, images=refs, error=error)


def probe(ref: ImageRef) -> ImageGrid | None:
    """A token for each 16 x 16 pixels."""
    if ref.url is not None:
        return None
    header = probe_image(ref, LIMITS)
    height, width = header.height // 16, header.width // 16
    return ImageGrid(height, width, height * width, 0)


def codes(rows, check_image=probe) -> list[ErrorCode | None]:
    return [
        None if error is None else error.code
        for _, error in validate_rows(rows, Encoder(), Grids(check_image))
    ]


def test_each_row_with_its_first_error(image, tmp_path):
    missing = tmp_path / "none.jpg"
    bad = RowError(ErrorCode.PROMPT_INVALID, "null")
    rows = [
        row(0, images=(image,)),
        row(1, images=(image, missing)),
        row(2, "long", images=(missing,)),
        row(3, "long", error=bad),
        row(4),
    ]
    assert codes(rows) == [
        None,
        ErrorCode.IMAGE_MISSING,
        ErrorCode.PROMPT_TOO_LONG,
        ErrorCode.PROMPT_INVALID,
        None,
    ]


def test_images_count_in_the_prompt_by_their_sizes(image, tmp_path):
    rows = [row(0, images=(image,)), row(1, images=(image, image)), row(2, images=(tmp_path,))]
    assert codes(rows) == [None, ErrorCode.PROMPT_TOO_LONG, ErrorCode.IMAGE_UNREADABLE]


def test_what_is_behind_a_url_is_not_fetched(image):
    refs = (ImageRef(str(image)), ImageRef(url="https://example.com/a.png"))
    good, bad = (replace(row(n), images=refs[n:]) for n in range(2))
    assert codes([good, bad, replace(row(2, "long"), images=refs)]) == [
        None,
        None,
        ErrorCode.PROMPT_TOO_LONG,
    ]


def test_only_decoding_finds_a_truncated_image(image):
    image.write_bytes(image.read_bytes()[:-500])
    assert codes([row(0, images=(image,))]) == [None]

    def decode(ref: ImageRef) -> ImageGrid | None:
        decode_image(ref, LIMITS)
        return probe(ref)

    decoded = codes([row(0, images=(image,))], decode)
    assert decoded == [ErrorCode.IMAGE_UNREADABLE]


def test_order_is_kept_over_many_rows(image, tmp_path):
    rows = [row(n, images=(image if n % 3 else tmp_path,)) for n in range(500)]
    checked = list(validate_rows(rows, Encoder(), Grids(probe)))
    assert [item.index for item, _ in checked] == list(range(500))
    assert [error is None for _, error in checked] == [bool(n % 3) for n in range(500)]


def test_endless_rows_are_read_a_bounded_window_ahead():
    taken = itertools.count()
    rows = (row(next(taken)) for _ in itertools.count())
    checked = validate_rows(rows, Encoder(), Grids(probe))
    for _ in range(10):
        next(checked)
    assert next(taken) <= 10 + validate._WINDOW
    checked.close()


@pytest.mark.parametrize(("shared", "ahead"), [(False, 4), (True, validate._WINDOW)])
def test_embedded_images_are_held_up_to_a_limit_of_bytes(monkeypatch, shared, ahead):
    monkeypatch.setattr(validate, "_WINDOW_BYTES", 350)
    taken, photo = itertools.count(), bytes(100)
    rows = (
        Row(
            n := next(taken), "", 1, "m", images=(ImageRef(data=photo if shared else b"%100d" % n),)
        )
        for _ in itertools.count()
    )
    checked = validate_rows(rows, Encoder(), Grids(lambda ref: ImageGrid(1, 1, 1, 3)))
    for _ in range(10):
        next(checked)
    assert next(taken) == 9 + ahead
    checked.close()


@pytest.mark.parametrize("read", [0, 1])
def test_what_is_under_way_is_given_up_at_the_end(read):
    """Threads that wait for an image would be waited for."""
    begun = threading.Event()

    def stall(ref: ImageRef) -> ImageGrid | None:
        begun.set()
        assert grids.closed.wait(10)
        raise CancelledError

    def rows():
        yield row(0)
        yield row(1, images=(Path("a.jpg"),))
        assert begun.wait(10)
        if not read:
            raise KeyboardInterrupt
        yield from (row(n) for n in range(2, 100))

    grids = Grids(stall)
    checked = validate_rows(rows(), Encoder(), grids)
    if read:
        assert next(checked)[1] is None
        checked.close()
    else:
        with pytest.raises(KeyboardInterrupt):
            next(checked)
    assert grids.closed.is_set()
