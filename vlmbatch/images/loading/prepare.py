"""One image, from its bytes to the pixels that the model takes."""

from __future__ import annotations

from vlmbatch.config import ImageDecoder, ImageLimits
from vlmbatch.images.decode import decode_image, decode_scaled
from vlmbatch.models.processor import ImageProcessor
from vlmbatch.types import ImageRef, PixelImage


def prepare_image(
    ref: ImageRef, limits: ImageLimits, processor: ImageProcessor, decoder: ImageDecoder
) -> PixelImage:
    """Decode an image and prepare it as its row asks for; what a GPU has left, as ``exact``.

    Raises:
        RowError: an image code, ``resolution_invalid``, or the model takes no such image.
    """
    at = processor.at(ref.resolution, ref.row_images)
    if decoder == "scaled":
        return at.process(*decode_scaled(ref, limits, at.needed))
    return at.process(decode_image(ref, limits))
