from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects import COLOURS, GAP, Number, Shape
from questions import QUESTION_KINDS, Question
from scenes import PICTURE_SIDES, Scene, make_scene

SEEDS = st.integers(0, 2**40)
DIRECTIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}


def objects(scene: Scene) -> list[Shape | Number]:
    return [*scene.shapes, *([scene.number] if scene.number else [])]


def asked(scene: Scene, kind: str) -> list[Question]:
    return [question for question in scene.questions if question.kind == kind]


def test_a_seed_gives_one_scene() -> None:
    first, again, other = make_scene(7), make_scene(7), make_scene(8)
    assert first == again
    assert first.image.tobytes() == again.image.tobytes()
    assert first.questions == again.questions
    everything = dict.fromkeys(QUESTION_KINDS, 9)
    assert first.choose_questions(everything) == again.choose_questions(everything)
    assert first.shapes != other.shapes


@given(SEEDS)
def test_objects_lie_in_the_picture_and_apart(seed: int) -> None:
    scene = make_scene(seed)
    for item in objects(scene):
        box = item.box
        assert box.half_width < box.x < 1 - box.half_width
        assert box.half_height < box.y < 1 - box.half_height
    for one, other in combinations(objects(scene), 2):
        width = one.box.half_width + other.box.half_width
        height = one.box.half_height + other.box.half_height
        apart = max(abs(one.box.x - other.box.x) - width, abs(one.box.y - other.box.y) - height)
        assert apart >= GAP - 1e-9


@given(SEEDS)
def test_no_question_has_two_answers(seed: int) -> None:
    texts = [question.text for question in make_scene(seed).questions]
    assert len(texts) == len(set(texts))


@given(SEEDS)
def test_counts_colours_and_numbers_are_true(seed: int) -> None:
    scene = make_scene(seed)
    kinds = [shape.kind for shape in scene.shapes]
    for question in asked(scene, "count"):
        kind = question.text.split()[2].removesuffix("s")
        assert question.answer == str(sum(kind == other for other in kinds))
    assert len(asked(scene, "count")) == 4
    for question in asked(scene, "colour"):
        kind = question.text.removesuffix("?").split()[-1]
        assert [question.answer] == [s.colour for s in scene.shapes if s.kind == kind]
    numbers = [question.answer for question in asked(scene, "number")]
    assert numbers == ([str(scene.number.value)] if scene.number else [])


@given(SEEDS)
def test_relations_are_plain_to_see(seed: int) -> None:
    scene = make_scene(seed)
    for question in asked(scene, "relation"):
        words, kind = question.text.removeprefix("What is ").removesuffix("?").split(" the ")
        (anchor,) = (shape for shape in scene.shapes if shape.kind == kind)
        dx, dy = DIRECTIONS[words]
        there = []
        for other in objects(scene):
            if other is not anchor:
                centre = dx * (other.box.x - anchor.box.x) + dy * (other.box.y - anchor.box.y)
                reach = abs(dx) * (other.box.half_width + anchor.box.half_width)
                reach += abs(dy) * (other.box.half_height + anchor.box.half_height)
                assert centre <= 0 or centre >= reach + GAP - 1e-9
                there += [other.name] if centre > 0 else []
        assert question.answer == (there[0] if there else "nothing")
        assert len(there) < 2


@given(SEEDS)
def test_descriptions_name_what_is_there(seed: int) -> None:
    scene = make_scene(seed)
    (question,) = asked(scene, "describe")
    names = [shape.name for shape in sorted(scene.shapes, key=lambda shape: shape.box.x)]
    if len(names) > 3:
        names = [f"{['four', 'five'][len(names) - 4]} shapes"]
    names += [scene.number.name] if scene.number else []
    said = question.answer.removesuffix(".").replace(" and ", ", ").split(", ")
    assert [said[0].lower(), *said[1:]] == names
    assert question.answer[0].isupper()


@given(st.integers(0, 10_000))
def test_shapes_are_drawn_in_their_colours(seed: int) -> None:
    scene = make_scene(seed)
    pixels = np.asarray(scene.image)
    assert scene.width == scene.height in PICTURE_SIDES
    assert pixels.shape == (scene.height, scene.width, 3)
    for shape in scene.shapes:
        centre = pixels[round(shape.box.y * scene.height), round(shape.box.x * scene.width)]
        assert tuple(centre) == COLOURS[shape.colour]


@pytest.mark.parametrize("kind", QUESTION_KINDS)
def test_choosing_questions_keeps_to_the_limits(kind: str) -> None:
    for seed in range(50):
        scene = make_scene(seed)
        chosen = scene.choose_questions({kind: 2})
        assert len(chosen) == min(2, len(asked(scene, kind)))
        assert set(chosen) <= set(asked(scene, kind))
