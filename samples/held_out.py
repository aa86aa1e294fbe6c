"""Questions of all kinds about pictures that the second sample model was not trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle, islice

from pages import PAGE_QUESTION_KINDS, make_page
from pairs import PAIR_QUESTION_KINDS, Pair
from PIL import Image
from questions import QUESTION_KINDS, Question
from scenes import HELD_OUT_SEED, make_scene

ALL_KINDS = (*QUESTION_KINDS, *PAGE_QUESTION_KINDS, *PAIR_QUESTION_KINDS)


@dataclass(frozen=True)
class Asked:
    """A question about one picture or two."""

    name: str
    images: tuple[Image.Image, ...]
    question: Question


def held_out_questions(num_questions: int, first_seed: int = HELD_OUT_SEED) -> list[Asked]:
    """As many questions of each kind as nearly as can be, each about pictures of its own."""
    return list(islice(_ask_forever(first_seed), num_questions))


def ask(kind: str, seed: int) -> Asked | None:
    """A question of this kind about the picture or pictures of this seed, if it has one."""
    images: tuple[Image.Image, ...]
    if kind in PAGE_QUESTION_KINDS:
        page = make_page(seed)
        images, questions = (page.image,), page.choose_questions({kind: 1})
    elif kind in PAIR_QUESTION_KINDS:
        pair = Pair(make_scene(seed, square=False), make_scene(seed + 1, square=False))
        images = (pair.first.image, pair.second.image)
        questions = pair.choose_questions({kind: 1})
    else:
        scene = make_scene(seed, square=False)
        images, questions = (scene.image,), scene.choose_questions({kind: 1})
    if not questions:
        return None
    return Asked(f"{seed}-{kind.replace(' ', '-')}", images, questions[0])


def _ask_forever(first_seed: int) -> Iterator[Asked]:
    seeds = count(first_seed, 2)
    for kind in cycle(ALL_KINDS):
        yield next(asked for seed in seeds if (asked := ask(kind, seed)) is not None)
