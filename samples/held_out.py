"""Questions of all kinds about pictures that the second sample model was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice

from pages import PAGE_QUESTION_KINDS, Page, make_page
from pairs import PAIR_QUESTION_KINDS, Pair
from PIL import Image
from questions import QUESTION_KINDS, Question
from scenes import HELD_OUT_SEED, Scene, make_scene

ALL_KINDS = (*QUESTION_KINDS, *PAGE_QUESTION_KINDS, *PAIR_QUESTION_KINDS)


@dataclass(frozen=True)
class Asked:
    """A question about one picture or two."""

    name: str
    pictures: tuple[Scene | Page, ...]
    question: Question

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(picture.image for picture in self.pictures)


def held_out_questions(num_questions: int, first_seed: int = HELD_OUT_SEED) -> list[Asked]:
    """As many questions of each kind as nearly as can be, each about pictures of its own."""
    return list(islice(_ask_forever(first_seed), num_questions))


def ask(kind: str, seed: int) -> Asked | None:
    """A question of this kind about the picture or pictures of this seed, if it has one."""
    pictures: tuple[Scene | Page, ...]
    if kind in PAGE_QUESTION_KINDS:
        page = make_page(seed)
        pictures, questions = (page,), page.choose_questions({kind: 1})
    elif kind in PAIR_QUESTION_KINDS:
        pair = Pair(make_scene(seed, square=False), make_scene(seed + 1, square=False))
        pictures, questions = pair.scenes, pair.choose_questions({kind: 1})
    else:
        scene = make_scene(seed, square=False)
        pictures, questions = (scene,), scene.choose_questions({kind: 1})
    if not questions:
        return None
    return Asked(f"{seed}-{kind.replace(' ', '-')}", pictures, questions[0])


def _ask_forever(first_seed: int) -> Iterator[Asked]:
    seeds = count(first_seed, 2)
    for kind in cycle(ALL_KINDS):
        yield next(asked for seed in seeds if (asked := ask(kind, seed)) is not None)
