"""Time `vlmbatch run` against a Hugging Face `generate` loop over the same rows.

Both answer the same manifest of held-out scenes, each in a process of its own, from reading the
manifest to having every answer. Prints one table, and fails if a single answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
MODEL = HERE / "tiny-llava"


def answer_with_huggingface(manifest: Path, output: Path, batch_size: int, max_tokens: int) -> None:
    """The loop that a careful user would write: left padding, batches, greedy."""
    import torch
    from PIL import Image
    from transformers import AutoTokenizer, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = LlavaForConditionalGeneration.from_pretrained(MODEL, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    processor = LlavaProcessor.from_pretrained(
        MODEL, image_processor=CLIPImageProcessorPil.from_pretrained(MODEL), tokenizer=tokenizer
    )
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    answers = []
    started = time.perf_counter()
    for first in range(0, len(rows), batch_size):
        batch = rows[first : first + batch_size]
        images = [Image.open(manifest.parent / row["image"]).convert("RGB") for row in batch]
        prompts = [row["prompt"] for row in batch]
        inputs = processor(images=images, text=prompts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(new, skip_special_tokens=True)
    seconds = time.perf_counter() - started
    output.write_text(json.dumps({"seconds": seconds, "answers": answers}))


def timed(command: list[str], allowed: tuple[int, ...] = (0,)) -> float:
    """Wall seconds of a process, start-up included."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    started = time.perf_counter()
    status = subprocess.run(command, env=environment, check=False).returncode
    if status not in allowed:
        sys.exit(f"{' '.join(command)} exited with {status}")
    return time.perf_counter() - started


def compare(num_rows: int, seed: int, batch_size: int, max_tokens: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = [sys.executable, str(HERE / "make_samples.py")]
        timed([*script, "--rows", str(num_rows), "--seed", str(seed), "--out", str(folder)])
        manifest, ours, theirs = (folder / n for n in ("manifest.jsonl", "a.parquet", "b.json"))
        summary = folder / "summary.json"
        command = [sys.executable, "-m", "vlmbatch", "run", str(manifest), "--model", str(MODEL)]
        command += ["--output", str(ours), "--max-tokens", str(max_tokens)]
        vlmbatch_seconds = timed([*command, "--summary-json", str(summary), "--quiet"])
        command = [sys.executable, __file__, "--huggingface", str(manifest), str(theirs)]
        command += ["--batch-size", str(batch_size), "--max-tokens", str(max_tokens)]
        huggingface_seconds = timed(command)
        import pyarrow.parquet as pq

        table = pq.read_table(ours)
        mine, reference = table["text"].to_pylist(), json.loads(theirs.read_text())
        expected = table["answer"].to_pylist()
        return {
            "rows": num_rows,
            "vlmbatch_seconds": vlmbatch_seconds,
            "vlmbatch_processing_seconds": json.loads(summary.read_text())["processing_seconds"],
            "huggingface_seconds": huggingface_seconds,
            "huggingface_processing_seconds": reference["seconds"],
            "different_answers": sum(
                a != b for a, b in zip(mine, reference["answers"], strict=True)
            ),
            "right": sum(a == b for a, b in zip(mine, expected, strict=True)) / num_rows,
        }


def show(figures: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{figures['rows']} rows of the sample model, {os.cpu_count()} cores")
    for heading in ("", "whole process", "rows/s", "first row to last", "rows/s"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, label in (("vlmbatch", "vlmbatch run"), ("huggingface", "Hugging Face generate")):
        whole, rows = figures[f"{name}_seconds"], figures[f"{name}_processing_seconds"]
        table.add_row(
            label,
            f"{whole:.1f} s",
            f"{figures['rows'] / whole:.0f}",
            f"{rows:.1f} s",
            f"{figures['rows'] / rows:.0f}",
        )
    whole = figures["huggingface_seconds"] / figures["vlmbatch_seconds"]
    loop = figures["huggingface_processing_seconds"] / figures["vlmbatch_processing_seconds"]
    table.add_row("vlmbatch is faster by", f"{whole:.2f} x", "", f"{loop:.2f} x", "")
    Console().print(table)
    print(
        f"{figures['different_answers']} answers differ; "
        f"{figures['right']:.1%} of them are exactly right"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=77)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--huggingface", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.huggingface:
        manifest, output = options.huggingface
        answer_with_huggingface(manifest, output, options.batch_size, options.max_tokens)
        return
    figures = compare(options.rows, options.seed, options.batch_size, options.max_tokens)
    show(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    if figures["different_answers"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
