"""Pages of PDFs as pictures, by pdfium."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, BinaryIO

from PIL import Image

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.file import image_label, open_image_bytes
from vlmbatch.images.formats import HEAD_BYTES, foreign_content
from vlmbatch.types import ImageRef

DEFAULT_DPI = 150
MISSING = "PDFs are read by pypdfium2, which is not installed: pip install 'vlmbatch[pdf]'"
_POINTS_PER_INCH = 72
_LESS = 2**-10  # of a pixel
_BLOCK_BYTES = 2**20
_ENCRYPTION = b"/Encrypt"
_HEAD = b"%PDF-"
_PDFIUM = threading.Lock()  # the library may be in one thread at a time


def has_pdf_library() -> bool:
    return find_spec("pypdfium2") is not None


def count_pages(ref: ImageRef, limits: ImageLimits) -> int:
    """How many pages the document at ``ref`` says that it has.

    Raises:
        RowError: an image code; the message names the path and the cause.
    """
    with _opened(ref, limits) as document:
        return len(document)


def page_size(ref: ImageRef, limits: ImageLimits) -> tuple[int, int]:
    """Height and width in pixels that ``render_page`` would give.

    Raises:
        RowError: an image code; the message names the path, the page and the cause.
    """
    with _opened(ref, limits) as document:
        _, height, width, _ = _measured(document, ref, limits)
        return height, width


def render_page(ref: ImageRef, limits: ImageLimits) -> Image.Image:
    """The page of a document, on white, in mode RGB: with ``longest_side`` exactly so long, else at
    ``dpi``.

    Raises:
        RowError: an image code; the message names the path, the page and the cause.
    """
    with _opened(ref, limits) as document:
        page, height, width, scale = _measured(document, ref, limits)
        image: Image.Image = page.render(scale=scale).to_pil().convert("RGB")
        assert image.size == (width, height), f"{image.size}, expected {width} x {height}"
        return image


@contextmanager
def _opened(ref: ImageRef, limits: ImageLimits) -> Iterator[Any]:
    label = image_label(ref)
    try:
        import pypdfium2
    except ImportError as error:
        message = f"{label}: {MISSING}"
        raise RowError(ErrorCode.IMAGE_FORMAT_UNSUPPORTED, message) from error
    with open_image_bytes(ref, limits) as file, _PDFIUM:
        head = file.read(HEAD_BYTES)
        if _HEAD not in head:
            cause = foreign_content(head)
            raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{label}: not a PDF: {cause}")
        file.seek(0)
        try:
            document = pypdfium2.PdfDocument(file)
            try:
                document.init_forms()  # what is filled in is drawn
                yield document
            finally:
                document.close()
        except pypdfium2.PdfiumError as error:
            # The library's own code for the cause may be that of an earlier document.
            cause = "corrupt or truncated"
            if "load page" in str(error):
                cause = "this page is corrupt or missing"
            elif _is_encrypted(file):
                cause = "encrypted: remove its password first"
            raise RowError(ErrorCode.IMAGE_UNREADABLE, f"{label}: {cause}") from error
        except (OSError, ValueError) as error:
            raise RowError(
                ErrorCode.IMAGE_UNREADABLE, f"{label}: corrupt or truncated: {error}"
            ) from error


def _is_encrypted(file: BinaryIO) -> bool:
    file.seek(0)
    before = b""
    while block := file.read(_BLOCK_BYTES):
        if _ENCRYPTION in before + block:
            return True
        before = block[-len(_ENCRYPTION) :]
    return False


def _measured(document: Any, ref: ImageRef, limits: ImageLimits) -> tuple[Any, int, int, float]:
    """The page, its height and width in pixels, and these for each point of it."""
    assert ref.page is not None, "a page is asked for"
    label, number = image_label(ref), ref.page.number
    if not 1 <= number <= len(document):
        raise RowError(
            ErrorCode.IMAGE_MISSING, f"{label}: there is no such page: it has {len(document)}"
        )
    page = document[number - 1]
    across, down = page.get_size()
    longest = max(across, down)
    if not (math.isfinite(longest) and min(across, down) > 0):
        raise RowError(
            ErrorCode.IMAGE_UNREADABLE, f"{label}: the page has a size of {across} x {down} points"
        )
    if ref.page.longest_side is None:
        scale = (ref.page.dpi or DEFAULT_DPI) / _POINTS_PER_INCH
    else:
        scale = (ref.page.longest_side - _LESS) / longest  # so that it is not rounded up
    height, width = (math.ceil(side * scale) for side in (down, across))  # as pdfium rounds
    if height * width > limits.max_pixels:
        raise RowError(
            ErrorCode.IMAGE_TOO_LARGE,
            f"{label}: {across:.0f} x {down:.0f} points are {width} x {height} = {width * height} "
            f"pixels, over the limit of {limits.max_pixels}: lower --dpi, or give --longest-side",
        )
    return page, height, width, scale
