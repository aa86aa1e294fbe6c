"""A JSON schema of ten fields whose answers have no end before they are cut.

So each has its full length, as an answer that need not follow anything, and both can be compared.
"""

from __future__ import annotations

from typing import Any

_FIELDS: dict[str, Any] = {
    "kind": {"enum": ["photo", "drawing", "scan", "other"]},
    "people": {"type": "integer", "minimum": 0, "maximum": 99},
    "indoors": {"type": "boolean"},
    "colours": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 3},
    "quality": {"type": "number", "minimum": 0, "maximum": 1, "multipleOf": 0.01},
    "title": {"type": "string", "maxLength": 24},
    "place": {"type": ["string", "null"], "maxLength": 24},
    "date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}$"},
    "size": {
        "type": "object",
        "properties": {"width": {"enum": [640, 4032]}, "height": {"enum": [480, 3024]}},
        "required": ["width", "height"],
        "additionalProperties": False,
    },
    "text": {"type": "string", "minLength": 8192},  # more than any workload's tokens
}
TEN_FIELDS = {
    "type": "object",
    "properties": _FIELDS,
    "required": list(_FIELDS),
    "additionalProperties": False,
}
