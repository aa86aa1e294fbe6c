"""What a scene is made of. Lengths: sides of a square of the picture's area. y points down."""

from __future__ import annotations

from dataclasses import dataclass

COLOURS = {
    "red": (214, 39, 40),
    "orange": (245, 130, 20),
    "yellow": (240, 210, 30),
    "green": (40, 150, 60),
    "blue": (35, 85, 205),
    "purple": (135, 50, 165),
}
SHAPE_KINDS = ("circle", "square", "triangle", "star")

GAP = 0.03  # at least, between the boxes of two objects


@dataclass(frozen=True)
class Box:
    """An axis-aligned box round ``(x, y)``."""

    x: float
    y: float
    half_width: float
    half_height: float

    def apart_from(self, other: Box) -> bool:
        return (
            abs(self.x - other.x) >= self.half_width + other.half_width + GAP
            or abs(self.y - other.y) >= self.half_height + other.half_height + GAP
        )


@dataclass(frozen=True)
class Shape:
    kind: str
    colour: str
    box: Box

    @property
    def name(self) -> str:
        return f"{'an' if self.colour[0] in 'aeiou' else 'a'} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Number:
    value: int
    font_size: float
    box: Box

    @property
    def name(self) -> str:
        return f"the number {self.value}"


@dataclass(frozen=True)
class Background:
    colour: tuple[int, int, int]
    noise: int  # amplitude in grey levels, 0: plain
    cells: int  # the noise has cells x cells independent values
    noise_seed: int

    @property
    def is_dark(self) -> bool:
        return max(self.colour) < 128
