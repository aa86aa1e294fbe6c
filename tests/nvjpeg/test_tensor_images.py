"""Images on a device are resized, turned and padded as Pillow's are, to the last bit."""

from __future__ import annotations

import numpy as np
import PIL
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_processors import PROCESSORS
from PIL import Image, ImageOps

from vlmbatch.nvjpeg import tensor_image
from vlmbatch.nvjpeg.resampling import FILTERS
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
    return TensorImage(torch.from_numpy(np.array(image)).permute(2, 0, 1))


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


def test_too_little_memory_is_told_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(tensor_image, "resample_lines", full)
    with pytest.raises(MemoryError):
        on_device(noise(300, 200)).resize((40, 60), Filter.BICUBIC)


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
def test_every_image_processor_takes_them(name: str, size: tuple[int, int]) -> None:
    image, processor = noise(*size), PROCESSORS[name]
    ours, theirs = processor.process(on_device(image)), processor.process(image)
    assert ours.grid == theirs.grid
    assert ours.pixels.flags.c_contiguous
    assert ours.pixels.dtype == np.uint8
    assert largest_difference(ours.pixels, theirs.pixels) == 0
