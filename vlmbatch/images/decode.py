"""Images: headers checked against the limits, and pixels in upright, true RGB."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from PIL import ExifTags, Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.TiffImagePlugin import TiffImageFile

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.colours import to_rgb, transparent_colour
from vlmbatch.images.file import image_label, open_image_bytes
from vlmbatch.images.formats import (
    DECODERS,
    HEAD_BYTES,
    ISO_FORMATS,
    foreign_content,
    foreign_format,
    is_preview,
    known_format,
    open_decoder,
    video_format,
)
from vlmbatch.images.iso_boxes import largest_coded_size
from vlmbatch.images.pdf import page_size, render_page
from vlmbatch.images.tensor_file import NPY_MAGIC, is_safetensors
from vlmbatch.models.reduced import Reduced
from vlmbatch.types import ImageRef

# What Pillow's plugins, written for well-formed files, raise on broken ones.
_BROKEN = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = (5, 6, 7, 8)
_FROM_THE_RIGHT = (2, 3, 6, 7)  # what lies on the left was last
_FROM_BELOW = (3, 4, 7, 8)
_PADDING = 63  # at most, of each side of a picture in HEVC's largest blocks

# (height, width) of an upright image to the height and width that are needed of it.
NeededSize = Callable[[int, int], tuple[int, int]]


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What an image says of itself; ``width`` and ``height`` are those of the upright image."""

    format: str
    width: int
    height: int


def probe_image(ref: ImageRef, limits: ImageLimits) -> ImageHeader:
    """Read an image's header alone.

    An orientation that a PNG states behind its pixels is not looked for: it may be far into the
    file.

    Raises:
        RowError: an image code; the message names the path and the cause.
    """
    if ref.page is not None:
        return ImageHeader("PDF", *page_size(ref, limits)[::-1])
    with _opened(ref, limits) as image:
        assert image.format is not None
        height, width = _upright(image.height, image.width, image)
        return ImageHeader(image.format, width, height)


def jpeg_layout(ref: ImageRef, limits: ImageLimits) -> tuple[int, int, int | None]:
    """Height and width of a JPEG as they are in its header, and its EXIF orientation.

    Raises:
        RowError: an image code; the message names the path and the cause.
    """
    with _opened(ref, limits) as image:
        return image.height, image.width, _header_orientation(image)


def decode_image(ref: ImageRef, limits: ImageLimits) -> Image.Image:
    """Decode an image to mode RGB, upright by its EXIF orientation; an animation's first frame.

    Alpha is composed over white, 16-bit grey rescaled, a page of a PDF rendered. Safe to call
    from many threads.

    Raises:
        RowError: an image code; the message names the path and the cause.
    """
    if ref.page is not None:
        return render_page(ref, limits)
    with _opened(ref, limits) as image:
        rgb = _upright_rgb(image)
        rgb.info = {}  # nothing may rotate it again
        return rgb


def decode_scaled(
    ref: ImageRef, limits: ImageLimits, needed: NeededSize
) -> tuple[Image.Image, Reduced | None]:
    """As ``decode_image``, but a JPEG may be decoded to fewer pixels.

    Of one whose sides are both at least twice as long as ``needed``, libjpeg computes a half, a
    quarter or an eighth of the rows and columns, rounded up, from the lower frequencies alone:
    never fewer than needed. Limits are of the file's own size.

    Raises:
        RowError: an image code; the message names the path and the cause. What ``needed`` raises.
    """
    if ref.page is not None:
        return render_page(ref, limits), None
    with _opened(ref, limits) as image:
        scale = 1
        height, width = _upright(image.height, image.width, image)
        orientation = _header_orientation(image)
        if isinstance(image, JpegImageFile):
            down, across = _upright(*needed(height, width), image)
            image.draft(None, (across, down))
            scale = image.decoderconfig[0] if image.decoderconfig else 1
        rgb = _upright_rgb(image)
        rgb.info = {}
        if scale == 1:
            return rgb, None
        # The cells that are filled in part were the last ones before the image was turned.
        left = rgb.width - width / scale if orientation in _FROM_THE_RIGHT else 0.0
        top = rgb.height - height / scale if orientation in _FROM_BELOW else 0.0
        box = (left, top, left + width / scale, top + height / scale)
        return rgb, Reduced(height, width, box)


def copy_image(image: Image.Image, limits: ImageLimits, label: str) -> Image.Image:
    """What ``decode_image`` would give of an image that Pillow has opened or made: a copy.

    ``label`` names it in messages.

    Raises:
        RowError: an image code, as by ``decode_image``.
    """
    with _row_errors(label):
        _check_pixels(image, label, limits)
        rgb = _upright_rgb(image)
        if rgb is image:
            rgb = image.copy()
        rgb.info = {}
        return rgb


@contextlib.contextmanager
def _opened(ref: ImageRef, limits: ImageLimits) -> Iterator[ImageFile.ImageFile]:
    """The image with its header read and its size checked; Pillow's errors become ours."""
    label = image_label(ref)
    with open_image_bytes(ref, limits) as opened, _row_errors(label):
        file = opened
        head = file.read(HEAD_BYTES)
        name = known_format(head)
        if name is None:
            raise _unknown_format(label, head)
        if name in ISO_FORMATS:
            file.seek(0)
            data = file.read()
            width, height = largest_coded_size(data)
            if (width - _PADDING) * (height - _PADDING) > limits.max_pixels:
                _check_size(width, height, label, limits)
            file = io.BytesIO(data)
        try:
            image = open_decoder(file, name)
        except ImportError as error:
            raise RowError(
                ErrorCode.IMAGE_FORMAT_UNSUPPORTED, f"{label}: {name} is not read here: {error}"
            ) from error
        _check_pixels(image, label, limits)
        if is_preview(image):
            raise RowError(
                ErrorCode.IMAGE_FORMAT_UNSUPPORTED,
                f"{label}: a small preview of another picture comes first, as in the raw files of "
                "cameras (DNG, NEF, ARW): make a JPEG or TIFF of it",
            )
        yield image


@contextlib.contextmanager
def _row_errors(label: str) -> Iterator[None]:
    """Within, what Pillow raises becomes an error of the row."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise RowError(ErrorCode.IMAGE_TOO_LARGE, f"{label}: {error}") from error
    except _BROKEN as error:
        cause = str(error).strip() or type(error).__name__
        raise RowError(
            ErrorCode.IMAGE_UNREADABLE, f"{label}: corrupt or truncated: {cause}"
        ) from error


def _upright_rgb(image: Image.Image) -> Image.Image:
    transparent = transparent_colour(image)
    image.load()
    orientation = _orientation(image)
    rgb = to_rgb(image, transparent)
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb


def _check_pixels(image: Image.Image, label: str, limits: ImageLimits) -> None:
    _check_size(*image.size, label, limits)
    if image.mode == "F":
        raise RowError(
            ErrorCode.IMAGE_FORMAT_UNSUPPORTED,
            f"{label}: floating-point pixels are not read: convert to 8 or 16 bits",
        )


def _check_size(width: int, height: int, label: str, limits: ImageLimits) -> None:
    pixels = width * height
    if pixels == 0:
        raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{label}: {width} x {height} pixels")
    if pixels > limits.max_pixels:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{label}: {width} x {height} = {pixels} pixels, over the limit of {limits.max_pixels}",
        )


def _unknown_format(label: str, head: bytes) -> RowError:
    foreign = foreign_format(head)
    if foreign == "PDF":
        return RowError(
            ErrorCode.IMAGE_FORMAT_UNSUPPORTED,
            f"{label}: a PDF: name a page of it, as in {label}#1, or run on its folder",
        )
    if foreign:
        return RowError(
            ErrorCode.IMAGE_FORMAT_UNSUPPORTED,
            f"{label}: {foreign} is not read: convert it to one of {', '.join(DECODERS)}",
        )
    if video := video_format(head):
        return RowError(
            ErrorCode.IMAGE_FORMAT_UNSUPPORTED,
            f"{label}: a video ({video}), not an image: videos are not taken, frames of them as "
            "images are",
        )
    if head.startswith(NPY_MAGIC) or is_safetensors(head):
        return RowError(
            ErrorCode.IMAGE_FORMAT_UNSUPPORTED,
            f"{label}: not an image but numbers: features need --image-input-type image_features",
        )
    cause = foreign_content(head)
    return RowError(ErrorCode.IMAGE_UNREADABLE, f"{label}: not an image: {cause}")


def _upright(height: int, width: int, image: ImageFile.ImageFile) -> tuple[int, int]:
    """Height and width, exchanged where the header says that the image lies on its side."""
    return (width, height) if _header_orientation(image) in _SIDEWAYS else (height, width)


def _header_orientation(image: ImageFile.ImageFile) -> int | None:
    if isinstance(image, TiffImageFile):
        return None  # Pillow turns these itself, and gives the size of the upright image
    try:
        # PNG's own method would decode the image first.
        return Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except _BROKEN:
        return None


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except _BROKEN:
        return None  # corrupt EXIF says nothing of the pixels
