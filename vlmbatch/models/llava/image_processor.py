"""Images to the pixels a vision tower takes, equal to Hugging Face's Pillow-based processors.

Resizing, padding and cropping happen here and leave uint8; rescaling and normalizing are one
multiplication and addition, ``pixels * scale + bias``, and happen on the engine's device.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.models.device_image import RgbImage
from vlmbatch.models.image_hash import pixel_image
from vlmbatch.models.json_fields import JsonFields
from vlmbatch.models.llava.config import LlavaConfig
from vlmbatch.models.llava.square import pad_to_square, square_side
from vlmbatch.models.preprocessor_config import (
    CLIP_MEAN,
    CLIP_STD,
    Channels,
    Normalization,
    load_preprocessor_config,
    parse_normalization,
    parse_pad_color,
    parse_resample,
)
from vlmbatch.models.processor import ImageProcessor, Resized
from vlmbatch.models.reduced import Box, Reduced
from vlmbatch.types import ImageGrid, PixelImage

_HALF = (0.5, 0.5, 0.5)

_KINDS = ("CLIPImageProcessor", "LlavaImageProcessor", "SiglipImageProcessor")

# Resizing the shorter edge of a 1 x 10,000 image to 336 asks for 336 x 3,360,000 pixels, of which
# the crop keeps 336 x 336.
_MAX_RESIZED_PIXELS = 2**26


@dataclass(frozen=True, slots=True)
class LlavaImageProcessor(ImageProcessor):
    """How one checkpoint prepares its images; sizes are (height, width). An ``ImageProcessor``.

    ``resize_to`` is a size, or the length of the shorter edge, or None. The output is always
    ``output_size``, cut into ``patches``, which take ``num_tokens`` tokens of a prompt.
    """

    resize_to: tuple[int, int] | int | None
    resample: Image.Resampling
    crop_to: tuple[int, int] | None
    pad_color: tuple[int, int, int] | None  # pads to a square first
    rescale_factor: float
    mean: Channels
    std: Channels
    output_size: tuple[int, int]
    patches: tuple[int, int]
    num_tokens: int
    fingerprint: str = field(init=False)
    largest_grid: ImageGrid = field(init=False)

    def __post_init__(self) -> None:
        others = ("fingerprint", "largest_grid", "patches", "num_tokens")  # not of the pixels
        names = (each.name for each in fields(self))
        values = tuple(getattr(self, name) for name in names if name not in others)
        object.__setattr__(self, "fingerprint", hashlib.blake2b(repr(values).encode()).hexdigest())
        height, width = self.output_size
        grid = ImageGrid(*self.patches, self.num_tokens, num_bytes=height * width * 3)
        object.__setattr__(self, "largest_grid", grid)

    @property
    def scale(self) -> Channels:
        """See ``Normalization``."""
        return self._normalization.scale

    @property
    def bias(self) -> Channels:
        """See ``Normalization``."""
        return self._normalization.bias

    @property
    def _normalization(self) -> Normalization:
        return Normalization(self.rescale_factor, self.mean, self.std)

    @classmethod
    def load(cls, folder: Path, config: LlavaConfig) -> LlavaImageProcessor:
        """Read ``processor_config.json`` or ``preprocessor_config.json`` for a model.

        Raises:
            CheckpointError: neither is there, or a parameter is unsupported.
        """
        return _parse(load_preprocessor_config(folder), config)

    def at(self, resolution: ImageResolution | None, row_images: int = 1) -> LlavaImageProcessor:
        """See ``ImageProcessor``: there is one size of images."""
        if resolution is not None:
            raise RowError(
                ErrorCode.RESOLUTION_INVALID,
                "max_pixels and min_pixels: the model's images always take "
                f"{self.num_tokens} tokens; leave these columns out or null",
            )
        return self

    def grid(self, height: int, width: int) -> ImageGrid:
        """The grid of every image."""
        return self.largest_grid

    def needed(self, height: int, width: int) -> tuple[int, int]:
        """See ``ImageProcessor``.

        Raises:
            RowError: padding a long image to a square would take too much memory.
        """
        if self.pad_color is None:
            return self._resized(height, width)
        side = square_side(height, width)
        down, across = self._resized(side, side)
        return -(-down * height // side), -(-across * width // side)

    def resize(self, image: RgbImage, reduced: Reduced | None = None) -> Resized:
        """See ``ImageProcessor``.

        Raises:
            RowError: padding a long image to a square would take too much memory.
        """
        assert image.mode == "RGB", image.mode
        whole = reduced or image
        if self.pad_color is not None:
            image, reduced = pad_to_square(image, self.pad_color, reduced)
        return Resized((self._resize(image, reduced),), whole.height, whole.width)

    def finish(self, resized: Resized) -> PixelImage:
        """See ``ImageProcessor``."""
        (image,) = resized.images
        pixels: NDArray[np.uint8] = np.asarray(image)
        if self.crop_to is not None:
            pixels = _center_crop(pixels, self.crop_to)
        pixels = np.array(pixels, order="C")  # a view of Pillow's memory is read-only
        assert pixels.shape == (*self.output_size, 3), pixels.shape
        return pixel_image(pixels, self.largest_grid, self.fingerprint)

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """The height and width that an image of this size is resized to."""
        if self.resize_to is None:
            return height, width
        if not isinstance(self.resize_to, int):
            return self.resize_to
        edge, shorter, longer = self.resize_to, min(height, width), max(height, width)
        resized_longer = int(edge * longer / shorter)
        return (resized_longer, edge) if width <= height else (edge, resized_longer)

    def _resize(self, image: RgbImage, reduced: Reduced | None) -> RgbImage:
        if self.resize_to is None:
            return image
        whole = reduced or image
        height, width = self._resized(whole.height, whole.width)
        box = (0.0, 0.0, image.width, image.height) if reduced is None else reduced.box
        strip = isinstance(self.resize_to, int) and height * width > _MAX_RESIZED_PIXELS
        if strip and self.crop_to is not None:
            return self._resize_middle(image, width, height, box)
        return image.resize((width, height), self.resample, box)

    def _resize_middle(self, image: RgbImage, width: int, height: int, box: Box) -> RgbImage:
        """The middle of ``box`` resized to ``width`` x ``height``, as much as the crop keeps.

        Nearly the whole's pixels: Pillow holds the box in single precision, and may resize a tall
        image's height before its width.
        """
        assert self.crop_to is not None
        kept_height, kept_width = min(height, self.crop_to[0]), min(width, self.crop_to[1])
        across, down = (box[2] - box[0]) / width, (box[3] - box[1]) / height
        left = box[0] + (width - kept_width) // 2 * across
        top = box[1] + (height - kept_height) // 2 * down
        box = (left, top, left + kept_width * across, top + kept_height * down)
        return image.resize((kept_width, kept_height), self.resample, box=box)


def _center_crop(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Cut (H, W, 3) to ``size``; where the image is smaller, black surrounds it."""
    source, target = [], []
    for length, wanted in zip(pixels.shape, size, strict=False):
        if length >= wanted:
            start = (length - wanted) // 2
            source.append(slice(start, start + wanted))
            target.append(slice(0, wanted))
        else:
            start = (wanted - length + 1) // 2
            source.append(slice(0, length))
            target.append(slice(start, start + length))
    cropped = pixels[tuple(source)]
    if cropped.shape[:2] == size:
        return cropped
    padded = np.zeros((*size, 3), np.uint8)
    padded[tuple(target)] = cropped
    return padded


def _parse(fields: JsonFields, config: LlavaConfig) -> LlavaImageProcessor:
    name = "image_processor_type"
    kind = fields.string(name, None)
    if kind is None and "feature_extractor_type" in fields:
        name = "feature_extractor_type"
        kind = fields.string(name, "").replace("FeatureExtractor", "ImageProcessor")
    kind = (kind or "LlavaImageProcessor").removesuffix("Fast").removesuffix("Pil")
    if kind not in _KINDS:
        raise fields.error(name, f"one of: {', '.join(_KINDS)}")
    siglip = kind == "SiglipImageProcessor"
    mean, std = (_HALF, _HALF) if siglip else (CLIP_MEAN, CLIP_STD)
    normalization = parse_normalization(fields, mean, std)
    pad = fields.boolean("do_pad", False)
    if pad and kind != "LlavaImageProcessor":
        raise fields.error("do_pad", f"false for {kind}")
    resize_to: tuple[int, int] | int | None = None
    if fields.boolean("do_resize", True):
        resize_to = parse_size(fields, "size", (224, 224) if siglip else 224)
    crop_to: tuple[int, int] | None = None
    if fields.boolean("do_center_crop", not siglip):
        crop_size = parse_size(fields, "crop_size", 224)
        crop_to = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    side = config.vision.image_size // config.vision.patch_size
    return LlavaImageProcessor(
        resize_to=resize_to,
        resample=parse_resample(fields),
        crop_to=crop_to,
        pad_color=parse_pad_color(fields, mean) if pad else None,
        rescale_factor=normalization.rescale_factor,
        mean=normalization.mean,
        std=normalization.std,
        output_size=_output_size(fields, resize_to, crop_to, pad),
        patches=(side, side),
        num_tokens=config.image_feature_size,
    )


def parse_size(
    fields: JsonFields, name: str, default: tuple[int, int] | int
) -> tuple[int, int] | int:
    """(height, width), or the length of the shorter edge.

    Raises:
        CheckpointError: another kind of size.
    """
    value = fields.values.get(name)
    if value is None:
        return default
    size = value if isinstance(value, dict) else {"shortest_edge": value}
    size = {key: length for key, length in size.items() if length is not None}
    if not all(type(length) is int and length > 0 for length in size.values()):
        raise fields.error(name, "lengths above 0")
    if size.keys() == {"height", "width"}:
        return size["height"], size["width"]
    if size.keys() == {"shortest_edge"}:
        edge: int = size["shortest_edge"]
        return edge
    raise fields.error(name, "a number, height and width, or shortest_edge")


def _output_size(
    fields: JsonFields,
    resize_to: tuple[int, int] | int | None,
    crop_to: tuple[int, int] | None,
    pad: bool,
) -> tuple[int, int]:
    if crop_to is not None:
        return crop_to
    if isinstance(resize_to, tuple):
        return resize_to
    if resize_to is not None and pad:
        return resize_to, resize_to
    raise fields.error("do_center_crop", "true, as images would come out in different sizes")
