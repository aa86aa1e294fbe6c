from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from pages import MAX_LINES, MAX_WORDS, ORDINALS, Page, make_page
from qwen_packing import fit
from words import WORDS

SEEDS = st.integers(0, 2**40)


def ink(page: Page) -> np.ndarray:
    """Where a picture differs much from its background: (height, width) bool."""
    pixels = np.asarray(page.image, int)
    return np.abs(pixels - page.background.colour).max(-1) > 60


def test_a_seed_gives_one_page() -> None:
    first, again, other = make_page(7), make_page(7), make_page(8)
    assert first == again
    assert first.image.tobytes() == again.image.tobytes()
    assert first.questions == again.questions
    assert first.lines != other.lines


@given(SEEDS)
def test_a_page_has_up_to_three_lines_of_up_to_two_words(seed: int) -> None:
    page = make_page(seed)
    assert 1 <= len(page.lines) <= MAX_LINES == len(ORDINALS)
    assert all(1 <= len(words) <= MAX_WORDS and set(words) <= set(WORDS) for words in page.lines)
    ((word,),) = make_page(seed, one_word=True).lines
    assert word in WORDS


@given(SEEDS)
def test_lines_are_printed_apart_and_wholly_on_the_page(seed: int) -> None:
    page = make_page(seed)
    printed = ink(page)
    assert not printed[0].any() and not printed[-1].any()
    assert not printed[:, 0].any() and not printed[:, -1].any()
    for baseline in page.baselines:
        half = page.font_size // 3
        assert printed[round(baseline) - half : round(baseline) + half].any()


@given(SEEDS)
def test_the_page_is_its_lines(seed: int) -> None:
    whole, *lines = make_page(seed).questions
    assert whole.answer == " ".join(line.answer for line in lines)
    texts = [question.text for question in (whole, *lines)]
    assert len(texts) == len(set(texts))


@given(SEEDS)
def test_print_keeps_its_size_when_the_model_resizes_the_page(seed: int) -> None:
    page = make_page(seed)
    height, width = fit(page.height, page.width)
    assert page.font_size * min(height / page.height, width / page.width) >= 14


def test_words_are_short_and_told_apart() -> None:
    assert len(WORDS) == len(set(WORDS)) == 64
    assert max(map(len, WORDS)) <= 5
