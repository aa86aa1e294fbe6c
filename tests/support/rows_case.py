"""Rows of images of many sizes for a checkpoint, and jobs that answer them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from vlmbatch.config import (
    FileDestination,
    ImageLoading,
    JobConfig,
    ManifestConfig,
    SamplingParams,
    SessionConfig,
)


@dataclass
class RowsCase:
    """A checkpoint's folder and a manifest; answers have ``max_tokens`` tokens at most."""

    model: Path
    manifest: Path

    max_tokens: ClassVar[int]

    def session(self, *, image_workers: int = 0, **settings: Any) -> SessionConfig:
        base = SessionConfig(str(self.model), image_loading=ImageLoading(workers=image_workers))
        return replace(base, **settings)

    def job(self, output: Path, manifest: Path | None = None, **settings: Any) -> JobConfig:
        return JobConfig(
            self.session(**settings),
            ManifestConfig(str(manifest or self.manifest)),
            FileDestination(output),
            SamplingParams(max_tokens=self.max_tokens),
        )


def write_rows(
    folder: Path,
    sizes: Mapping[str, tuple[int, int]],
    rows: Sequence[tuple[str, Sequence[str]]],
) -> Path:
    """Write images of these widths and heights, and a manifest of prompts with some of them."""
    generator = np.random.default_rng(5)
    for name, (width, height) in sizes.items():
        coarse = generator.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        image.save(folder / f"{name}.png")
    manifest = folder / "manifest.jsonl"
    lines = [
        json.dumps({"prompt": prompt, "image": [f"{name}.png" for name in names]})
        for prompt, names in rows
    ]
    manifest.write_text("\n".join(lines) + "\n")
    return manifest
