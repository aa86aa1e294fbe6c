"""Images scaled down before a model's own processing."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models.shrink import NO_SHRINK, Shrink

SIDES = st.integers(1, 20_000)


@given(SIDES, SIDES, st.none() | st.integers(1, 10**7), st.none() | st.integers(1, 5000))
@example(1, 20_000, 7, None)
@example(1288, 1288, None, 1288)
@example(20_000, 3, 50, 100)
def test_within_the_limits_and_no_longer_strip(
    height: int, width: int, max_pixels: int | None, longest_side: int | None
) -> None:
    shrunk = Shrink(max_pixels, longest_side).size(height, width)
    assert 1 <= shrunk[0] <= height and 1 <= shrunk[1] <= width
    if max_pixels is not None:
        assert shrunk[0] * shrunk[1] <= max_pixels
    if longest_side is not None:
        assert max(shrunk) <= longest_side
        longer = Shrink(longest_side=longest_side).size(height, width)
        assert max(longer) == min(longest_side, max(height, width))
        assert max(longer) * min(height, width) <= max(height, width) * min(longer)
    fits = (max_pixels is None or height * width <= max_pixels) and (
        longest_side is None or max(height, width) <= longest_side
    )
    assert (shrunk == (height, width)) == fits


def test_pixels_at_that_size() -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((200, 100))
    assert NO_SHRINK.apply(image) is image
    expected = image.resize((50, 25), Image.Resampling.BICUBIC)
    assert Shrink(longest_side=50).apply(image).tobytes() == expected.tobytes()


def test_what_a_row_asks_for() -> None:
    run = Shrink.of(ImageResolution(max_pixels=500, longest_side=90))
    assert run == Shrink(500, 90) and run.at(None) is run
    assert run.at(ImageResolution(max_pixels=499)) == Shrink(499, 90)
    assert NO_SHRINK.at(ImageResolution(max_pixels=10**9)) == Shrink(10**9)
    for resolution, said in (
        (ImageResolution(max_pixels=501), "max_pixels is 501, above the run's 500"),
        (ImageResolution(min_pixels=4), "min_pixels is 4, but the model scales no images up"),
    ):
        with pytest.raises(RowError, match=said) as caught:
            run.at(resolution)
        assert caught.value.code is ErrorCode.RESOLUTION_INVALID
    with pytest.raises(ConfigError, match="min_pixels is given as 4, but the model scales no"):
        Shrink.of(ImageResolution(min_pixels=4))
