"""What is known of an image that was decoded to fewer pixels than its file has. No torch."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[float, float, float, float]  # left, top, right, bottom: as Pillow's, not rounded


@dataclass(frozen=True, slots=True)
class Reduced:
    """``height`` and ``width``: in the file, upright. ``box``: of them, in pixels of the decoded
    image, whose last rows and columns may be cells that the file fills in part."""

    height: int
    width: int
    box: Box

    @property
    def scale(self) -> float:
        """Decoded pixels to a pixel of the file."""
        left, _, right, _ = self.box
        return (right - left) / self.width


def box_of(reduced: Reduced | None) -> Box | None:
    """Which part of a decoded image to resize, as Pillow takes it; None: all of it."""
    return None if reduced is None else reduced.box
