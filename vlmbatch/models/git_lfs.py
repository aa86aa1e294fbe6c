"""Files that a clone without Git LFS holds in the place of large ones: pointers to them.

Git LFS specification, version 1: text of fewer than 1,024 bytes, whose first line names it.
"""

from __future__ import annotations

IS_POINTER = "a Git LFS pointer: git lfs pull fetches the file that it stands for"

_START = b"version https://git-lfs"


def is_pointer(head: bytes) -> bool:
    """Whether a file's first 64 bytes are those of a pointer."""
    return head.startswith(_START)
