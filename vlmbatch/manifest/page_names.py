"""How a page of a document is called: ``a/b.pdf#3``."""

from __future__ import annotations

import re

_PAGE = re.compile(r"(.+\.pdf)#([0-9]{1,9})", re.IGNORECASE | re.DOTALL)


def page_name(document: str, number: int) -> str:
    return f"{document}#{number}"


def page_of(name: str) -> tuple[str, int] | None:
    """The document and the number of the page; None of other names."""
    found = _PAGE.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))
