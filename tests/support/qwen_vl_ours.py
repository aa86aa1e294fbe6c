"""Our model of a Qwen-VL checkpoint, driven step by step over a paged pool, without an engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paged_batch import make_metadata, on_device, shuffled_tables
from PIL import Image
from qwen_vl_case import ROWS, SIZES, Case
from qwen_vl_checkpoints import IMAGE_TOKEN_ID
from torch import Tensor

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import AttentionBackend, LayerKVCache
from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.models.family import EncodedPrompt, load_model_config, load_processor
from vlmbatch.models.qwen_vl.model import Model
from vlmbatch.models.qwen_vl.processor import QwenVLProcessor
from vlmbatch.models.registry import load_model
from vlmbatch.types import ImageRef, Row


@dataclass
class Ours:
    model: Model
    processor: QwenVLProcessor
    backend: AttentionBackend
    device: torch.device
    dtype: torch.dtype

    @classmethod
    def load(
        cls,
        folder: Path,
        backend_name: str = "torch",
        device_name: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Ours:
        config = load_model_config(folder)
        processor = load_processor(folder, config, PromptConfig(), ImageArguments())
        assert isinstance(processor, QwenVLProcessor)
        device, backend = torch.device(device_name), make_backend(backend_name, device_name, dtype)
        model = load_model(folder, config, processor.images, device, dtype, backend)
        assert isinstance(model, Model)
        return cls(model, processor, backend, device, dtype)

    def features(self, folder: Path, names: list[str]) -> list[Tensor]:
        assert self.processor.images is not None
        images = [
            self.processor.images.process(Image.open(folder / f"{name}.png")) for name in names
        ]
        return self.model.encode_images(
            [torch.from_numpy(image.pixels).to(self.device) for image in images]
        )

    def encoded(self, prompt: str, names: list[str]) -> EncodedPrompt:
        assert self.processor.images is not None
        row = Row(0, "0", 1, "", prompt=prompt, images=(ImageRef("some"),) * len(names))
        grids = [self.processor.images.grid(*SIZES[name][::-1]) for name in names]
        return self.processor.place(self.processor.tokenize(row), grids)

    def logits(self, case: Case, chunk: int) -> list[Tensor]:
        """Of all rows (tokens, V), side by side over a shuffled pool, ``chunk`` tokens a step."""
        page, granule = self.backend.block_size, self.backend.granule
        prompts = [self.encoded(*row) for row in ROWS]
        folder = case.manifest.parent
        features = [self.features(folder, names) if names else [] for _, names in ROWS]
        totals = [len(prompt.token_ids) for prompt in prompts]
        tables, slots = shuffled_tables(totals, page, granule, torch.Generator().manual_seed(1))
        caches = [
            LayerKVCache(*self._zeros(2, slots + page, spec.num_kv_heads, spec.head_dim))
            for spec in self.model.attention_specs
        ]
        outputs: list[list[Tensor]] = [[] for _ in prompts]
        for start in range(0, max(totals), chunk):
            spans = [(i, start, min(start + chunk, n)) for i, n in enumerate(totals) if start < n]
            spans.sort(key=lambda span: span[2] - span[1] != 1)
            lengths = [(end - start, end) for _, start, end in spans]
            metadata = make_metadata(lengths, [tables[i] for i, *_ in spans], page, granule)
            metadata = on_device(metadata, self.device.type)
            ids = torch.cat([torch.tensor(prompts[i].token_ids[a:b]) for i, a, b in spans])
            positions = np.concatenate([_rows(prompts[i])[:, a:b] for i, a, b in spans], axis=1)
            parts, rows, count = [], [], 0
            for i, first, end in spans:
                is_image = torch.tensor(prompts[i].token_ids) == IMAGE_TOKEN_ID
                own = torch.where(is_image, is_image.cumsum(0) - 1 + count, -1)
                rows.append(own[first:end])
                parts += features[i]
                count += sum(map(len, features[i]))
            placed = (torch.cat(parts), torch.cat(rows).to(self.device)) if parts else ()
            embedded = self.model.embed(ids.to(self.device), *placed)
            at = torch.from_numpy(positions).to(self.device)
            hidden = self.model(embedded, at, caches, metadata)
            logits = self.model.compute_logits(hidden)
            for (i, *_), part in zip(spans, logits.split(metadata.query_lens), strict=True):
                outputs[i].append(part)
        return [torch.cat(parts) for parts in outputs]

    def _zeros(self, *shape: int) -> Tensor:
        return torch.zeros(shape, device=self.device, dtype=self.dtype)


def _rows(prompt: EncodedPrompt) -> Any:
    if prompt.positions is not None:
        return prompt.positions
    return np.tile(np.arange(len(prompt.token_ids)), (3, 1))
