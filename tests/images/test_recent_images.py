"""Recent images against a plain model of least-recently-used, under random operations."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pixel_scaling import GRID

from vlmbatch.images.loading.process import Decoded
from vlmbatch.images.loading.recent import ImageKey, RecentImages
from vlmbatch.types import PixelImage

OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["get", "put", "pop"]), st.integers(0, 5), st.integers(1, 60))
)


def decoded(num_bytes: int) -> Decoded:
    return Decoded(PixelImage(np.zeros(num_bytes, np.uint8), b"", GRID), None)


def kept(max_bytes: int) -> RecentImages[ImageKey, Decoded]:
    return RecentImages(max_bytes, lambda decoded: decoded.image.pixels.nbytes)


@given(OPERATIONS)
def test_the_most_recently_used_are_kept_within_the_bound(
    operations: list[tuple[str, int, int]],
) -> None:
    recent, model = kept(100), list[tuple[int, Decoded]]()
    for operation, number, num_bytes in operations:
        key = str(number), None, None, "", None
        found = next((image for name, image in model if name == number), None)
        if operation == "get":
            assert recent.get(key) is found
        others = [(name, image) for name, image in model if name != number]
        if operation == "put":
            found = decoded(num_bytes)
            recent.put(key, found)
        elif operation == "pop":
            assert recent.pop(key) is found
            found = None
        model = others if found is None else [*others, (number, found)]
        while sum(image.image.pixels.nbytes for _, image in model) > 100:
            model.pop(0)
    for number in range(6):
        expected = next((image for name, image in model if name == number), None)
        assert recent.get((str(number), None, None, "", None)) is expected


def test_an_image_above_the_bound_is_not_kept() -> None:
    recent = kept(0)
    recent.put(("a", None, None, "", None), decoded(1))
    assert recent.get(("a", None, None, "", None)) is None
