"""What stands between rows and the engine: text to tokens, images to pixels. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import ImageResolution
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.reduced import Reduced
from vlmbatch.types import ImageGrid, ImageInput, ImageSpan, PixelImage, ProcessedInputs, Row

if TYPE_CHECKING:
    from vlmbatch.models.chat import ChatTemplate
    from vlmbatch.models.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A row's prompt as the engine takes it; the fields are those of ``Request``.

    With ``inputs`` the row's images are in these.
    """

    token_ids: list[int] = field(repr=False)
    image_spans: tuple[ImageSpan, ...] = ()
    positions: NDArray[np.int64] | None = field(default=None, repr=False)
    next_position: int | None = None
    inputs: ProcessedInputs | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """A row's text as tokens, before room is made for its images.

    ``encoded``: the whole prompt, where it does not depend on what the images are.
    """

    token_ids: list[int] = field(repr=False)
    encoded: EncodedPrompt | None = None


@dataclass(frozen=True, slots=True)
class Resized:
    """Between the two steps of an ``ImageProcessor``; what lies on a device may not be made yet.

    ``height`` and ``width``: of the upright image in its file.
    """

    images: tuple[RgbImage, ...]
    height: int
    width: int


class ImageProcessor(Protocol):
    """The half of a processor that looks at images. Pickled, it goes to the workers: no torch.

    Classes derive from it, for ``process``.
    """

    __slots__ = ()

    @property
    def fingerprint(self) -> str:
        """Changes with anything that changes an image's pixels."""
        ...

    @property
    def largest_grid(self) -> ImageGrid:
        """No image has more tokens or bytes."""
        ...

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> ImageProcessor:
        """The processor for the images of a row that shows ``row_images`` of them.

        ``resolution``: the row's own, within the run's.

        Raises:
            RowError: ``resolution_invalid``, not one that the model or the run takes.
        """
        ...

    def grid(self, height: int, width: int) -> ImageGrid:
        """What becomes of an upright image of this size; equal to the grid that ``process`` gives.

        Raises:
            RowError: the model takes no image of this size.
        """
        ...

    def needed(self, height: int, width: int) -> tuple[int, int]:
        """The height and width of which an upright image of this size needs no more pixels.

        They are those that it is resized to, the larger where it is resized to several; its own
        where it is not.

        Raises:
            RowError: the model takes no image of this size.
        """
        ...

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        """The first step for one decoded RGB image: all that is done on a device, if it lies there.

        ``reduced``: where it was decoded to fewer pixels, though not fewer than ``needed``; the
        result has the shape and grid of the whole one's.

        Raises:
            RowError: the model takes no image of this size.
        """
        ...

    def finish(self, resized: Resized) -> PixelImage:
        """The second step, on the host. On a device it waits for what is not made yet."""
        ...

    def process(self, image: RgbImage, reduced: Reduced | None = None) -> PixelImage:
        """Both steps.

        Raises:
            RowError: the model takes no image of this size.
        """
        return self.finish(self.resize(image, reduced))


class Processor(Protocol):
    """Rows to what the engine takes. Thread-safe, no torch.

    ``images`` is None where images come as features. ``image_token`` is the text that stands for
    an image in prompts.
    """

    tokenizer: Tokenizer
    image_token: str
    max_model_len: int

    @property
    def images(self) -> ImageProcessor | None: ...

    @property
    def chat_template(self) -> ChatTemplate:
        """Raises ConfigError where the model has none, or a bad one."""
        ...

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the token ids and the pixels of a row, by name; of files the digest."""
        ...

    @property
    def largest_grid(self) -> ImageGrid:
        """No image has more tokens or bytes; bytes of features, where images come as such."""
        ...

    def tokenize(self, row: Row) -> Tokens:
        """The row's text as tokens; all is checked here that can be before an image is touched.

        Raises:
            RowError: ``prompt_invalid``, ``image_token_mismatch`` or ``prompt_too_long``.
        """
        ...

    def place(self, tokens: Tokens, grids: Sequence[ImageGrid]) -> EncodedPrompt:
        """Make room for the row's images, one grid each, and count positions.

        Raises:
            RowError: ``image_token_mismatch`` or ``prompt_too_long``.
        """
        ...

    def encode(self, tokens: Tokens, images: Sequence[ImageInput]) -> EncodedPrompt:
        """``place`` with the images themselves.

        Raises:
            RowError: as by ``place``, or the model cannot take these images.
        """
        ...

    def feature_grid(self, shape: tuple[int, ...]) -> ImageGrid:
        """The grid of an image that is given as features of this shape.

        Raises:
            ValueError: no image's features have it; the message has both shapes.
        """
        ...

    def feature_shape(self, grid: ImageGrid) -> tuple[int, ...]:
        """The shape that the features of an image are stored in, numbers of a feature last."""
        ...

    def largest_image(self) -> ImageInput:
        """Zeros in the place of an image of ``largest_grid``, as the model is given images."""
        ...
