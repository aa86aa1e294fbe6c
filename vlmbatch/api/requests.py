"""From Python requests to rows: prompts, conversations, and the sampling of each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vlmbatch.api.images import ImageFeatureData, ImagePixelData, ImageReader, path_ref
from vlmbatch.config import ImageResolution, SamplingParams, typed
from vlmbatch.config.seeds import derive_seed
from vlmbatch.config.typed import shown
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.images.urls import ImageUrls
from vlmbatch.manifest.columns import RESOLUTION_COLUMNS
from vlmbatch.openai.errors import ApiError
from vlmbatch.types import ImageRef, Row

# Text; or a dict of prompt and multi_modal_data (an image, a list, or {"image": ...} with either),
# or of messages alone. Either may have mm_processor_kwargs with max_pixels and min_pixels.
PromptInput = str | Mapping[str, Any]
_DATA_URLS = ImageUrls()
_KEYS = ("prompt", "multi_modal_data", "messages", "mm_processor_kwargs")


@dataclass(frozen=True, slots=True)
class RequestReader:
    """Makes a ``Row`` of each request; what is wrong with it becomes the row's error."""

    images: ImageReader

    def read(self, index: int, request: object, sampling: object) -> Row:
        """The row of the request at ``index``."""
        row = Row(index, str(index), index + 1, "requests")
        try:
            if not isinstance(sampling, SamplingParams):
                raise RowError(
                    ErrorCode.SAMPLING_INVALID,
                    f"sampling_params[{index}] is no SamplingParams: {shown(sampling)}",
                )
            row = replace(row, sampling=sampling)
            if isinstance(request, str):
                return replace(row, prompt=request)
            if not isinstance(request, Mapping):
                raise _invalid(f"a request is a string or a dict, got {shown(request)}")
            if unknown := [key for key in request if key not in _KEYS]:
                raise _invalid(f"unknown key {unknown[0]!r:.80}; a request has {', '.join(_KEYS)}")
            resolution = _resolution(request.get("mm_processor_kwargs"))
            if "messages" in request:
                messages, images = self._messages(request)
                return replace(row, messages=messages, images=_at(resolution, images))
            prompt = request.get("prompt")
            if not isinstance(prompt, str):
                raise _invalid(f"prompt must be a string, got {shown(prompt)}")
            row = replace(row, prompt=prompt)
            images = self._data(request.get("multi_modal_data"))
            return replace(row, images=_at(resolution, images))
        except RowError as error:
            return replace(row, error=error)
        except Exception as error:  # noqa: BLE001  the request's own objects may raise anything
            failure = f"the request cannot be read: {type(error).__name__}: {error}"
            return replace(row, error=RowError(ErrorCode.REQUEST_INVALID, failure))

    def _data(self, given: object) -> tuple[ImageRef, ...]:
        if given is None:
            return ()
        if isinstance(given, Mapping):
            if unknown := [key for key in given if key != "image"]:
                raise _invalid(
                    f"multi_modal_data has the key 'image' alone, got {unknown[0]!r:.80}"
                )
            return tuple(self.images.read_plain(given.get("image")))
        several = given if isinstance(given, list | tuple) else (given,)
        return tuple(self.images.read(each) for each in several)

    def _messages(
        self, request: Mapping[str, Any]
    ) -> tuple[list[dict[str, Any]], tuple[ImageRef, ...]]:
        """Messages as a chat template takes them, and the images in them."""
        if "prompt" in request or "multi_modal_data" in request:
            raise _invalid("messages bring their own images: leave out prompt and multi_modal_data")
        given = request["messages"]
        if not isinstance(given, Sequence) or isinstance(given, str):
            raise _invalid(f"messages must be a list, got {shown(given)}")
        messages: list[dict[str, Any]] = []
        images: list[ImageRef] = []
        for number, message in enumerate(given, 1):
            if not isinstance(message, Mapping):
                raise _invalid(f"message {number} must be a dict, got {shown(message)}")
            content = message.get("content")
            if isinstance(content, list | tuple):
                content = [self._part(part, number, images) for part in content]
            messages.append({**message, "content": content})
        return messages, tuple(images)

    def _part(self, part: object, number: int, images: list[ImageRef]) -> object:
        """A part of a message; an image's content goes to ``images``."""
        if not isinstance(part, Mapping) or part.get("type") not in ("image_url", "image"):
            return part
        kind = str(part["type"])
        given = part.get(kind)
        if kind == "image_url" and isinstance(given, Mapping):
            given = given.get("url")
        images.append(self._image(given, f"message {number}: {kind}"))
        return {"type": "image"}

    def _image(self, given: object, where: str) -> ImageRef:
        if isinstance(given, str) and given[:5].lower() == "data:":
            try:
                return _DATA_URLS.read(given, where)
            except ApiError as error:
                raise error.to_row_error() from error
        if isinstance(given, str | os.PathLike):
            return path_ref(given)
        if isinstance(given, ImagePixelData | ImageFeatureData):
            return self.images.read(given)
        if given is None:
            raise RowError(ErrorCode.IMAGE_INVALID, f"{where} is missing")
        return self.images.read(ImagePixelData(given))  # type: ignore[arg-type]


class RowSource:
    """Rows of ``requests``, as they are asked for.

    What reading a request raises is kept in ``failure`` and ends the rows, so that those before it
    are answered first.

    Raises:
        TypeError: there is nothing to read requests or their parameters from.
        ConfigError: lists of different lengths.
    """

    def __init__(
        self,
        requests: Iterable[object],
        sampling: SamplingParams | Iterable[SamplingParams] | None,
        read: Callable[[int, object, object], Row],
    ) -> None:
        self._requests, self._sampling = open_call(requests, sampling)
        self._read = read
        self.failure: BaseException | None = None

    def rows(self) -> Iterator[Row]:
        try:
            for index, (request, sampling) in enumerate(
                with_sampling(self._requests, self._sampling)
            ):
                yield self._read(index, request, sampling)
        except BaseException as error:  # noqa: BLE001  the caller's own, raised again after the rows
            self.failure = error


def open_call(
    requests: object, sampling: object
) -> tuple[Iterator[object], SamplingParams | Iterator[object] | None]:
    """Requests and their parameters as they are read one by one, once both are known to be some.

    Raises:
        TypeError: they are not, or a list of parameters holds something else.
        ConfigError: lists of different lengths.
    """
    each = _iterator(requests, "prompts must be a string, a dict, or a list or iterator")
    if sampling is None or isinstance(sampling, SamplingParams):
        return each, sampling
    params = _iterator(sampling, "sampling_params must be a SamplingParams, or one for each")
    if isinstance(sampling, Sequence):
        for index, given in enumerate(sampling):
            if not isinstance(given, SamplingParams):
                raise TypeError(f"sampling_params[{index}] is no SamplingParams: {shown(given)}")
        if isinstance(requests, Sequence) and len(requests) != len(sampling):
            raise ConfigError(
                f"{len(requests)} requests, but {len(sampling)} sampling_params: give one for "
                "all, or one for each"
            )
    return each, params


def _iterator(values: Any, expected: str) -> Iterator[object]:
    if not isinstance(values, str | bytes | bytearray | Mapping):
        try:
            return iter(values)
        except TypeError as error:  # also of arrays without an axis, which pass for iterable
            raise TypeError(f"{expected}, got {shown(values)}") from error
    raise TypeError(f"{expected}, got {shown(values)}")


def with_sampling(
    requests: Iterator[object], sampling: SamplingParams | Iterator[object] | None
) -> Iterator[tuple[object, object]]:
    """Each request with its parameters; those shared by all get a seed by its position.

    Raises:
        ConfigError: fewer parameters than requests.
    """
    if sampling is None or isinstance(sampling, SamplingParams):
        shared = sampling or SamplingParams()
        for index, request in enumerate(requests):
            yield request, replace(shared, seed=derive_seed(shared.seed, index))
        return
    for index, request in enumerate(requests):
        try:
            params = next(sampling)
        except StopIteration as end:
            raise ConfigError(f"more requests than the {index} sampling_params") from end
        yield request, params


def _resolution(given: object) -> ImageResolution | None:
    """The resolution that a request asks for itself; None where it does not."""
    if given is None:
        return None
    names = RESOLUTION_COLUMNS
    if not isinstance(given, Mapping) or any(name not in names for name in given):
        raise _invalid(f"mm_processor_kwargs is a dict of {', '.join(names)}, got {shown(given)}")
    try:
        values = {
            name: typed.integer(name, value) for name, value in given.items() if value is not None
        }
        return ImageResolution(**values) if values else None
    except ConfigError as error:
        raise RowError(ErrorCode.RESOLUTION_INVALID, f"mm_processor_kwargs: {error}") from error


def _at(resolution: ImageResolution | None, images: tuple[ImageRef, ...]) -> tuple[ImageRef, ...]:
    if resolution is None:
        return images
    return tuple(replace(image, resolution=resolution) for image in images)


def _invalid(message: str) -> RowError:
    return RowError(ErrorCode.PROMPT_INVALID, message)
