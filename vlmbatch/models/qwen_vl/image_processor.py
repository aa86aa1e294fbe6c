"""Images to the pixels of whole tokens, equal to Hugging Face's Pillow-based processor.

Resizing happens here and leaves uint8; rescaling and normalizing are ``pixels * scale + bias``, and
happen on the engine's device, where patches are cut as well.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ConfigError, ErrorCode, FieldError, RowError
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.image_hash import pixel_image
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.preprocessor_config import (
    Normalization,
    load_preprocessor_config,
    parse_normalization,
    parse_resample,
)
from vlmbatch.models.processor import ImageProcessor, Resized
from vlmbatch.models.qwen_vl.vision_config import VisionConfig
from vlmbatch.models.reduced import Reduced, box_of
from vlmbatch.models.shrink import NO_SHRINK, Shrink, check_row
from vlmbatch.types import ImageGrid, PixelImage

MAX_ASPECT = 200
_MIN_PIXELS, _MAX_PIXELS = 56 * 56, 28 * 28 * 1280
_MAX_MIN_PIXELS = 2**26  # images are enlarged to min_pixels: a file could ask for any size
_KINDS = ("Qwen2VLImageProcessor", "Qwen2_5_VLImageProcessor", "Qwen3VLImageProcessor")


@dataclass(frozen=True, slots=True)
class QwenImageProcessor(ImageProcessor):
    """How one checkpoint prepares its images. An ``ImageProcessor``.

    An image keeps its shape as nearly as whole tokens of ``factor`` pixels squared allow, within
    ``min_pixels`` and ``max_pixels`` in all. ``shrink`` comes first. An image of more than
    ``max_tokens`` tokens, which no prompt holds, is refused undecoded.
    """

    factor: int
    min_pixels: int
    max_pixels: int
    resample: Image.Resampling
    normalization: Normalization
    shrink: Shrink = NO_SHRINK
    max_tokens: int | None = None
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        others = {"fingerprint", "max_tokens"}  # not of the pixels
        if self.shrink == NO_SHRINK:  # as in versions that had none
            others.add("shrink")
        names = (each.name for each in fields(self))
        values = tuple(getattr(self, name) for name in names if name not in others)
        object.__setattr__(self, "fingerprint", hashlib.blake2b(repr(values).encode()).hexdigest())

    @property
    def largest_grid(self) -> ImageGrid:
        """About a square of as many tokens as any image may have.

        A strip of one token's width may exceed the limit, as may an image that is enlarged.
        """
        longest, shortest = (
            math.sqrt(self.min_pixels * ratio) / self.factor
            for ratio in (MAX_ASPECT, 1 / MAX_ASPECT)
        )
        most = max(
            self.max_pixels / self.factor**2,
            math.sqrt(self.max_pixels * MAX_ASPECT) / self.factor,
        )
        if self.shrink.longest_side is not None:
            most = min(most, max(1, round(self.shrink.longest_side / self.factor)) ** 2)
        tokens = max(most, (longest + 1) * (shortest + 1))
        if self.max_tokens is not None:
            tokens = min(tokens, self.max_tokens)
        height = max(1, math.isqrt(int(tokens)))
        return self._grid(height, math.ceil(int(tokens) / height))

    @classmethod
    def load(
        cls,
        folder: Path,
        vision: VisionConfig,
        resolution: ImageResolution | None = None,
        max_tokens: int | None = None,
    ) -> QwenImageProcessor:
        """Read ``processor_config.json`` or ``preprocessor_config.json`` for a model.

        Raises:
            CheckpointError: neither is there, or a parameter is unsupported or contradicts the
                model.
            ConfigError: ``resolution`` is none that the model can have.
        """
        made = replace(_parse(load_preprocessor_config(folder), vision), max_tokens=max_tokens)
        return made if resolution is None else made.within(resolution)

    def within(self, resolution: ImageResolution) -> QwenImageProcessor:
        """With these limits in the place of the checkpoint's own, where they are given.

        Raises:
            ConfigError: they contradict the model or each other, with both numbers.
        """
        token, side = self.factor**2, resolution.longest_side
        for name, given, smallest in (
            ("max_pixels", resolution.max_pixels, token),
            ("longest_side", side, self.factor),
        ):
            if given is not None and given < smallest:
                raise FieldError(
                    name,
                    f"must be at least {smallest}, got {given}: a token of this model's images is "
                    f"{self.factor} x {self.factor} = {token} pixels",
                )
        least = resolution.min_pixels or self.min_pixels
        most = resolution.max_pixels or self.max_pixels
        if least > most:
            own = "least" if resolution.min_pixels is None else "most"
            raise FieldError(
                "min_pixels",
                f"is {least}, above max_pixels, which is {most}: the {own} is the model's or "
                "the run's own, and can be given too",
                "max_pixels",
            )
        if least > _MAX_MIN_PIXELS:
            raise FieldError("min_pixels", f"must be at most {_MAX_MIN_PIXELS}, got {least}")
        shrink = self.shrink if side is None else Shrink(longest_side=side)
        return replace(self, min_pixels=least, max_pixels=most, shrink=shrink)

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> QwenImageProcessor:
        """See ``ImageProcessor``."""
        if resolution is None:
            return self
        check_row(resolution, self.max_pixels)
        try:
            own = self.within(resolution)
        except ConfigError as error:
            raise RowError(ErrorCode.RESOLUTION_INVALID, str(error)) from error
        found, most = own.largest_grid.num_tokens, self.largest_grid.num_tokens
        if found > most:
            raise RowError(
                ErrorCode.RESOLUTION_INVALID,
                f"min_pixels is {own.min_pixels}, by which images may take up to {found} tokens, "
                f"above the {most} of the run: --max-pixels gives it more",
            )
        return own

    def grid(self, height: int, width: int) -> ImageGrid:
        """See ``ImageProcessor``."""
        grid = self._grid(*(side // self.factor for side in self.size(height, width)))
        if self.max_tokens is not None and grid.num_tokens > self.max_tokens:
            hint = "--max-pixels makes images smaller"
            if self.min_pixels > self.max_tokens * self.factor**2:
                hint = f"with {self.min_pixels} pixels at the least, no image fits"
            raise RowError(
                ErrorCode.PROMPT_TOO_LONG,
                f"the image of {width} x {height} pixels takes {grid.num_tokens} tokens; with at "
                f"least one for the answer that exceeds the context of {self.max_tokens + 1}: "
                f"{hint}",
            )
        return grid

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image is resized to: Qwen2-VL's ``smart_resize``, of what
        ``shrink`` leaves.

        Raises:
            RowError: one side is over 200 times the other.
        """
        longer, shorter = max(height, width), min(height, width)
        if longer / shorter > MAX_ASPECT:
            raise RowError(
                ErrorCode.IMAGE_TOO_LARGE,
                f"{width} x {height} pixels: one side is {longer / shorter:.6g} times the other, "
                f"and the model takes images up to {MAX_ASPECT} times as long as wide",
            )
        height, width = self.shrink.size(height, width)
        factor = self.factor
        rounded = round(height / factor) * factor, round(width / factor) * factor
        if rounded[0] * rounded[1] > self.max_pixels:
            shrink = math.sqrt(height * width / self.max_pixels)
            down, across = (
                max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width)
            )
            return down, across
        if rounded[0] * rounded[1] < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height * width))
            down, across = (math.ceil(side * grow / factor) * factor for side in (height, width))
            return down, across
        return rounded

    def needed(self, height: int, width: int) -> tuple[int, int]:
        """See ``ImageProcessor``."""
        return self.shrink.needed(height, width, self.size(height, width))

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        """See ``ImageProcessor``."""
        assert image.mode == "RGB", image.mode
        whole = reduced or image
        grid = self.grid(whole.height, whole.width)
        size = (grid.width * self.factor, grid.height * self.factor)
        image, reduced = self.shrink.apply_to(image, reduced)
        image = image.resize(size, self.resample, box_of(reduced))
        return Resized((image,), whole.height, whole.width)

    def finish(self, resized: Resized) -> PixelImage:
        """See ``ImageProcessor``."""
        (image,) = resized.images
        grid = self.grid(resized.height, resized.width)
        return pixel_image(np.array(image, order="C"), grid, self.fingerprint)

    def _grid(self, height: int, width: int) -> ImageGrid:
        tokens = height * width
        return ImageGrid(height, width, tokens, num_bytes=3 * tokens * self.factor**2)


def _parse(fields: JsonFields, vision: VisionConfig) -> QwenImageProcessor:
    name = "image_processor_type"
    kind = fields.string(name, _KINDS[0]).removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        raise fields.error(name, f"one of: {', '.join(_KINDS)}")
    for name in ("do_resize", "do_rescale", "do_normalize"):
        if not fields.boolean(name, True):
            raise fields.error(name, "true")
    for name, expected in (
        ("patch_size", vision.patch_size),
        ("merge_size", vision.merge_size),
        ("temporal_patch_size", vision.temporal_patch_size),
    ):
        if fields.integer(name, expected) != expected:
            raise fields.error(name, f"the vision tower's {expected}")
    min_pixels, max_pixels = _pixel_limits(fields)
    return QwenImageProcessor(
        factor=vision.factor,
        min_pixels=min_pixels,
        max_pixels=max_pixels,
        resample=parse_resample(fields),
        normalization=parse_normalization(fields),
    )


def _pixel_limits(fields: JsonFields) -> tuple[int, int]:
    """``min_pixels`` and ``max_pixels``, by these older names, which win, or in ``size``."""
    size = fields.section("size")
    limits = []
    for older, edge, default in (
        ("min_pixels", "shortest_edge", _MIN_PIXELS),
        ("max_pixels", "longest_edge", _MAX_PIXELS),
    ):
        if size is not None:
            if not any(name in size for name in (edge, older)) and older not in fields:
                raise fields.error("size", "shortest_edge and longest_edge, both counts of pixels")
            default = _pixels(size, edge, _pixels(size, older, default))
        limits.append(_pixels(fields, older, default))
    least, most = limits
    if least > most:
        raise fields.error("size", f"min_pixels no greater than max_pixels, not {least} and {most}")
    if least > _MAX_MIN_PIXELS:
        raise fields.error("size", f"at most {_MAX_MIN_PIXELS} pixels at the least, not {least}")
    return least, most


def _pixels(fields: JsonFields, name: str, default: int) -> int:
    return fields.integer(name, default, maximum=2**53)  # some say so that there is no limit
