from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.image_tokens import place_images
from vlmbatch.types import ImageSpan

IMAGE = 99
SIZES = st.lists(st.integers(1, 5), max_size=4)


def texts(num: int) -> st.SearchStrategy[list[list[int]]]:
    return st.lists(st.lists(st.integers(0, 9), max_size=3), min_size=num, max_size=num)


def join(between: list[list[int]], runs: list[int]) -> list[int]:
    ids = list(between[0])
    for length, text in zip(runs, between[1:], strict=True):
        ids += [IMAGE] * length + text
    return ids


@given(st.data(), SIZES)
def test_single_and_full_tokens_give_the_same_prompt(data: st.DataObject, sizes: list[int]) -> None:
    between = data.draw(texts(len(sizes) + 1))
    full = join(between, sizes)
    from_single = place_images(join(between, [1] * len(sizes)), IMAGE, sizes)
    from_full = place_images(full, IMAGE, sizes)
    assert from_single == from_full
    assert from_full[0] == full
    spans = from_full[1]
    assert [span.length for span in spans] == sizes
    assert [span.image for span in spans] == list(range(len(sizes)))
    assert all(full[s.start : s.start + s.length] == [IMAGE] * s.length for s in spans)


@given(st.data(), SIZES)
def test_spans_cover_each_image_token_once(data: st.DataObject, sizes: list[int]) -> None:
    ids = data.draw(st.permutations([IMAGE] * sum(sizes) + [1, 2, 3]))
    placed, spans = place_images(ids, IMAGE, sizes, strict=True)
    assert placed == ids
    covered = [span.start + i for span in spans for i in range(span.length)]
    assert covered == [i for i, token_id in enumerate(ids) if token_id == IMAGE]
    features = [(span.image, span.offset + i) for span in spans for i in range(span.length)]
    assert features == [(image, i) for image, size in enumerate(sizes) for i in range(size)]


def test_some_images_single_and_some_full() -> None:
    ids, spans = place_images([1, IMAGE, 2, IMAGE, IMAGE, IMAGE, 3], IMAGE, [3, 3])
    assert ids == [1, *[IMAGE] * 3, 2, *[IMAGE] * 3, 3]
    assert spans == (ImageSpan(1, 3, 0), ImageSpan(5, 3, 1))


@pytest.mark.parametrize(
    ("found", "sizes", "strict", "said"),
    [
        (
            *(0, [576], False),
            "1 image: expected 576 or 1 image tokens in the prompt, found 0: write <image> where "
            "it belongs",
        ),
        (0, [4, 4], False, "found 0: write <image> where each of them belongs"),
        (2, [576], False, "expected 576 or 1 image tokens in the prompt, found 2"),
        (575, [576], False, "found 575"),
        (1, [576], True, "1 image: expected 576 image tokens in the prompt, found 1"),
        (0, [4], True, "1 image: expected 4 image tokens in the prompt, found 0"),
        (3, [4, 4], False, "2 images: expected 8 (2 x 4) or 2 image tokens in the prompt, found 3"),
        (2, [3, 4], True, "2 images: expected 7 image tokens in the prompt, found 2"),
        (1, [], False, "0 images: expected 0 image tokens in the prompt, found 1"),
    ],
)
def test_mismatch_states_both_numbers(
    found: int, sizes: list[int], strict: bool, said: str
) -> None:
    with pytest.raises(RowError) as caught:
        place_images([1, *[IMAGE] * found, 2], IMAGE, sizes, strict)
    assert caught.value.code == ErrorCode.IMAGE_TOKEN_MISMATCH
    assert caught.value.message.endswith(said)
