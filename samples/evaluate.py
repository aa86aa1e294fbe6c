"""Exact-match accuracy of a LLaVA folder's greedy answers on held-out scenes, by question kind.

python samples/evaluate.py samples/tiny-llava --scenes 1000
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import vocabulary
from questions import QUESTION_KINDS
from scenes import HELD_OUT_SEED, make_scene
from transformers import AutoProcessor, LlavaForConditionalGeneration


@torch.inference_mode()
def evaluate(
    folder: Path, num_scenes: int, device: str = "cpu", batch_size: int = 250
) -> dict[str, Any]:
    """One question of each kind on each scene, answered by Hugging Face's own model in float32."""
    model = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = model.to(device).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    rows = [
        (scene, question)
        for scene in map(make_scene, range(HELD_OUT_SEED, HELD_OUT_SEED + num_scenes))
        for question in scene.choose_questions(dict.fromkeys(QUESTION_KINDS, 1))
    ]
    asked: Counter[str] = Counter()
    right: Counter[str] = Counter()
    wrong = []
    for start in range(0, len(rows), batch_size):
        batch = rows[start : start + batch_size]
        inputs = processor(
            images=[scene.image for scene, _ in batch],
            text=[vocabulary.prompt(question.text) for _, question in batch],
            padding=True,
            return_tensors="pt",
        ).to(device)
        output = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        answers = processor.tokenizer.batch_decode(output, skip_special_tokens=True)
        for (scene, question), answer in zip(batch, answers, strict=True):
            asked[question.kind] += 1
            right[question.kind] += answer.strip() == question.answer
            if answer.strip() != question.answer:
                wrong.append(
                    {
                        "seed": scene.seed,
                        "question": question.text,
                        "answer": question.answer,
                        "given": answer.strip(),
                    }
                )
    return {
        "scenes": num_scenes,
        "first_seed": HELD_OUT_SEED,
        "questions": dict(sorted(asked.items())),
        "accuracy": {kind: round(right[kind] / asked[kind], 4) for kind in sorted(asked)},
        "accuracy_overall": round(right.total() / asked.total(), 4),
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    print(json.dumps(evaluate(arguments.folder, arguments.scenes, arguments.device), indent=2))


if __name__ == "__main__":
    main()
