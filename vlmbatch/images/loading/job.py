"""An image under way."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from vlmbatch.images.loading.recent import ImageKey
from vlmbatch.types import ImageInput, ImageRef


@dataclass(eq=False, slots=True)
class Job:
    """Rows that show the image share its future."""

    key: ImageKey
    ref: ImageRef
    future: Future[ImageInput] = field(default_factory=Future)
