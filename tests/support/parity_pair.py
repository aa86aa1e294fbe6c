"""Our model and transformers' from one tiny checkpoint, with prompts to put to both."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoints import (
    IMAGE_SIZE,
    IMAGE_TOKEN_ID,
    VOCAB_SIZE,
    Layout,
    TextKind,
    Tower,
    make_checkpoint,
    num_image_tokens,
)
from pixel_scaling import scaling
from torch import Tensor
from transformers import LlavaForConditionalGeneration as ReferenceModel

from vlmbatch.attention import make_backend
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava.model import Model as LlavaModel
from vlmbatch.models.registry import load_model

TEXTS_AFTER = [21, 5, 40, 1]  # text tokens behind the image of each prompt
MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
IMAGES = scaling(
    tuple(1 / 255 / std for std in STD),
    tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True)),
)


@dataclass
class Pair:
    ours: LlavaModel
    theirs: ReferenceModel
    pixels: Tensor  # (n, H, W, 3) uint8, an image a prompt
    prompts: list[Tensor]

    @torch.inference_mode()
    def our_embeds(self) -> list[Tensor]:
        embeds = []
        features_of_all = self.ours.encode_images(list(self.pixels), [])
        for ids, features in zip(self.prompts, features_of_all, strict=True):
            is_image = ids == IMAGE_TOKEN_ID
            feature_rows = torch.where(is_image, is_image.cumsum(0) - 1, -1)
            embeds.append(self.ours.embed(ids, features, feature_rows).hidden)
        return embeds

    def pixel_values(self) -> Tensor:
        values = self.pixels.permute(0, 3, 1, 2).double() / 255
        mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
        return ((values - mean.to(values)) / std.to(values)).to(self.theirs.dtype)

    @torch.inference_mode()
    def their_logits(self) -> list[Tensor]:
        return [
            self.theirs(input_ids=ids[None], pixel_values=pixels[None]).logits[0]
            for ids, pixels in zip(self.prompts, self.pixel_values(), strict=True)
        ]


def make_pair(
    kind: TextKind,
    tower: Tower,
    layout: Layout,
    folder: Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    backend: str = "torch",
) -> Pair:
    """``theirs`` stays in float32, whatever ``dtype`` ours has."""
    theirs = make_checkpoint(kind, tower, folder, layout=layout).to(device)
    ours = load_model(
        folder,
        load_model_config(folder),
        IMAGES,
        device=torch.device(device),
        dtype=dtype,
        backend=make_backend(backend, device),
    )
    assert isinstance(ours, LlavaModel)
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(
        256, (len(TEXTS_AFTER), IMAGE_SIZE, IMAGE_SIZE, 3), generator=generator, dtype=torch.uint8
    )
    image = torch.full((num_image_tokens(tower),), IMAGE_TOKEN_ID)
    prompts = [
        torch.cat(
            [
                torch.randint(4, VOCAB_SIZE, (3,), generator=generator),
                image,
                torch.randint(4, VOCAB_SIZE, (after,), generator=generator),
            ]
        )
        for after in TEXTS_AFTER
    ]
    return Pair(ours, theirs, pixels.to(device), [ids.to(device) for ids in prompts])
