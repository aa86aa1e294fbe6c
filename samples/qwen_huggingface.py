"""Greedy answers of Hugging Face's own Qwen3-VL, in float32.

Its processor asks for torchvision, for videos; image processor and tokenizer do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qwen_vocabulary as words
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Qwen3VLForConditionalGeneration


class HuggingFace:
    """A Qwen3-VL folder as transformers loads it."""

    def __init__(self, folder: Path, device: str = "cpu") -> None:
        loaded = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.model: Any = loaded.to(device).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, padding_side="left")
        self.images: Any = AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.device = device

    def inputs(
        self, prompts: Sequence[str], images: Sequence[Sequence[Image.Image]]
    ) -> dict[str, Tensor]:
        """Prompts with one image token for each of their images, as the model takes them."""
        made = self.images(images=[image for row in images for image in row], return_tensors="pt")
        lengths = iter((made["image_grid_thw"].prod(-1) // self.images.merge_size**2).tolist())
        texts = []
        for prompt in prompts:
            first, *rest = prompt.split(words.IMAGE)
            texts.append(first + "".join(words.IMAGE * next(lengths) + part for part in rest))
        encoded = self.tokenizer(texts, padding=True, return_tensors="pt")
        ids = encoded["input_ids"]
        inputs = {
            "input_ids": ids,
            "attention_mask": encoded["attention_mask"],
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
            "pixel_values": made["pixel_values"],
            "image_grid_thw": made["image_grid_thw"],
        }
        return {name: tensor.to(self.device) for name, tensor in inputs.items()}

    @torch.inference_mode()
    def answer(
        self,
        prompts: Sequence[str],
        images: Sequence[Sequence[Image.Image]],
        batch_size: int = 100,
    ) -> list[list[int]]:
        """Tokens of every answer, with the one that ends it."""
        answers: list[list[int]] = []
        end = self.model.generation_config.eos_token_id
        for start in range(0, len(prompts), batch_size):
            part = slice(start, start + batch_size)
            inputs = self.inputs(prompts[part], images[part])
            tokens = self.model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
            for row in tokens.tolist():
                answers.append(row[: row.index(end) + 1] if end in row else row)
        return answers

    def texts(self, answers: list[list[int]]) -> list[str]:
        decoded: list[str] = self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return decoded
