"""Manifest rows for the second sample model: conversations about one picture, two, or a page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from held_out import Asked, ask
from pages import Page
from scenes import HELD_OUT_SEED, Scene

CHAT_MANIFEST = "manifest-qwen-vl.jsonl"
JPEG_QUALITY = 90
SAMPLE_SEED = HELD_OUT_SEED + 2_000_000
SAMPLES = {  # picked for variety: what is asked about the pictures of SAMPLE_SEED + key
    0: ("relation", "number"),
    16: ("colour", "count"),
    46: ("describe",),
    4: ("read",),
    10: ("read", "line"),
    42: ("read", "line"),
    20: ("compare", "find"),
    26: ("compare", "colour in"),
    30: ("find", "count in"),
    58: ("number in",),
}


@dataclass(frozen=True)
class ChatRow:
    id: str
    messages: list[dict[str, Any]]
    image: list[str]  # paths, relative to the manifest
    answer: str | None


def chat_row(asked: Asked, folder: Path) -> ChatRow:
    """The question as a conversation, its pictures written to ``folder``."""
    paths = [_write(picture, folder) for picture in asked.pictures]
    content: list[dict[str, str]] = [{"type": "image"} for _ in paths]
    content.append({"type": "text", "text": asked.question.text})
    messages = [{"role": "user", "content": content}]
    return ChatRow(asked.name, messages, paths, asked.question.answer)


def sample_chat_rows(folder: Path) -> list[ChatRow]:
    """The shipped rows: good ones and, in the middle, one that lacks a picture."""
    rows: list[ChatRow] = []
    for offset, kinds in SAMPLES.items():
        for kind in kinds:
            asked = ask(kind, SAMPLE_SEED + offset)
            assert asked is not None, (offset, kind)
            rows.append(chat_row(asked, folder))
    whole = next(row for row in rows if len(row.image) == 2)
    lacking = ChatRow("missing-picture", whole.messages, whole.image[:1], None)
    rows.insert(len(rows) // 2, lacking)
    return rows


def write_chat_manifest(rows: Iterable[ChatRow], path: Path) -> None:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def _write(picture: Scene | Page, folder: Path) -> str:
    """Writes pages as PNG, scenes as JPEG; returns the path in ``folder``."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if isinstance(picture, Page):
        name = f"images/{picture.seed}-page.png"
        picture.image.save(folder / name)
    else:
        name = f"images/{picture.seed}-scene.jpg"
        picture.image.save(folder / name, quality=JPEG_QUALITY)
    return name
