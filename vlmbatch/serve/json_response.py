"""JSON as it is sent."""

from __future__ import annotations

import json
from typing import Any

from starlette.responses import Response


def to_json(value: Any) -> bytes:
    """``value`` as one line of UTF-8. A lone surrogate, which has no UTF-8, is written as \\uXXXX:
    messages may quote what a client has sent."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "backslashreplace")


class JsonResponse(Response):
    """A response of one JSON value."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)
