"""Compare `vlmbatch run` with Hugging Face's own model, answer by answer, on held-out pictures.

python samples/compare_qwen_vl.py --rows 500

Fails if an answer differs in its text or in how many tokens it has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import qwen_vocabulary as words
from held_out import held_out_questions
from PIL import Image
from qwen_huggingface import HuggingFace
from qwen_samples import CHAT_MANIFEST, chat_row, write_chat_manifest

MODEL = Path(__file__).parent / "tiny-qwen-vl"


@dataclass(frozen=True)
class Compared:
    """What a question was answered with: text, and tokens with the one that ends it."""

    name: str
    expected: str
    ours: tuple[str, int]
    theirs: tuple[str, int]


def compare(num_rows: int, seed: int) -> list[Compared]:
    """Greedy answers to ``num_rows`` questions of all kinds."""
    asked = held_out_questions(num_rows, seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, output = folder / CHAT_MANIFEST, folder / "answers.parquet"
        rows = [chat_row(each, folder) for each in asked]
        write_chat_manifest(rows, manifest)
        command = [sys.executable, "-m", "vlmbatch", "run", str(manifest), "-m", str(MODEL)]
        subprocess.run([*command, "-o", str(output), "-q"], check=True)
        table = pq.read_table(output, columns=["text", "completion_tokens"])
        images = [[Image.open(folder / path).convert("RGB") for path in row.image] for row in rows]
    theirs = HuggingFace(MODEL)
    prompts = [words.prompt(each.question.text, len(each.pictures)) for each in asked]
    tokens = theirs.answer(prompts, images)
    return [
        Compared(
            each.name, each.question.answer, (row["text"], row["completion_tokens"]), reference
        )
        for each, row, reference in zip(
            asked,
            table.to_pylist(),
            zip(theirs.texts(tokens), map(len, tokens), strict=True),
            strict=True,
        )
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1_100_000_000)
    options = parser.parse_args()
    rows = compare(options.rows, options.seed)
    for row in rows:
        if row.ours != row.theirs:
            print(f"{row.name}: {row.ours} where Hugging Face has {row.theirs}")
    differing = sum(row.ours != row.theirs for row in rows)
    right = sum(row.ours[0] == row.expected for row in rows)
    print(f"{len(rows)} answers: {differing} differ, {right / len(rows):.1%} are exactly right")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
