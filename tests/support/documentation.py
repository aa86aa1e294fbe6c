"""The README and the pages of docs/, in sections.

A page is its head, which has the title of the page, and what stands under each ``##``.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        ROOT / "README.md",
        *(ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md")),
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
ALL = "\n".join(PAGES.values())
_TITLE = re.compile(r"^## (.+)\n", re.MULTILINE)


def sections(page: str) -> dict[str, str]:
    """The texts of a page's sections by their titles; ``page`` is a key of ``PAGES``."""
    head, *parts = _TITLE.split(PAGES[page])
    title, _, text = head.partition("\n")
    return {title.removeprefix("# "): text, **dict(zip(parts[::2], parts[1::2], strict=True))}


def section(page: str, title: str) -> str:
    return sections(page)[title]


def links(page: str) -> list[tuple[str, str]]:
    """Files that a page links to, from the root, each with the anchor in it or nothing."""
    found = []
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" not in target:
            name, _, anchor = target.partition("#")
            path = (ROOT / page).parent / name if name else ROOT / page
            found.append((str(path.resolve().relative_to(ROOT)), anchor))
    return found


def anchors(page: str) -> set[str]:
    """What links to a page's headings may end in, as GitHub makes it of their titles."""
    titles = re.findall(r"^#+ (.+)$", PAGES[page], re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
