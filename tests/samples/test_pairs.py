from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from pairs import PAIR_QUESTION_KINDS, Pair
from questions import Question
from scenes import Scene, make_scene

SEEDS = st.integers(0, 2**40)


def pair_of(seed: int) -> Pair:
    return Pair(make_scene(seed, square=False), make_scene(seed + 1, square=False))


def asked(pair: Pair, *kinds: str) -> list[Question]:
    return [question for question in pair.questions if question.kind in kinds]


def names(scene: Scene) -> set[str]:
    number = [] if scene.number is None else [scene.number.name]
    return {*(shape.name for shape in scene.shapes), *number}


@given(SEEDS)
def test_no_question_has_two_answers(seed: int) -> None:
    questions = pair_of(seed).questions
    assert len({question.text for question in questions}) == len(questions)
    assert {question.kind for question in questions} <= set(PAIR_QUESTION_KINDS)


@given(SEEDS)
def test_comparisons_count_shapes(seed: int) -> None:
    pair = pair_of(seed)
    counts = [Counter(shape.kind for shape in scene.shapes) for scene in pair.scenes]
    for question in asked(pair, "compare"):
        kind = question.text.removeprefix("Which picture has more ").removesuffix("s?")
        first, second = (count[kind] for count in counts)
        expected = "neither" if first == second else "the first" if first > second else "the second"
        assert question.answer == expected


@given(SEEDS)
def test_what_is_searched_is_where_the_answer_says(seed: int) -> None:
    pair = pair_of(seed)
    for question in asked(pair, "find"):
        name = question.text.removeprefix("Which picture shows ").removesuffix("?")
        where = [name in names(scene) for scene in pair.scenes]
        answers = {"the first": [True, False], "the second": [False, True]}
        assert where == answers.get(question.answer, [False, False])


@given(SEEDS)
def test_lookups_are_the_scenes_own_questions(seed: int) -> None:
    pair = pair_of(seed)
    lookups = asked(pair, "colour in", "count in", "number in")
    for ordinal, scene in zip(("first", "second"), pair.scenes, strict=True):
        here = [question for question in lookups if f"in the {ordinal} picture?" in question.text]
        own = [q.answer for q in scene.questions if q.kind in ("colour", "count", "number")]
        assert [question.answer for question in here] == own
