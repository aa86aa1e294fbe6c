"""Writes manifests of held-out scenes: questions, pictures, expected answers.

python samples/make_samples.py                          the shipped samples, in their place
python samples/make_samples.py --rows 2000 --out DIR    an evaluation manifest of 2,000 rows
python samples/make_samples.py --rows 2000 --out DIR --chat    one for tiny-qwen-vl
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from held_out import held_out_questions
from questions import QUESTION_KINDS
from qwen_samples import CHAT_MANIFEST, chat_row, sample_chat_rows, write_chat_manifest
from scenes import HELD_OUT_SEED, Scene, make_scene
from vocabulary import IMAGE, prompt

SAMPLE_SEED = HELD_OUT_SEED + 1_000_000
SAMPLES = {  # picked for variety: what is asked about the scene SAMPLE_SEED + key
    1: ("colour", "number"),
    2: ("count", "colour"),
    5: ("relation", "describe"),
    7: ("number", "describe"),
    16: ("count", "number"),
    17: ("relation", "number"),
    18: ("colour", "relation"),
    19: ("count", "relation"),
    20: ("colour", "count"),
    21: ("relation", "describe"),
    24: ("colour", "relation"),
    26: ("number", "describe"),
    32: ("count", "describe"),
    37: ("relation", "describe"),
}
JPEG_QUALITY = 90
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "prompt": pa.string(),
        "image": pa.struct({"bytes": pa.binary(), "path": pa.string()}),
        "answer": pa.string(),
    }
)


@dataclass(frozen=True)
class Row:
    id: str
    prompt: str
    image: str  # path, relative to the manifest
    answer: str | None


def write_image(scene: Scene, folder: Path) -> str:
    """Writes ``images/SEED.png`` or, for odd seeds, ``.jpg``; returns that path."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    if scene.seed % 2:
        name = f"images/{scene.seed}.jpg"
        scene.image.save(folder / name, quality=JPEG_QUALITY)
    else:
        name = f"images/{scene.seed}.png"
        scene.image.save(folder / name)
    return name


def scene_rows(seed: int, kinds: Iterable[str], folder: Path) -> list[Row]:
    """Draws the scene and asks one question of each kind, where it has one with a sure answer."""
    scene = make_scene(seed)
    image = write_image(scene, folder)
    return [
        Row(f"{seed}-{question.kind}", prompt(question.text), image, question.answer)
        for question in scene.choose_questions(dict.fromkeys(kinds, 1))
    ]


def write_manifest(rows: list[Row], path: Path) -> None:
    path.write_text("".join(json.dumps(asdict(row)) + "\n" for row in rows))


def write_parquet(rows: list[Row], path: Path) -> None:
    """The same rows with their images embedded."""
    records = []
    for row in rows:
        image = {"bytes": (path.parent / row.image).read_bytes(), "path": row.image}
        records.append({**asdict(row), "image": image})
    pq.write_table(pa.Table.from_pylist(records, SCHEMA), path, compression="zstd")


def evaluation_rows(num_rows: int, first_seed: int, folder: Path) -> list[Row]:
    """Rows with all kinds of questions, three to five about a picture."""
    rows: list[Row] = []
    for seed in count(first_seed):
        rows += scene_rows(seed, QUESTION_KINDS, folder)
        if len(rows) >= num_rows:
            break
    return rows[:num_rows]


def sample_rows(folder: Path) -> list[Row]:
    """The shipped rows: good ones and, among them, two that must come out as errors."""
    rows: list[Row] = []
    for offset, kinds in SAMPLES.items():
        rows += scene_rows(SAMPLE_SEED + offset, kinds, folder)
    whole = next(row for row in rows if row.image.endswith(".jpg"))
    content = (folder / whole.image).read_bytes()
    (folder / "images/truncated.jpg").write_bytes(content[: len(content) // 2])
    broken = Row("truncated-image", whole.prompt, "images/truncated.jpg", None)
    doubled = whole.prompt.replace(IMAGE, f"{IMAGE}\n{IMAGE}")
    rows.insert(len(rows) // 3, broken)
    rows.insert(2 * len(rows) // 3, Row("two-image-tokens", doubled, whole.image, None))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, help="write so many evaluation rows instead")
    parser.add_argument("--seed", type=int, default=HELD_OUT_SEED, help="of the first picture")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--chat", action="store_true", help="evaluation rows for tiny-qwen-vl")
    arguments = parser.parse_args()
    if arguments.rows is not None and arguments.chat:
        asked = held_out_questions(arguments.rows, arguments.seed)
        chats = [chat_row(each, arguments.out) for each in asked]
        write_chat_manifest(chats, arguments.out / CHAT_MANIFEST)
        return
    if arguments.rows is None:
        rows = sample_rows(arguments.out)
        write_chat_manifest(sample_chat_rows(arguments.out), arguments.out / CHAT_MANIFEST)
    else:
        rows = evaluation_rows(arguments.rows, arguments.seed, arguments.out)
    write_manifest(rows, arguments.out / "manifest.jsonl")
    write_parquet(rows, arguments.out / "manifest.parquet")


if __name__ == "__main__":
    main()
