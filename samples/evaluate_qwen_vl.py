"""Exact-match accuracy of a Qwen3-VL folder's greedy answers on held-out pictures, by kind.

python samples/evaluate_qwen_vl.py samples/tiny-qwen-vl --questions 1000
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import qwen_vocabulary as words
import torch
from held_out import held_out_questions
from qwen_huggingface import HuggingFace
from scenes import HELD_OUT_SEED


def evaluate(folder: Path, num_questions: int, device: str = "cpu") -> dict[str, Any]:
    """Questions of all kinds, answered by Hugging Face's own model in float32."""
    theirs = HuggingFace(folder, device)
    rows = held_out_questions(num_questions)
    prompts = [words.prompt(row.question.text, len(row.images)) for row in rows]
    given = theirs.texts(theirs.answer(prompts, [row.images for row in rows]))
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    wrong = []
    for row, answer in zip(rows, given, strict=True):
        asked[row.question.kind] += 1
        right[row.question.kind] += answer == row.question.answer
        if answer != row.question.answer:
            told = {"question": row.question.text, "answer": row.question.answer, "given": answer}
            wrong.append({"name": row.name, **told})
    return {
        "first_seed": HELD_OUT_SEED,
        "questions": dict(sorted(asked.items())),
        "accuracy": {kind: round(right[kind] / asked[kind], 4) for kind in sorted(asked)},
        "accuracy_overall": round(right.total() / asked.total(), 4),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.folder, arguments.questions, arguments.device), indent=2))


if __name__ == "__main__":
    main()
