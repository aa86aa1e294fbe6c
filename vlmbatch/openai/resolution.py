"""The field of a request that says how large its images are seen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vlmbatch.config import ImageResolution
from vlmbatch.errors import ConfigError
from vlmbatch.openai.errors import bad_request
from vlmbatch.openai.fields import Json, integer, json_object
from vlmbatch.types import ImageRef

RESOLUTION_FIELD = "mm_processor_kwargs"  # vLLM's; OpenAI's API has none
_NAMES = ("max_pixels", "min_pixels")


def at_own_resolution(body: Json, images: Iterable[ImageRef]) -> tuple[ImageRef, ...]:
    """``images`` at the resolution that the request asks for, if it does.

    Raises:
        ApiError: 400; ``param`` names the field.
    """
    given = json_object(body, RESOLUTION_FIELD) or {}
    if unknown := [name for name in given if name not in _NAMES]:
        raise bad_request(
            f"'{RESOLUTION_FIELD}' has the field {unknown[0]!r:.80}: only {' and '.join(_NAMES)} "
            "are supported",
            RESOLUTION_FIELD,
            "unsupported_parameter",
        )
    values = {name: integer(given, name, f"{RESOLUTION_FIELD}.") for name in _NAMES}
    if not any(value is not None for value in values.values()):
        return tuple(images)
    try:
        resolution = ImageResolution(**values)
    except ConfigError as error:
        raise bad_request(f"{RESOLUTION_FIELD}: {error}", RESOLUTION_FIELD) from error
    return tuple(replace(image, resolution=resolution) for image in images)
