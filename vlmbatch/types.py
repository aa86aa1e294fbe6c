"""The values that pass between the stages of a run. No torch, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import ImageResolution, SamplingParams
from vlmbatch.errors import ErrorCode, RequestError, RowError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Page:
    """Which page of a document an image is, from 1, and how it is drawn: with its longer side of
    ``longest_side`` pixels, else at ``dpi``, else as the reader of documents does."""

    number: int
    dpi: int | None = None
    longest_side: int | None = None


@dataclass(frozen=True, slots=True)
class ImageRef:
    """Where an image's encoded bytes are: a path, the bytes (``path`` is then a label), or a URL.

    ``page``: of the PDF that they are; None of a picture.

    ``url`` is http(s), of a host that the user has allowed. ``resolution``: its row's own, where it
    is another than the run's. ``row_images``: how many images its row shows, itself among them; the
    row sets it.
    """

    path: str | None = None
    data: bytes | None = field(default=None, repr=False)
    url: str | None = None
    resolution: ImageResolution | None = None
    page: Page | None = None
    row_images: int = field(default=1, compare=False, repr=False)

    @property
    def num_bytes(self) -> int:
        """Memory that it holds on to until its row is prepared."""
        return 0 if self.data is None else len(self.data)


@dataclass(frozen=True, slots=True)
class Row:
    """One manifest row as read. ``error`` is set when the row is already known to be bad.

    ``prompt_token_ids``: the prompt of a request that brings tokens in the place of text.
    """

    index: int
    id: str
    line: int  # 1-based line (JSONL) or row number (Parquet) in its file, for messages
    file: str
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    images: tuple[ImageRef, ...] = ()
    sampling: SamplingParams | None = None  # the run's parameters with this row's overrides
    extra: dict[str, Any] = field(default_factory=dict)  # columns passed through to the output
    error: RowError | None = None
    prompt_token_ids: tuple[int, ...] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        count = len(self.images)
        if any(image.row_images != count for image in self.images):
            images = tuple(replace(image, row_images=count) for image in self.images)
            object.__setattr__(self, "images", images)


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """What a model makes of an image, known from the size in its header.

    ``height`` and ``width`` count the patches that the decoder sees, merged where the model merges
    them; ``num_tokens`` is how many tokens of a prompt the image takes, ``num_bytes`` the memory
    that it takes on its way to the engine, as pixels.
    """

    height: int
    width: int
    num_tokens: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class PixelImage:
    """A decoded and resized image, ready for a vision tower.

    ``pixels``: (height, width, 3) uint8, RGB, of any size that the model takes. ``content_hash``:
    digest of the pixels, their shape, the grid and the image processor's fingerprint: the image's
    identity in the encoder and prefix caches.
    """

    pixels: NDArray[np.uint8] = field(repr=False)
    content_hash: bytes
    grid: ImageGrid

    @property
    def num_bytes(self) -> int:
        return self.pixels.nbytes


@dataclass(frozen=True, slots=True, weakref_slot=True)
class FeatureImage:
    """An image as the vision tower's output, before the projector where there is one.

    ``features``: (grid.num_tokens, C) float16 or float32, or uint16 that holds the bits of
    bfloat16, which numpy lacks. ``content_hash``: digest of the features, their stored shape and
    dtype: the image's identity in the encoder and prefix caches.
    """

    features: NDArray[np.float16 | np.float32 | np.uint16] = field(repr=False)
    content_hash: bytes
    grid: ImageGrid

    @property
    def num_bytes(self) -> int:
        return self.features.nbytes


ImageInput = PixelImage | FeatureImage


@dataclass(frozen=True, slots=True)
class ImageSpan:
    """``length`` consecutive prompt tokens from ``start`` that take features of one image.

    ``image`` indexes the request's images; ``offset`` is the first feature row used.
    """

    start: int
    length: int
    image: int
    offset: int = 0


@dataclass(frozen=True, slots=True)
class ProcessedInputs:
    """What a checkpoint's own processor made of a row, for its class in transformers.

    ``tensors``: by the names of the model's arguments, each (1, ...) or with a first dimension that
    counts images or parts of them. ``num_image_tokens``: of the prompt, those that stand for
    ``num_images`` images.
    """

    tensors: Mapping[str, Any] = field(repr=False)
    num_images: int
    num_image_tokens: int

    @property
    def num_bytes(self) -> int:
        return sum(int(getattr(value, "nbytes", 0)) for value in self.tensors.values())


@dataclass(frozen=True, slots=True)
class Request:
    """A row as the engine takes it: token ids and pixels or features, no text and no files.

    ``inputs``: what there is in the place of images where transformers answers. ``positions``: of
    the prompt's T tokens, (T,) or (3, T) int64, where a model's processor counts them itself;
    ``None`` stands for 0 to T - 1. Token i of the answer is at ``next_position`` + i, in all three
    rows; ``None`` stands for T. ``scored``: tokens whose log-probabilities are told with each token
    of the answer, in the place of the likeliest ones. ``is_row``: whether its answer counts as a
    row's; of several requests for one row only one does. ``prompt_logprobs``: log-probabilities of
    the prompt's own tokens are told, with so many of the likeliest; None for none.
    """

    index: int
    token_ids: list[int] = field(repr=False)
    sampling: SamplingParams
    images: tuple[ImageInput, ...] = ()
    image_spans: tuple[ImageSpan, ...] = ()
    positions: NDArray[np.int64] | None = field(default=None, repr=False)
    next_position: int | None = None
    inputs: ProcessedInputs | None = None
    scored: tuple[int, ...] = ()
    is_row: bool = True
    prompt_logprobs: int | None = None

    @property
    def num_image_tokens(self) -> int:
        if self.inputs is not None:
            return self.inputs.num_image_tokens
        return sum(span.length for span in self.image_spans)

    @property
    def image_sizes(self) -> list[int]:
        """Bytes that each image holds on to."""
        if self.inputs is not None and self.inputs.num_images:
            return [self.inputs.num_bytes // self.inputs.num_images] * self.inputs.num_images
        return [image.num_bytes for image in self.images]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer with its log-probability, by the model's own logits in float32.

    ``top``: the likeliest tokens in its place with theirs, likeliest first.
    """

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """One output row, in the terms of the output schema.

    ``details``: values of columns that are there where a run asks for them, by name, as JSON has
    them.
    ``error_param`` and ``error_api_code`` are those of a ``RequestError``, for batch files alone.
    """

    index: int
    id: str
    text: str | None = None
    finish_reason: FinishReason | None = None
    prompt_tokens: int | None = None
    image_tokens: int | None = None
    completion_tokens: int | None = None
    error_code: ErrorCode | None = None
    error_message: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    error_param: str | None = None
    error_api_code: str | None = None

    @property
    def status(self) -> Literal["ok", "error"]:
        return "ok" if self.error_code is None else "error"

    @classmethod
    def from_error(cls, row: Row, error: RowError) -> Result:
        result = cls(row.index, row.id, error_code=error.code, error_message=error.message)
        return result.of_row(row, error)

    def of_row(self, row: Row, error: RowError | None) -> Result:
        """With what a journal does not hold, as ``row`` and its ``error`` bring it again."""
        if isinstance(error, RequestError):
            param, api_code = error.param, error.api_code
            return replace(self, extra=row.extra, error_param=param, error_api_code=api_code)
        return replace(self, extra=row.extra)


@dataclass(frozen=True, slots=True)
class ErrorExample:
    """A row's error, for people. ``row``: its number in the manifest."""

    row: int
    row_id: str
    message: str | None

    def __str__(self) -> str:
        return f"row {self.row} (id {self.row_id}): {self.message}"


def note_example(examples: dict[str, ErrorExample], code: str, example: ErrorExample) -> None:
    """Keep of each error code the row with the lowest number, whichever came first."""
    known = examples.get(code)
    if known is None or example.row < known.row:
        examples[code] = example
