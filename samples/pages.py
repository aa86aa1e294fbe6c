"""Pages of printed words. Everything follows from the seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cached_property

from drawing import draw_background, font_of
from objects import Background
from PIL import Image, ImageDraw
from questions import Question, choose_questions
from words import WORDS

PAGE_QUESTION_KINDS = ("read", "line")
ORDINALS = ("first", "second", "third")
MAX_LINES, MAX_WORDS = 3, 2  # on a page, in a line
FONT_SIZES = (17.0, 20.0)  # pixels, so that a word has some tokens of the picture
SCALES = (1.0, 1.3)  # drawn that much larger


@dataclass(frozen=True)
class Page:
    """One to three lines of one or two words."""

    seed: int
    width: int  # pixels
    height: int  # pixels
    background: Background
    font_size: int  # pixels
    left: float  # of the lines, in pixels
    baselines: tuple[float, ...]  # their middles, in pixels from the top
    lines: tuple[tuple[str, ...], ...]

    @cached_property
    def image(self) -> Image.Image:
        """The picture: RGB, ``width`` x ``height``."""
        image = draw_background(self.background, (self.width, self.height))
        pen, font = ImageDraw.Draw(image), font_of(self.font_size)
        ink = (240, 240, 240) if self.background.is_dark else (20, 20, 20)
        for y, words in zip(self.baselines, self.lines, strict=True):
            pen.text((self.left, y), " ".join(words), fill=ink, font=font, anchor="lm")
        return image

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        """All that can be asked: for the whole page and for each line."""
        lines = [" ".join(words) for words in self.lines]
        asked = [Question("read", "What is written on the page?", " ".join(lines))]
        for ordinal, line in zip(ORDINALS, lines, strict=False):
            asked.append(Question("line", f"What is written in the {ordinal} line?", line))
        return tuple(asked)

    def choose_questions(self, at_most: dict[str, int]) -> list[Question]:
        """See ``questions.choose_questions``."""
        return choose_questions(self.seed, self.questions, at_most)


def make_page(seed: int, one_word: bool = False) -> Page:
    """The page of this seed, always the same one; that with a single word is another."""
    rng = random.Random(f"{seed} page")
    lines: tuple[tuple[str, ...], ...] = ((rng.choice(WORDS),),)
    if not one_word:
        lines = tuple(
            tuple(rng.choices(WORDS, k=rng.randint(1, MAX_WORDS)))
            for _ in range(rng.randint(1, MAX_LINES))
        )
    font_size = round(rng.uniform(*FONT_SIZES) * rng.uniform(*SCALES))
    pitch = rng.uniform(1.15, 1.5) * font_size
    text_width = max(font_of(font_size).getlength(" ".join(words)) for words in lines)
    margin, right, top, bottom = (rng.uniform(0.3, 0.7) * font_size for _ in range(4))
    grey = rng.randint(20, 60) if rng.random() < 0.2 else rng.randint(205, 250)
    red, green, blue = (grey + rng.randint(-8, 5) for _ in range(3))
    noise = rng.randint(4, 14) if rng.random() < 0.5 else 0
    return Page(
        seed=seed,
        width=round(margin + text_width + right),
        height=round(top + pitch * len(lines) + bottom),
        background=Background((red, green, blue), noise, rng.choice((16, 32, 64)), seed),
        font_size=font_size,
        left=margin,
        baselines=tuple(top + pitch * (index + 0.5) for index in range(len(lines))),
        lines=lines,
    )
