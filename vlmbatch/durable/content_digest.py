"""The digest of an image's bytes, taken once for rows in a row that share them."""

from __future__ import annotations

import hashlib
from functools import lru_cache

_REMEMBERED = 2  # and kept in memory by it


@lru_cache(_REMEMBERED)  # bytes remember their hash, and the same object is not compared
def content_digest(data: bytes) -> bytes:
    """BLAKE2b of the content, 32 bytes."""
    return hashlib.blake2b(data, digest_size=32).digest()
