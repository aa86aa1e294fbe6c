"""Questions about two pictures that have one right answer, and that answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from objects import COLOURS, SHAPE_KINDS
from questions import Question, choose_questions
from scenes import Scene

PAIR_QUESTION_KINDS = ("compare", "find", "colour in", "count in", "number in")
ORDINALS = ("first", "second")


@dataclass(frozen=True)
class Pair:
    """Two scenes, asked about together."""

    first: Scene
    second: Scene

    @property
    def scenes(self) -> tuple[Scene, Scene]:
        return self.first, self.second

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return (*self._comparisons(), *self._searches(), *self._lookups())

    def choose_questions(self, at_most: dict[str, int]) -> list[Question]:
        """See ``questions.choose_questions``."""
        name = f"{self.first.seed} {self.second.seed}"
        return choose_questions(name, self.questions, at_most)

    def _comparisons(self) -> Iterator[Question]:
        for kind in SHAPE_KINDS:
            first, second = (
                sum(shape.kind == kind for shape in scene.shapes) for scene in self.scenes
            )
            answer = "neither" if first == second else f"the {ORDINALS[first < second]}"
            yield Question("compare", f"Which picture has more {kind}s?", answer)

    def _searches(self) -> Iterator[Question]:
        """For what only one picture shows, and for coloured shapes that none does."""
        first, second = (
            {shape.name for shape in scene.shapes}
            | ({scene.number.name} if scene.number is not None else set())
            for scene in self.scenes
        )
        for name in sorted(first ^ second):
            answer = "the first" if name in first else "the second"
            yield Question("find", f"Which picture shows {name}?", answer)
        for colour in COLOURS:
            for kind in SHAPE_KINDS:
                name = f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {kind}"
                if name not in first | second:
                    yield Question("find", f"Which picture shows {name}?", "neither")

    def _lookups(self) -> Iterator[Question]:
        for ordinal, scene in zip(ORDINALS, self.scenes, strict=True):
            for question in scene.questions:
                if question.kind in ("colour", "count", "number"):
                    text = f"{question.text.removesuffix('?')} in the {ordinal} picture?"
                    text = text.replace("are there in", "are in")
                    yield Question(f"{question.kind} in", text, question.answer)
