"""One HTML file that needs nothing else: style, program and data in it, and no network.

What comes from rows is data alone. It stands in a JSON block that nothing in it can end, as `<`,
`>` and `&` are written as escapes, and the program puts it into the page as text, never as markup.
The policy in the page's head allows the one program and the one style by their digests, images
from ``data:`` URLs, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def page(title: str, data: Mapping[str, Any]) -> str:
    """The page as text; may hold lone surrogates nowhere, as data comes from UTF-8."""
    style, program = _asset("page.css"), _asset("page.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"script-src {_digest(program)}; base-uri 'none'; form-action 'none'"
    )
    parts = {
        "POLICY": policy,
        "TITLE": html.escape(title),
        "STYLE": style,
        "DATA": json.dumps(data, ensure_ascii=False, allow_nan=False).translate(_ESCAPES),
        "PROGRAM": program,
    }
    # Filled in one by one between the marks: data that holds a mark is left alone.
    pieces = _asset("page.html").split("%%")
    return "".join(parts[piece] if n % 2 else piece for n, piece in enumerate(pieces))


def _digest(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"


@cache
def _asset(name: str) -> str:
    return files("vlmbatch.report").joinpath(name).read_text(encoding="utf-8")
