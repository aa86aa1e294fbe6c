"""Rows as the page's program takes them: short text, numbers and pictures."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmbatch.manifest.json_text import dump_json

_MAX_CHARACTERS = 20_000  # of a prompt or an answer
_MAX_VALUE_CHARACTERS = 500  # of another column
_MAX_COLUMNS = 30
_EMBEDDED = re.compile(r"(data:[\w/+.-]{0,40};base64,)[A-Za-z0-9+/=]{64,}")
NO_ANSWER: dict[str, Any] = {
    **dict.fromkeys(("status", "text", "finish", "prompt", "image", "generated")),
    **dict.fromkeys(("code", "message", "chars")),
    "cut": False,
}


def answer_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """The result columns of one output."""
    text = result["text"]
    return {
        "status": result["status"],
        "text": None if text is None else text[:_MAX_CHARACTERS],
        "chars": None if text is None else len(text),
        "cut": text is not None and len(text) > _MAX_CHARACTERS,
        "finish": result["finish_reason"],
        "prompt": result["prompt_tokens"],
        "image": result["image_tokens"],
        "generated": result["completion_tokens"],
        "code": result["error_code"],
        "message": result["error_message"],
    }


def extra_data(extra: Mapping[str, Any], left_out: Sequence[str] = ()) -> list[list[str]]:
    """Names and values of the columns that passed through; none of those that are null."""
    found = [
        [name, value_text(value)]
        for name, value in extra.items()
        if value is not None and name not in left_out
    ]
    return found[:_MAX_COLUMNS]


def value_text(value: Any) -> str:
    """A value of any type in a few words."""
    if isinstance(value, bytes):
        return f"({len(value):,} bytes)"
    if isinstance(value, dict) and isinstance(data := value.get("bytes"), bytes):
        return f"({len(data):,} bytes) {value.get('path') or ''}"
    return shortened(value if isinstance(value, str) else dump_json(value), _MAX_VALUE_CHARACTERS)


def prompt_text(prompt: str) -> str:
    """A prompt without the bytes of images that are embedded in it."""
    return shortened(_EMBEDDED.sub(r"\1…", prompt), _MAX_CHARACTERS)


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"


def settings_rows(values: Mapping[str, Any], prefix: str = "") -> list[list[str]]:
    """Names and values of nested settings, digests cut short; none of those that are null."""
    rows: list[list[str]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += settings_rows(value, f"{prefix}{name}.")
        elif value is not None and value != []:
            text = value_text(value)
            is_digest = re.fullmatch(r"[0-9a-f]{32,}", text)
            rows.append([f"{prefix}{name}", text[:12] if is_digest else text])
    return rows
