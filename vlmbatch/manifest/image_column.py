"""The image column of a manifest: paths, URLs and bytes to the images that they name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.buckets import is_bucket_url
from vlmbatch.images.urls import ImageUrls
from vlmbatch.manifest.arrow_values import shown_with_type
from vlmbatch.manifest.page_names import page_of
from vlmbatch.types import ImageRef, Page

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_READ_AS_URL = re.compile("(?:data:|https?://)", re.IGNORECASE)
# How JPEG, PNG, GIF, WebP, TIFF, AVIF and HEIC begin in base64. Anything in its alphabet that is
# longer than a path may be is none either.
_BASE64 = re.compile(
    r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|AAAA.GZ0eX|.{4096})[A-Za-z0-9+/=_\s-]*"
)
_MIN_BASE64 = 48  # characters: no image is shorter
_DATA_URLS = ImageUrls()


class ImageColumn:
    """Reads images from the column ``name``; relative paths start from ``folder``.

    ``base_url``, which ends with a slash: where they start in place of ``folder``. ``urls``: which
    URLs may be read. ``dpi`` and ``longest_side``: how pages of PDFs are drawn.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        *,
        base_url: str | None = None,
        urls: ImageUrls = _DATA_URLS,
        dpi: int | None = None,
        longest_side: int | None = None,
    ) -> None:
        self._name = name
        self._folder = folder
        self._base_url = base_url
        self._urls = urls
        self._dpi, self._longest_side = dpi, longest_side

    def read(self, value: Any) -> tuple[ImageRef, ...]:
        """The images of one row, by what stands in its column.

        Raises:
            RowError: it is no image, or one that is not allowed.
        """
        if value is None:
            return ()
        if isinstance(value, list):
            return tuple(self._image(item) for item in value)
        return (self._image(value),)

    def _image(self, value: Any) -> ImageRef:
        if isinstance(value, str):
            return self._named(value)
        if isinstance(value, bytes):
            return ImageRef(data=value)
        if isinstance(value, dict):
            data, path = value.get("bytes"), value.get("path")
            if isinstance(data, bytes) and isinstance(path, str | None):
                return ImageRef(path, data)
            if data is None and isinstance(path, str):
                return self._named(path)
        raise RowError(
            ErrorCode.IMAGE_INVALID,
            f'column "{self._name}" must hold a path or URL, or {{"bytes", "path"}} with '
            f"binary bytes or a path, or a list of these; got {shown_with_type(value)}",
        )

    def _named(self, text: str) -> ImageRef:
        """The image of a path, a ``data:`` URL, or a URL of an allowed host or bucket."""
        if _READ_AS_URL.match(text) or is_bucket_url(text):
            return self._urls.read(text, f'column "{self._name}"')
        page = page_of(text)
        if self._base_url is not None and not text.startswith("/"):
            return self._remote(self._base_url, text, is_page=page is not None)
        if page is not None:
            path, number = page
            return ImageRef(self._path(path), page=Page(number, self._dpi, self._longest_side))
        return ImageRef(self._path(text))

    def _remote(self, base_url: str, path: str, *, is_page: bool) -> ImageRef:
        """The image of that name below a URL."""
        self._check_path(path)
        if is_page:
            raise RowError(ErrorCode.IMAGE_INVALID, f"{path:.200}: PDFs are read from files alone")
        if ".." in path.split("/"):
            raise RowError(
                ErrorCode.IMAGE_FORBIDDEN, f"{path:.200}: leads out of --image-base {base_url:.200}"
            )
        if _READ_AS_URL.match(base_url):
            path = quote(path, errors="surrogateescape")
        url = base_url + path.removeprefix("./")
        return self._urls.read(url, f'column "{self._name}"')

    def _path(self, path: str) -> str:
        self._check_path(path)
        return str(self._folder / path)

    def _check_path(self, path: str) -> None:
        if not path or "\0" in path:
            cause = "contains a NUL character" if path else "is empty"
            raise RowError(ErrorCode.IMAGE_INVALID, f"the image path {path!r:.200} {cause}")
        if _URL.match(path):
            raise RowError(
                ErrorCode.IMAGE_INVALID,
                f"{path:.200} is a URL of a kind that is not read: images are local files, data: "
                "or http(s) URLs, or bytes in Parquet",
            )
        if len(path) >= _MIN_BASE64 and _BASE64.fullmatch(path):
            raise RowError(
                ErrorCode.IMAGE_INVALID,
                f"{path[:20]}… is no path but looks like base64: put data:image/jpeg;base64, (or "
                "the like) before it, or store bytes in Parquet",
            )
