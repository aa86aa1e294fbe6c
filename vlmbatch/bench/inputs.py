"""A workload's manifest and images in a folder."""

from __future__ import annotations

import json
from pathlib import Path

from vlmbatch.bench.pictures import write_pictures
from vlmbatch.bench.prompts import PromptMaker
from vlmbatch.bench.workloads import Workload
from vlmbatch.errors import ConfigError
from vlmbatch.models.processor import Processor


def write_inputs(
    workload: Workload,
    num_images: int,
    folder: Path,
    processor: Processor,
    seed: int,
    processes: int,
) -> Path:
    """Write ``manifest.jsonl`` and new images for it into ``folder``; return the manifest.

    It has ``num_images`` rows for each question, the first question of every image first.

    Raises:
        ConfigError: prompt and answer exceed the context length.
    """
    assert processor.images is not None
    grid = workload.grid(processor.images)
    prompt_tokens = grid.num_tokens + workload.text_tokens
    if prompt_tokens + workload.max_tokens > processor.max_model_len:
        raise ConfigError(
            f"workload {workload.name} takes {prompt_tokens} prompt tokens and generates "
            f"{workload.max_tokens}, which exceeds the context length of {processor.max_model_len}"
        )
    (folder / "images").mkdir(parents=True)
    names = [f"images/{index:06}.jpg" for index in range(num_images)]
    paths = [folder / name for name in names]
    write_pictures(paths, workload.picture, workload.image_size, seed, processes)
    prompts = PromptMaker(processor, grid, workload.text_tokens, seed)
    manifest = folder / "manifest.jsonl"
    with manifest.open("w", encoding="utf-8") as file:
        for _ in range(workload.questions):
            for name in names:
                file.write(json.dumps({"prompt": prompts.make(), "image": name}) + "\n")
    return manifest
