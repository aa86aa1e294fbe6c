"""What an image processor's file says in every family. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmbatch.models.json_fields import JsonFields

Channels = tuple[float, float, float]  # red, green, blue

CLIP_MEAN: Channels = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Channels = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Normalization:
    """Pixels from 0 to 255 become ``pixels * scale + bias``, one number of each a channel."""

    rescale_factor: float
    mean: Channels
    std: Channels

    @property
    def scale(self) -> Channels:
        red, green, blue = (self.rescale_factor / std for std in self.std)
        return red, green, blue

    @property
    def bias(self) -> Channels:
        red, green, blue = (-mean / std for mean, std in zip(self.mean, self.std, strict=True))
        return red, green, blue


def load_preprocessor_config(folder: Path) -> JsonFields:
    """Read ``processor_config.json`` or ``preprocessor_config.json``.

    Raises:
        CheckpointError: neither is there, or it is malformed.
    """
    path = folder / "processor_config.json"
    fields = JsonFields.load(path).section("image_processor") if path.exists() else None
    return fields or JsonFields.load(folder / "preprocessor_config.json")


def parse_resample(fields: JsonFields) -> Image.Resampling:
    """The filter that images are resized with.

    Raises:
        CheckpointError: Pillow has none of this number.
    """
    resample = fields.integer("resample", int(Image.Resampling.BICUBIC), minimum=0)
    if resample not in set(Image.Resampling):
        raise fields.error("resample", "a Pillow filter from 0 to 5")
    return Image.Resampling(resample)


def parse_normalization(
    fields: JsonFields, mean: Channels = CLIP_MEAN, std: Channels = CLIP_STD
) -> Normalization:
    """Read it from an image processor's file, which may leave ``mean`` and ``std`` out.

    Raises:
        CheckpointError: a field is malformed, or a deviation is not above 0.
    """
    mean, std = fields.channels("image_mean", mean), fields.channels("image_std", std)
    if min(std) <= 0:
        raise fields.error("image_std", "numbers above 0")
    rescaled = fields.boolean("do_rescale", True)
    factor = fields.number("rescale_factor", 1 / 255) if rescaled else 1.0
    if fields.boolean("do_normalize", True):
        return Normalization(factor, mean, std)
    return Normalization(factor, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def parse_pad_color(fields: JsonFields, mean: Channels = CLIP_MEAN) -> tuple[int, int, int]:
    """The colour that images are padded with to squares: the mean, as transformers has it."""
    red, green, blue = (int(value * 255) for value in fields.channels("image_mean", mean))
    return red, green, blue
