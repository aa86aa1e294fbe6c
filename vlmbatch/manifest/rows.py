"""From a manifest's values to a ``Row``: prompt, images, sampling, and what passes through."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.buckets import AllowedBuckets, is_bucket_url
from vlmbatch.images.urls import AllowedDomains, ImageUrls
from vlmbatch.manifest.arrow_values import shown_with_type, times_as_text
from vlmbatch.manifest.columns import (
    MESSAGES_COLUMN,
    Columns,
    is_request,
)
from vlmbatch.manifest.ids import id_of_error, read_id, unknown_id
from vlmbatch.manifest.page_names import page_of
from vlmbatch.manifest.row_settings import row_resolution, row_sampling
from vlmbatch.types import ImageRef, Page, Row

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_READ_AS_URL = re.compile("(?:data:|https?://)", re.IGNORECASE)
# How JPEG, PNG, GIF, WebP and TIFF begin in base64. Anything in its alphabet that is longer than a
# path may be is none either.
_BASE64 = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|SUkqA|TU0AK|.{4096})[A-Za-z0-9+/=_\s-]*")
_MIN_BASE64 = 48  # characters: no image is shorter
NO_DOMAINS = AllowedDomains()
NO_BUCKETS = AllowedBuckets()


class RowBuilder:
    """Reads rows by the names of ``columns``; relative image paths start from ``image_base``.

    ``with_kept``: inputs that are kept are among the values that pass through. ``domains``: hosts
    that images may be fetched from; ``buckets``: of object stores. ``prompt``: of rows that bring
    neither prompt nor messages. ``dpi`` and ``longest_side``: how pages of PDFs are drawn.
    ``base_url``, which ends with a slash: where relative paths start in place of ``image_base``.
    ``needs_prompts``: a row that has none, of its own or by default, is an error.
    """

    def __init__(
        self,
        columns: Columns,
        defaults: SamplingParams,
        image_base: Path,
        *,
        with_kept: bool = False,
        domains: AllowedDomains = NO_DOMAINS,
        buckets: AllowedBuckets = NO_BUCKETS,
        prompt: str | None = None,
        dpi: int | None = None,
        longest_side: int | None = None,
        base_url: str | None = None,
        needs_prompts: bool = True,
    ) -> None:
        self.columns = columns
        self._default_prompt = prompt
        self._needs_prompts = needs_prompts
        self._has_own_prompts = self._has_default_prompts = False  # of the rows so far
        self._dpi, self._longest_side = dpi, longest_side
        self._left_out = columns.dropped if with_kept else columns.inputs
        self._defaults = defaults
        self._image_base = image_base
        self._base_url = base_url
        self._urls = ImageUrls(domains, buckets=buckets)

    @property
    def is_prompt_unused(self) -> bool:
        """Whether the prompt of all rows was given, and those so far brought theirs."""
        is_given = self._default_prompt is not None
        return is_given and self._has_own_prompts and not self._has_default_prompts

    def build(self, index: int, file: str, line: int, values: dict[str, Any] | RowError) -> Row:
        """The row, with ``error`` set when its values (or the lack of any) rule out an answer."""
        if isinstance(values, RowError):
            row_id = id_of_error(values, self.columns.id, index)
            return Row(index, row_id, line, file, error=values)
        left_out = self._left_out
        extra = {name: value for name, value in values.items() if name not in left_out}
        row_id = unknown_id(index)
        try:
            row_id = read_id(values, self.columns.id, index)
            prompt, messages = self._prompt(values)
            images = self._images(values.get(self.columns.image))
            if (resolution := row_resolution(values)) is not None:
                images = tuple(replace(image, resolution=resolution) for image in images)
            sampling = row_sampling(self._defaults, values, index)
        except RowError as error:
            return Row(index, row_id, line, file, extra=extra, error=error)
        return Row(index, row_id, line, file, prompt, messages, images, sampling, extra)

    def _prompt(self, values: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]] | None]:
        column = self.columns.prompt
        prompt = values.get(column)
        messages = values.get(MESSAGES_COLUMN)
        if prompt is None and messages is None:
            self._has_default_prompts = True
        else:
            self._has_own_prompts = True
        if messages is None:
            prompt = self._default_prompt if prompt is None else prompt
            if isinstance(prompt, str) or (prompt is None and not self._needs_prompts):
                return prompt, None
            if column not in values:
                present = ", ".join(f'"{name}"' for name in values) or "none"
                message = (
                    f'no column "{column}" or "{MESSAGES_COLUMN}" (present: {present:.200}); '
                    "name the prompt's column with --prompt-column, or give all rows one with "
                    "--prompt"
                )
                if is_request(values):
                    message += ", or read OpenAI's batch requests with --format openai"
            elif prompt is None:
                message = f'column "{column}" is null'
            else:
                message = f'column "{column}" must be a string, got {shown_with_type(prompt)}'
            raise RowError(ErrorCode.PROMPT_INVALID, message)
        if prompt is not None:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f'both "{column}" and "{MESSAGES_COLUMN}" are given: leave one of them out',
            )
        if not (isinstance(messages, list) and all(isinstance(item, dict) for item in messages)):
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f'column "{MESSAGES_COLUMN}" must be a list of objects with "role" and "content", '
                f"got {shown_with_type(messages)}",
            )
        if not messages:
            raise RowError(ErrorCode.PROMPT_INVALID, f'column "{MESSAGES_COLUMN}" is empty')
        return None, times_as_text(messages)

    def _images(self, value: Any) -> tuple[ImageRef, ...]:
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
            f'column "{self.columns.image}" must hold a path or URL, or {{"bytes", "path"}} with '
            f"binary bytes or a path, or a list of these; got {shown_with_type(value)}",
        )

    def _named(self, text: str) -> ImageRef:
        """The image of a path, a ``data:`` URL, or a URL of an allowed host or bucket."""
        if _READ_AS_URL.match(text) or is_bucket_url(text):
            return self._urls.read(text, f'column "{self.columns.image}"')
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
        return self._urls.read(url, f'column "{self.columns.image}"')

    def _path(self, path: str) -> str:
        self._check_path(path)
        return str(self._image_base / path)

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
