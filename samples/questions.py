"""Questions about a scene that have one right answer, and that answer."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from objects import GAP, SHAPE_KINDS, Number, Shape

QUESTION_KINDS = ("colour", "count", "relation", "number", "describe")
NUMBER_WORDS = ("No", "One", "Two", "Three", "Four", "Five")
EASY_GUESSES = ("0", "nothing", "neither")  # what a blind guess would hit most often
LISTED_SHAPES = 3  # a description lists up to so many shapes, from left to right


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str


def choose_questions(
    seed: object, questions: Sequence[Question], at_most: dict[str, int]
) -> list[Question]:
    """Random questions, up to ``at_most[kind]`` of each kind, in random order.

    Those with an answer that a blind guess would hit mostly yield to others.
    """
    rng = random.Random(f"{seed} questions")
    shuffled = rng.sample(questions, len(questions))
    shuffled.sort(key=lambda question: question.answer in EASY_GUESSES and rng.random() < 0.85)
    chosen: dict[str, list[Question]] = {kind: [] for kind in at_most}
    for question in shuffled:
        if len(chosen.get(question.kind, ())) < at_most.get(question.kind, 0):
            chosen[question.kind].append(question)
    picked = [question for questions in chosen.values() for question in questions]
    return rng.sample(picked, len(picked))


def ask_everything(shapes: Sequence[Shape], number: Number | None) -> Iterator[Question]:
    """Every such question; always the counts and the description."""
    kinds = [shape.kind for shape in shapes]
    for shape in shapes:
        if kinds.count(shape.kind) == 1:
            yield Question("colour", f"What colour is the {shape.kind}?", shape.colour)
            others: list[Shape | Number] = [other for other in shapes if other != shape]
            if number is not None:
                others.append(number)
            yield from _relation_questions(shape, others)
    for kind in SHAPE_KINDS:
        yield Question("count", f"How many {kind}s are there?", str(kinds.count(kind)))
    if number is not None:
        yield Question("number", "What number is written?", str(number.value))
    yield Question("describe", "Describe the picture.", _description(shapes, number))


def _relation_questions(anchor: Shape, others: Sequence[Shape | Number]) -> Iterator[Question]:
    """Questions whose answer is plain to see.

    What is left of the anchor has its whole box there; all other objects have their centres at
    the anchor's own or to the right. Questions that anything in between would make doubtful, and
    those with two answers, are not asked.
    """
    here = anchor.box
    for words, axis, sign in (
        ("left of", "x", -1),
        ("right of", "x", 1),
        ("above", "y", -1),
        ("below", "y", 1),
    ):
        side = "half_width" if axis == "x" else "half_height"
        found, doubtful = [], False
        for other in others:
            distance = sign * (getattr(other.box, axis) - getattr(here, axis))
            if distance >= getattr(other.box, side) + getattr(here, side) + GAP:
                found.append(other.name)
            elif distance > 0:
                doubtful = True
        if not doubtful and len(found) < 2:
            answer = found[0] if found else "nothing"
            yield Question("relation", f"What is {words} the {anchor.kind}?", answer)


def _description(shapes: Sequence[Shape], number: Number | None) -> str:
    if len(shapes) > LISTED_SHAPES:
        parts = [f"{NUMBER_WORDS[len(shapes)]} shapes"]
    else:
        parts = [shape.name for shape in sorted(shapes, key=lambda shape: shape.box.x)]
    if number is not None:
        parts.append(number.name)
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    return f"{text[0].upper()}{text[1:]}."
