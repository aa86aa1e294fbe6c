"""OpenAI's chat messages: to what a chat template takes, and the images in them."""

from __future__ import annotations

from typing import Any

from vlmbatch.errors import RowError
from vlmbatch.images.urls import ImageUrls
from vlmbatch.openai.errors import ApiError, api_error, bad_request
from vlmbatch.openai.fields import missing, wrong_type
from vlmbatch.types import ImageRef

# Templates know of no developer: what it says has the system's place.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOOL_ROLES = ("tool", "function")
# What an assistant's message brings along when an earlier answer is sent back.
_IGNORED = frozenset({"refusal", "annotations", "name", "reasoning", "reasoning_content"})
_UNSUPPORTED = frozenset({"tool_calls", "tool_call_id", "function_call", "audio"})
_VIDEO_PARTS = ("video", "video_url", "input_video")
_DETAILS = ("auto", "low", "high", "original")


def read_messages(
    value: object, urls: ImageUrls
) -> tuple[list[dict[str, Any]], tuple[ImageRef, ...]]:
    """The messages with ``{"type": "image"}`` in the place of each image, and the images in order.

    Raises:
        ApiError: 400; ``param`` names the part of the messages.
    """
    if value is None:
        raise missing("messages")
    if not isinstance(value, list):
        raise wrong_type("messages", "an array of messages", value)
    if not value:
        raise bad_request("'messages' is empty: it needs at least one", "messages")
    images: list[ImageRef] = []
    messages = [
        _message(item, f"messages[{index}]", urls, images) for index, item in enumerate(value)
    ]
    return messages, tuple(images)


def read_image(url: str, urls: ImageUrls, param: str) -> ImageRef:
    """The image that ``url`` stands for; nothing is fetched or opened.

    Raises:
        ApiError: 400, with the code of an error row.
    """
    try:
        return urls.read(url, param)
    except RowError as error:
        raise api_error(error.code, error.message, param) from error


def _message(value: object, where: str, urls: ImageUrls, images: list[ImageRef]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object with role and content", value)
    for name, item in value.items():
        if name in ("role", "content") or name in _IGNORED:
            continue
        if name in _UNSUPPORTED:
            if item is None or item == []:
                continue
            raise bad_request(
                f"'{where}.{name}' is not supported", f"{where}.{name}", "unsupported_parameter"
            )
        raise bad_request(
            f"'{where}' has the field {name!r:.80}, which is not known", where, "unknown_parameter"
        )
    return {
        "role": _role(value.get("role"), f"{where}.role"),
        "content": _content(value.get("content"), f"{where}.content", urls, images),
    }


def _role(value: object, where: str) -> str:
    if value is None:
        raise missing(where)
    if not isinstance(value, str):
        raise wrong_type(where, "a string", value)
    role = _ROLES.get(value)
    if role is None:
        why = "tools are not supported" if value in _TOOL_ROLES else f"one of {', '.join(_ROLES)}"
        raise bad_request(f"'{where}' is {value!r:.80}: {why}", where)
    return role


def _content(
    value: object, where: str, urls: ImageUrls, images: list[ImageRef]
) -> str | list[dict[str, Any]]:
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise wrong_type(where, "a string or an array of parts", value)
    if not value:
        raise bad_request(f"'{where}' is empty: it needs at least one part", where)
    return [_part(part, f"{where}[{index}]", urls, images) for index, part in enumerate(value)]


def _part(value: object, where: str, urls: ImageUrls, images: list[ImageRef]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise wrong_type(where, "an object with a type", value)
    kind = value.get("type")
    if kind == "text":
        text = value.get("text")
        if not isinstance(text, str):
            raise wrong_type(f"{where}.text", "a string", text)
        return {"type": "text", "text": text}
    if kind == "image_url":
        images.append(_image(value.get("image_url"), f"{where}.image_url", urls))
        return {"type": "image"}
    raise _unknown_part(kind, where)


def _image(value: object, where: str, urls: ImageUrls) -> ImageRef:
    if isinstance(value, str):  # not OpenAI's form, but others take it
        return read_image(value, urls, where)
    if not isinstance(value, dict):
        raise wrong_type(where, "an object with a url", value)
    detail = value.get("detail")
    if detail is not None and detail not in _DETAILS:
        raise bad_request(
            f"'{where}.detail' must be one of {', '.join(_DETAILS)}, got {detail!r:.80}",
            f"{where}.detail",
        )
    url = value.get("url")
    if not isinstance(url, str):
        raise wrong_type(f"{where}.url", "a string", url)
    return read_image(url, urls, where)


def _unknown_part(kind: object, where: str) -> ApiError:
    if not isinstance(kind, str):
        return wrong_type(f"{where}.type", "a string", kind)
    why = "videos are not taken, " if kind in _VIDEO_PARTS else ""
    return bad_request(
        f"'{where}.type' is {kind!r:.80}: {why}only text and image_url are supported",
        f"{where}.type",
    )
