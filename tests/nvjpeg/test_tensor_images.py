"""Images on a device are resized, turned and padded as Pillow's are, to the last bit."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import PIL
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from image_processors import PROCESSORS
from PIL import Image, ImageOps
from vlmbatch_kernels.resample import Lines, resample

from vlmbatch.nvjpeg import resizing
from vlmbatch.nvjpeg.resampling import FILTERS
from vlmbatch.nvjpeg.resizing import Resizing, make, tensor_of
from vlmbatch.nvjpeg.tensor_image import TensorImage

pytestmark = pytest.mark.skipif(
    int(PIL.__version__.partition(".")[0]) < 13,
    reason="needs Pillow 13, whose order of the two passes is ours (pip install 'pillow>=13')",
)
Filter = Image.Resampling


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """The worst that there is to resize."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def on_device(image: Image.Image) -> TensorImage:
    """As nvJPEG leaves it: in planes, which may be read by words where lines are multiples of 4."""
    return TensorImage(torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous())


def largest_difference(ours: object, theirs: object) -> int:
    return int(np.abs(np.asarray(ours).astype(int) - np.asarray(theirs)).max())


SIDES = st.integers(1, 90)
EDGES = st.floats(0, 0.45)


@given(
    height=SIDES,
    width=SIDES,
    down=SIDES,
    across=SIDES,
    resample=st.sampled_from(sorted(FILTERS)),
    edges=st.none() | st.tuples(EDGES, EDGES, EDGES, EDGES),
    seed=st.integers(0, 9),
)
@example(30, 49, 52, 7, Filter.HAMMING, (0.0, 0.27406760637256283, 0.0, 0.15268666916253648), 0)
def test_resized_pixels_are_pillows(
    height: int,
    width: int,
    down: int,
    across: int,
    resample: Filter,
    edges: tuple[float, float, float, float] | None,
    seed: int,
) -> None:
    image, box = noise(height, width, seed), None
    if edges is not None:
        left, top, right, bottom = edges
        box = (left * width, top * height, width - right * width, height - bottom * height)
    ours = on_device(image).resize((across, down), resample, box)
    assert (ours.width, ours.height) == (across, down)
    assert largest_difference(ours, image.resize((across, down), resample, box)) == 0


def test_the_filter_without_shares_is_pillows_own() -> None:
    image = noise(100, 140)
    ours = on_device(image).resize((70, 50), Filter.NEAREST)
    assert largest_difference(ours, image.resize((70, 50), Filter.NEAREST)) == 0


@pytest.mark.parametrize("width", [64, 63])
def test_planes_are_read_by_words_where_lines_are_made_of_them(
    monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    passes: list[Sequence[Lines]] = []

    def resampled(weights: torch.Tensor, given: Sequence[Sequence[Lines]]) -> None:
        passes.extend(given)
        resample(weights, given)

    monkeypatch.setattr(resizing, "resample_lines", resampled)
    image = noise(48, width)
    ours = on_device(image).resize((31, 17), Filter.BICUBIC)
    assert largest_difference(ours, image.resize((31, 17), Filter.BICUBIC)) == 0
    assert [[lines.by_words for lines in each] for each in passes] == [[width == 64], [False]]


@pytest.mark.parametrize("size", [(4032, 3024), (1080, 1920), (2480, 3508), (640, 480)])
def test_photos_and_pages(size: tuple[int, int]) -> None:
    width, height = size[0] // 4, size[1] // 4
    image = noise(height, width)
    for to in ((width * 336 // min(width, height), height * 336 // min(width, height)), (98, 77)):
        ours = on_device(image).resize(to, Filter.BICUBIC)
        assert largest_difference(ours, image.resize(to, Filter.BICUBIC)) == 0


def test_an_image_of_that_size_is_itself() -> None:
    image = on_device(noise(30, 40))
    assert image.resize((40, 30), Filter.BICUBIC) is image


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Of each time that something is made, the images of each pass, which is a kernel on a GPU."""
    counted: list[list[int]] = []

    def counting(weights: torch.Tensor, passes: Sequence[Sequence[Lines]]) -> None:
        counted.append([len(lines) for lines in passes])
        resample(weights, passes)

    monkeypatch.setattr(resizing, "resample_lines", counting)
    return counted


def varied(number: int) -> tuple[Callable[[], TensorImage], Image.Image]:
    """An image of some size, turned, perhaps resized before or on a square, to be resized to some
    part of it; and Pillow's."""
    decoded = noise(20 + 7 * number % 41, 20 + 11 * number % 37, number)
    decoded.getexif()[0x0112] = orientation = 1 + number % 8
    twice, on_square = number % 3 == 0, number % 3 == 1
    square, color = Image.new("RGB", (70, 70), (200, 3, number)), (200, 3, number)
    whole = ImageOps.exif_transpose(decoded)
    if twice:
        whole = whole.resize((25, 28), Filter.BICUBIC)
    if on_square:
        square.paste(whole, (3, 9))
        whole = square
    size = 9 + number, 30 - number
    box = (1.5, 0.25, whole.width - 2.25, whole.height - 3.0) if number % 4 == 2 else None

    def ours() -> TensorImage:
        image = on_device(decoded).upright(orientation)
        if twice:
            image = image.resize((25, 28), Filter.BICUBIC)
        if on_square:
            image = image.on_square(70, (3, 9), color)
        return image.resize(size, Filter.LANCZOS, box)

    return ours, whole.resize(size, Filter.LANCZOS, box)


def test_images_made_together_are_those_made_alone(launches: list[list[int]]) -> None:
    cases = [varied(number) for number in range(24)]
    together, alone = ([ours() for ours, _ in cases] for _ in range(2))
    assert launches == []
    made = [image.pixels for image in together if isinstance(image.pixels, Resizing)]
    assert {each.columns_first for each in made} == {False, True}
    make(made)
    assert launches == [[24, 24, 8, 8]]
    for image, by_itself, (_, theirs) in zip(together, alone, cases, strict=True):
        assert largest_difference(image, theirs) == 0
        assert largest_difference(by_itself, theirs) == 0
    assert len(launches) == 1 + 24
    make(image.pixels for image in together + alone)
    assert len(launches) == 1 + 24  # nothing is made twice


def test_what_two_are_made_of_is_made_once(launches: list[list[int]]) -> None:
    small = on_device(noise(60, 50)).resize((30, 40), Filter.BICUBIC)
    images = [small.resize(size, Filter.BICUBIC) for size in ((8, 9), (20, 12))]
    make(image.pixels for image in images)
    assert launches == [[1, 1, 2, 2]]


def test_made_images_lie_as_the_host_wants_them_and_let_their_sources_go() -> None:
    decoded = on_device(noise(60, 50))
    image = decoded.on_square(60, (5, 0), (1, 2, 3)).resize((20, 30), Filter.BICUBIC)
    source = weakref.ref(decoded.pixels)
    make([image.pixels])
    assert tensor_of(image.pixels).permute(1, 2, 0).is_contiguous()  # a copy is no kernel
    del decoded
    assert source() is None


def test_too_little_memory_is_told_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    image, theirs = noise(300, 200), noise(300, 200).resize((40, 60), Filter.BICUBIC)
    ours = on_device(image).resize((40, 60), Filter.BICUBIC)
    with monkeypatch.context() as patch:
        patch.setattr(resizing, "resample_lines", full)
        with pytest.raises(MemoryError):
            make([ours.pixels])
        with pytest.raises(MemoryError):
            np.asarray(ours)
    assert largest_difference(ours, theirs) == 0


@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_turned_as_pillow_turns(orientation: int | None) -> None:
    image = noise(30, 50)
    image.getexif()[0x0112] = orientation or 1
    upright = ImageOps.exif_transpose(image)
    assert largest_difference(on_device(image).upright(orientation), upright) == 0


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (44, 44), (1, 60)])
def test_a_square_of_one_colour(size: tuple[int, int]) -> None:
    image, side, color = noise(*size), max(size), (200, 3, 77)
    place = ((side - size[1]) // 2, (side - size[0]) // 2)
    square = Image.new("RGB", (side, side), color)
    square.paste(image, place)
    ours = on_device(image).on_square(side, place, color)
    assert (ours.mode, ours.height, ours.width) == ("RGB", side, side)
    assert largest_difference(ours, square) == 0
    for to in ((20, 20), (90, 80)):
        resized = square.resize(to, Filter.BICUBIC)
        assert largest_difference(ours.resize(to, Filter.BICUBIC), resized) == 0


@pytest.mark.parametrize("name", PROCESSORS)
@pytest.mark.parametrize("size", [(333, 500), (500, 333), (60, 60), (37, 400)])
def test_every_image_processor_takes_them(
    name: str, size: tuple[int, int], launches: list[list[int]]
) -> None:
    image, processor = noise(*size), PROCESSORS[name]
    theirs, resized = processor.process(image), processor.resize(on_device(image))
    assert launches == []  # the first step only says what is to be made
    make(each.pixels for each in resized.images if isinstance(each, TensorImage))
    made = len(launches)
    ours = processor.finish(resized)
    assert len(launches) == made <= 1  # and the second one launches nothing
    assert ours.grid == theirs.grid
    assert ours.pixels.flags.c_contiguous
    assert ours.pixels.dtype == np.uint8
    assert largest_difference(ours.pixels, theirs.pixels) == 0
