"""JSON text of any value that a manifest can hold."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pyarrow as pa

from vlmbatch.manifest.arrow_values import time_text


def dump_json(value: Any) -> str:
    """``value`` as JSON on one line.

    What JSON lacks is written as follows: bytes as base64, NaN and infinities as null, times,
    decimals and the like as their usual text.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_jsonable)
    except ValueError:
        return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False, default=_jsonable)


def _jsonable(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, pa.Scalar):
        return time_text(value)
    return str(value)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
