"""JPEGs decoded at a part of their size: as good as whole ones, for whatever a model needs."""

from __future__ import annotations

import contextlib
from functools import cache
from typing import Any

import numpy as np
import pytest
from encoding import encoded
from hypothesis import example, given, settings
from hypothesis import strategies as st
from image_processors import CUBIC, PROCESSORS, llava, qwen
from PIL import Image
from worker_processes import PHOTOS, PROCESSOR

from vlmbatch.config import ImageLimits, ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import decode_image, decode_scaled, probe_image
from vlmbatch.images.loading.loader import InProcessLoader
from vlmbatch.images.loading.pool import ImageWorkers
from vlmbatch.images.loading.prepare import prepare_image
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.types import ImageRef, PixelImage

LIMITS = ImageLimits()
SIDES = st.integers(40, 700)


@cache
def photo() -> Image.Image:
    with Image.open(PHOTOS / "coffee.jpg") as opened:
        return opened.convert("RGB")


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A corner of a photograph in a frame: neither symmetric nor the same at its edges."""
    made = photo().resize((width, height), CUBIC)
    made.paste((250, 240, 30), (0, 0, width // 3, height // 4))
    made.paste((10, 20, 60), (width - width // 10 - 1, 0, width, height))
    return made.convert(mode)


def jpeg(size: tuple[int, int], mode: str = "RGB", orientation: int = 1, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(picture(*size, mode), "JPEG", exif=exif, quality=92, **options)


def both(data: bytes, processor: ImageProcessor) -> tuple[PixelImage, PixelImage]:
    ref = ImageRef(data=data)
    exact = prepare_image(ref, LIMITS, processor, "exact")
    return exact, prepare_image(ref, LIMITS, processor, "scaled")


def difference(exact: PixelImage, scaled: PixelImage) -> float:
    """The mean over all channels of all pixels, of 255."""
    return float(np.abs(exact.pixels.astype(int) - scaled.pixels).mean())


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=15)
@given(
    width=SIDES,
    height=SIDES,
    mode=st.sampled_from(["RGB", "L", "CMYK"]),
    orientation=st.integers(1, 8),
    progressive=st.booleans(),
    subsampling=st.sampled_from([0, 1, 2]),
)
@example(641, 485, "RGB", 3, False, 2)
@example(649, 481, "RGB", 6, True, 2)
@example(161, 323, "CMYK", 8, True, 0)
@example(323, 163, "L", 7, False, 0)
def test_pixels_are_nearly_those_of_the_whole(
    name: str,
    width: int,
    height: int,
    mode: str,
    orientation: int,
    progressive: bool,
    subsampling: int,
) -> None:
    processor = PROCESSORS[name]
    options = {} if mode == "L" else {"subsampling": subsampling}
    data = jpeg((width, height), mode, orientation, progressive=progressive, **options)
    exact, scaled = both(data, processor)
    assert scaled.pixels.shape == exact.pixels.shape
    header = probe_image(ImageRef(data=data), LIMITS)
    assert scaled.grid == exact.grid == processor.grid(header.height, header.width)
    assert difference(exact, scaled) < 18  # up to 14 where edges lie a few pixels apart


@pytest.mark.parametrize("name", PROCESSORS)
@settings(max_examples=20)
@given(width=SIDES, height=SIDES, orientation=st.integers(1, 8))
def test_there_are_never_fewer_pixels_than_needed(
    name: str, width: int, height: int, orientation: int
) -> None:
    needed = PROCESSORS[name].needed
    ref = ImageRef(data=jpeg((width, height), "L", orientation))
    image, reduced = decode_scaled(ref, LIMITS, needed)
    upright = decode_image(ref, LIMITS)
    least = needed(upright.height, upright.width)
    if reduced is None:
        assert image.tobytes() == upright.tobytes()
        assert not all(
            side >= 2 * need
            for side, need in zip((upright.height, upright.width), least, strict=True)
        )
        return
    assert (reduced.height, reduced.width) == (upright.height, upright.width)
    assert image.height >= least[0] and image.width >= least[1]
    scale = round(1 / reduced.scale)
    assert scale in (2, 4, 8)
    assert image.size == (-(-upright.width // scale), -(-upright.height // scale))
    left, top, right, bottom = reduced.box
    assert left == 0 or right == image.width
    assert top == 0 or bottom == image.height
    assert (right - left, bottom - top) == (upright.width / scale, upright.height / scale)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rests_of_the_last_cells_move_nothing(orientation: int) -> None:
    """633 pixels are 79.125 eighths: 80 are decoded, of which the last counts for one pixel."""
    exact, scaled = both(jpeg((633, 633), orientation=orientation), llava((40, 40), None))
    assert difference(exact, scaled) < 1


def test_a_row_that_asks_for_fewer_pixels_needs_fewer() -> None:
    ref = ImageRef(data=jpeg((640, 480)), resolution=ImageResolution(max_pixels=1600))
    own = qwen().at(ref.resolution)
    assert decode_scaled(ref, LIMITS, own.needed)[0].size == (80, 60)
    expected = own.process(*decode_scaled(ref, LIMITS, own.needed))
    scaled = prepare_image(ref, LIMITS, qwen(), "scaled")
    assert scaled.content_hash == expected.content_hash
    assert scaled.content_hash != prepare_image(ref, LIMITS, qwen(), "exact").content_hash


@pytest.mark.parametrize(
    "data",
    [
        encoded(picture(640, 480), "PNG"),
        encoded(picture(640, 480), "WEBP"),
        encoded(picture(640, 480), "TIFF"),
        jpeg((90, 79)),
        jpeg((79, 500)),
    ],
    ids=["PNG", "WebP", "TIFF", "a small JPEG", "a narrow JPEG"],
)
def test_what_cannot_be_scaled_is_exact(data: bytes) -> None:
    exact, scaled = both(data, llava((40, 40), None))
    assert scaled.content_hash == exact.content_hash


def test_limits_are_of_the_size_in_the_header() -> None:
    limits = ImageLimits(max_pixels=640 * 480 - 1)
    with pytest.raises(RowError, match=r"640 x 480 = 307200 pixels, over the limit of 307199"):
        prepare_image(ImageRef(data=jpeg((640, 480))), limits, qwen(), "scaled")


@pytest.mark.parametrize("data", [jpeg((640, 480))[:9000], jpeg((640, 2))], ids=["cut", "strip"])
def test_errors_are_those_of_the_whole(data: bytes) -> None:
    errors = []
    for decoder in ("exact", "scaled"):
        with pytest.raises(RowError) as caught:
            prepare_image(ImageRef(data=data), LIMITS, qwen(), decoder)
        errors.append((caught.value.code, caught.value.message.partition(":")[0]))
    assert errors[0] == errors[1]


def test_worker_processes_decode_as_this_one_does() -> None:
    refs = [ImageRef(data=jpeg((643, 485), orientation=8)), ImageRef(data=b"\xff\xd8\xff nothing")]
    here = InProcessLoader(LIMITS, PROCESSOR, "scaled")
    workers = ImageWorkers(LIMITS, PROCESSOR, 1, 30.0, 8, decoder="scaled")
    with contextlib.closing(workers):
        ours, theirs = (loader.submit(refs[0]).result() for loader in (workers, here))
        assert isinstance(ours, PixelImage) and isinstance(theirs, PixelImage)
        assert ours.content_hash == theirs.content_hash
        exact = prepare_image(refs[0], LIMITS, PROCESSOR, "exact")
        assert ours.content_hash != exact.content_hash
        with pytest.raises(RowError) as caught:
            workers.submit(refs[1]).result()
    assert caught.value.code == ErrorCode.IMAGE_UNREADABLE
