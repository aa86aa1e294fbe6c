"""An image processor of every family, in every shape that it has, for small images."""

from __future__ import annotations

from PIL import Image

from vlmbatch.hf.images import UprightImages
from vlmbatch.models.llava.image_processor import LlavaImageProcessor
from vlmbatch.models.llava_next.image_processor import (
    LlavaNextImageProcessor,
    SquareImageProcessor,
)
from vlmbatch.models.llava_next.tiling import Size
from vlmbatch.models.preprocessor_config import Normalization
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.models.qwen_vl.image_processor import QwenImageProcessor
from vlmbatch.models.shrink import NO_SHRINK, Shrink

CUBIC, HALVES = Image.Resampling.BICUBIC, (0.5, 0.5, 0.5)
NORMAL = Normalization(1 / 255, HALVES, HALVES)
GREY = (127, 127, 127)


def llava(
    resize_to: tuple[int, int] | int | None,
    crop_to: tuple[int, int] | None,
    pad_color: tuple[int, int, int] | None = None,
) -> LlavaImageProcessor:
    return LlavaImageProcessor(
        *(resize_to, CUBIC, crop_to, pad_color, 1 / 255, HALVES, HALVES),
        *((40, 40), (4, 4), 16),
    )


def tiled(shrink: Shrink = NO_SHRINK) -> LlavaNextImageProcessor:
    pinpoints = (Size(40, 80), Size(80, 40), Size(80, 80))
    return LlavaNextImageProcessor(40, 4, pinpoints, None, CUBIC, NORMAL, shrink, None)


def qwen(shrink: Shrink = NO_SHRINK) -> QwenImageProcessor:
    return QwenImageProcessor(8, 256, 6400, CUBIC, NORMAL, shrink)


PROCESSORS: dict[str, ImageProcessor] = {
    "llava, cropped": llava(40, (40, 40)),
    "llava, out of shape": llava((40, 40), None),
    "llava, padded": llava((40, 40), None, GREY),
    "llava, padded by its edge": llava(40, None, GREY),
    "llava, not resized": llava(None, (40, 40)),
    "tiles": tiled(),
    "tiles of what is scaled down": tiled(Shrink(longest_side=100)),
    "a square": SquareImageProcessor(40, 4, CUBIC, GREY, NORMAL, NO_SHRINK),
    "a square of fewer pixels": SquareImageProcessor(
        40, 4, CUBIC, GREY, NORMAL, Shrink(max_pixels=2000)
    ),
    "qwen": qwen(),
    "qwen, scaled down": qwen(Shrink(longest_side=50)),
    "transformers": UprightImages(10**6),
    "transformers, scaled down": UprightImages(10**6, Shrink(longest_side=60)),
}
