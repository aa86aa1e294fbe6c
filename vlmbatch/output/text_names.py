"""Which file an answer is written to, by its row's id."""

from __future__ import annotations

from pathlib import PurePosixPath

from vlmbatch.manifest.image_tree import is_image_name
from vlmbatch.manifest.page_names import page_of

_MAX_NAME_BYTES = 240  # file systems allow 255, and a temporary name is longer
_MAX_PATH_BYTES = 3000
_ENDINGS = (".txt", ".md")


def text_name(row_id: str) -> str:
    """The relative path of the file with the answer of a row.

    That of an image, ``a/b.jpg``, is ``a/b.txt``; of any other id it is the id with ``.txt``. All
    pages of ``a/b.pdf`` have ``a/b.md``.

    Raises:
        ValueError: no file below a folder can be called so; says why.
    """
    if (page := page_of(row_id)) is not None:
        name = f"{page[0][:-4]}.md"
    else:
        last = row_id.rpartition("/")[2]
        stem = row_id.rpartition(".")[0] if last and is_image_name(last) else row_id
        name = f"{stem}.txt"
    if "\0" in name:
        raise ValueError("has a NUL character in it")
    if name.startswith("/"):
        raise ValueError("begins with a /, and would lead out of the folder")
    *folders, last = name.split("/")
    if ".." in folders:
        raise ValueError("has .. in it, and could lead out of the folder")
    if "" in folders or "." in folders or last in _ENDINGS:
        raise ValueError("has a name in it that is empty or .")
    if clash := next((each for each in folders if each.endswith(_ENDINGS)), None):
        raise ValueError(f"has a folder {clash} in it, which is called like a file of answers")
    longest = max(len(part.encode()) for part in PurePosixPath(name).parts)
    if longest > _MAX_NAME_BYTES or len(name.encode()) > _MAX_PATH_BYTES:
        raise ValueError(
            f"has a name of {longest} bytes in it ({len(name.encode())} in all): at most "
            f"{_MAX_NAME_BYTES} (and {_MAX_PATH_BYTES}) are possible"
        )
    return name
