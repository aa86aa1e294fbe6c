"""Scenes of coloured shapes and a printed number. Everything follows from the seed."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cached_property

from drawing import draw
from objects import COLOURS, SHAPE_KINDS, Background, Box, Number, Shape
from PIL import Image
from questions import LISTED_SHAPES, NUMBER_WORDS, Question, ask_everything, choose_questions

TRAINING_SEED = 0  # training scenes have the seeds 0, 1, 2, ...
HELD_OUT_SEED = 1_000_000_000  # evaluation scenes and samples count up from here

PICTURE_SIDES = (160, 192, 224, 256)  # pixels of a square picture
PICTURE_UNITS = (80, 190)  # pixels: the square root of the area of a picture of any shape
MAX_ASPECT = 2.25
MAX_SHAPES = len(NUMBER_WORDS) - 1
EDGE = 0.02  # at least, between an object and the picture's border
LISTED_STEP = 0.07  # at least, in x between the centres of shapes that a description lists
Canvas = tuple[float, float]  # width and height of a picture


@dataclass(frozen=True)
class Scene:
    """Up to five shapes, perhaps a number, on a plain or noisy background."""

    seed: int
    width: int  # pixels
    height: int  # pixels
    background: Background
    shapes: tuple[Shape, ...]
    number: Number | None

    @cached_property
    def image(self) -> Image.Image:
        """The picture: RGB, ``width`` x ``height``."""
        return draw((self.width, self.height), self.background, self.shapes, self.number)

    @cached_property
    def questions(self) -> tuple[Question, ...]:
        return tuple(ask_everything(self.shapes, self.number))

    def choose_questions(self, at_most: dict[str, int]) -> list[Question]:
        """See ``questions.choose_questions``."""
        return choose_questions(self.seed, self.questions, at_most)


def make_scene(seed: int, square: bool = True) -> Scene:
    """The scene of this seed, always the same one; a square or a picture of any shape."""
    rng = random.Random(seed)
    width, height = (1, 1) if square else _random_size(rng)
    unit = math.sqrt(width * height)
    canvas = (width / unit, height / unit)
    num_shapes = rng.choices(range(MAX_SHAPES + 1), weights=(3, 10, 24, 25, 20, 18))[0]
    has_number = num_shapes == 0 or rng.random() < 0.45
    while True:  # until a random arrangement leaves room for everything
        taken: list[Box] = []
        number = _place_number(rng, canvas) if has_number else None
        if number is not None:
            taken.append(number.box)
        shapes = _place_shapes(rng, num_shapes, taken, canvas)
        if shapes is not None:
            if square:
                width = height = rng.choice(PICTURE_SIDES)
            return Scene(seed, width, height, _random_background(rng, seed), shapes, number)


def _random_size(rng: random.Random) -> tuple[int, int]:
    unit, stretch = rng.uniform(*PICTURE_UNITS), MAX_ASPECT ** rng.uniform(-0.5, 0.5)
    return round(unit * stretch), round(unit / stretch)


def _place_number(rng: random.Random, canvas: Canvas) -> Number:
    digits = rng.randint(1, 3)
    value = rng.randrange(0 if digits == 1 else 10 ** (digits - 1), 10**digits)
    font_size = rng.uniform(0.26, 0.32)
    half_width, half_height = 0.3 * font_size * digits, 0.42 * font_size
    return Number(value, font_size, _random_box(rng, half_width, half_height, canvas))


def _place_shapes(
    rng: random.Random, count: int, taken: list[Box], canvas: Canvas
) -> tuple[Shape, ...] | None:
    # Few kinds in a scene give high counts, many kinds give shapes to ask about one by one.
    kinds = rng.sample(SHAPE_KINDS, rng.choices((1, 2, 3, 4), weights=(3, 2, 3, 4))[0])
    shapes: list[Shape] = []
    for _ in range(count):
        for _attempt in range(30):
            radius = rng.uniform(0.085, 0.15)
            box = _random_box(rng, radius, radius, canvas)
            if not all(box.apart_from(other) for other in taken):
                continue
            if count <= LISTED_SHAPES and any(
                abs(box.x - shape.box.x) < LISTED_STEP for shape in shapes
            ):
                continue
            taken.append(box)
            shapes.append(Shape(rng.choice(kinds), rng.choice(list(COLOURS)), box))
            break
        else:
            return None
    return tuple(shapes)


def _random_box(rng: random.Random, half_width: float, half_height: float, canvas: Canvas) -> Box:
    x = rng.uniform(EDGE + half_width, canvas[0] - EDGE - half_width)
    y = rng.uniform(EDGE + half_height, canvas[1] - EDGE - half_height)
    return Box(x, y, half_width, half_height)


def _random_background(rng: random.Random, seed: int) -> Background:
    grey = rng.randint(25, 65) if rng.random() < 0.25 else rng.randint(200, 250)
    red, green, blue = (grey + rng.randint(-8, 5) for _ in range(3))
    noise = rng.randint(8, 24) if rng.random() < 0.5 else 0
    cells = rng.choice((16, 32, 64, 128))
    return Background((red, green, blue), noise, cells, noise_seed=seed)
