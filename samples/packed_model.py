"""Runs Hugging Face's LLaVA modules on packs: one picture, many questions that share it."""

from __future__ import annotations

import numpy as np
import torch
import vocabulary
from checkpoint import CLIP_MEAN, CLIP_STD, NUM_PATCHES
from packing import IGNORE, Packs, split_prompt
from questions import QUESTION_KINDS
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlavaForConditionalGeneration

SHIFT = 3  # pixels by which the pictures of a batch are moved, at most

Batch = dict[str, Tensor]  # the fields of Packs


class PackedModel:
    """Logits, loss and accuracy of a model on batches of packs.

    ``heads`` are the tokens before the picture: the bare one first, then one a system prompt.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        self.model, self.device = model.to(device), device
        heads = [split_prompt(tokenizer, "", system)[0] for system in vocabulary.SYSTEM_PROMPTS]
        bare, (newline, *_) = split_prompt(tokenizer, "")
        self.heads = [torch.tensor([head], device=device) for head in (bare, *heads)]
        self.newline = torch.tensor([[newline]], device=device)
        self.mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)

    def to_device(self, packs: Packs) -> Batch:
        return {
            name: torch.from_numpy(array).to(self.device) for name, array in vars(packs).items()
        }

    def logits(self, batch: Batch, head: Tensor | None = None, augment: bool = False) -> Tensor:
        """Next-token logits at the text tokens: (batch, text, vocabulary)."""
        head = self.heads[0] if head is None else head
        model, rows = self.model.model, len(batch["pixels"])
        pixels = batch["pixels"].permute(0, 3, 1, 2).float() / 255
        if augment:
            pixels = _augmented(pixels)
        pixels = (pixels - self.mean) / self.std
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            tower = model.vision_tower(pixels, output_hidden_states=True)
            features = model.multi_modal_projector(tower.hidden_states[-2][:, 1:])
            embed = model.get_input_embeddings()
            parts = [
                embed(head).expand(rows, -1, -1),
                features,
                embed(self.newline).expand(rows, -1, -1),
                embed(batch["tokens"].long()),
            ]
            prefix_length = head.shape[1] + NUM_PATCHES + 1
            hidden = model.language_model(
                inputs_embeds=torch.cat([part.to(features.dtype) for part in parts], dim=1),
                attention_mask=attention_mask(batch["segments"], prefix_length),
                position_ids=_position_ids(batch["positions"], prefix_length),
                use_cache=False,
            ).last_hidden_state
            logits: Tensor = self.model.lm_head(hidden[:, prefix_length:])
        return logits

    def loss(self, batch: Batch, head: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens, on augmented pictures."""
        logits = self.logits(batch, head, augment=True).flatten(0, 1).float()
        return functional.cross_entropy(
            logits, batch["targets"].flatten().long(), ignore_index=IGNORE
        )

    @torch.no_grad()
    def accuracy(self, packs: Batch, batch_size: int) -> dict[str, float]:
        """The share of greedy answers that are right, by question kind."""
        asked, right = np.zeros(len(QUESTION_KINDS)), np.zeros(len(QUESTION_KINDS))
        for start in range(0, len(packs["pixels"]), batch_size):
            batch = {name: values[start : start + batch_size] for name, values in packs.items()}
            right_ones = answered_right(self.logits(batch), batch)
            for index in range(len(QUESTION_KINDS)):
                of_kind = batch["kinds"] == index
                asked[index] += of_kind.sum().item()
                right[index] += (of_kind & right_ones).sum().item()
        shares = (right / asked.clip(1)).round(4).tolist()
        return dict(zip(QUESTION_KINDS, shares, strict=True))


def answered_right(logits: Tensor, batch: Batch) -> Tensor:
    """Whether each question of each pack is answered right: (batch, questions) bool.

    An answer is right when every token of it is the likeliest after those before it.
    """
    guess, target = logits.argmax(-1), batch["targets"].long()
    missed = ((guess != target) & (target != IGNORE)).long()
    misses = missed.new_zeros(len(target), batch["kinds"].shape[1] + 1)
    misses.scatter_add_(1, batch["questions"].long() + 1, missed)
    return misses[:, 1:] == 0


def _position_ids(positions: Tensor, prefix_length: int) -> Tensor:
    prefix = torch.arange(prefix_length, device=positions.device).expand(len(positions), -1)
    return torch.cat([prefix, positions.long() + prefix_length], dim=1)


def attention_mask(segments: Tensor, prefix_length: int) -> Tensor:
    """(batch, 1, length, length): causal, and beyond the prefix only within a segment."""
    segments = functional.pad(segments, (prefix_length, 0), value=-2)
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    in_prefix = torch.arange(length, device=segments.device) < prefix_length
    same = segments[:, :, None] == segments[:, None, :]
    return (causal & (in_prefix | same))[:, None]


def _augmented(pixels: Tensor) -> Tensor:
    rows, side = len(pixels), pixels.shape[-1]
    left, top = torch.randint(0, 2 * SHIFT + 1, (2,)).tolist()
    padded = functional.pad(pixels, (SHIFT, SHIFT, SHIFT, SHIFT), mode="replicate")
    pixels = padded[:, :, top : top + side, left : left + side]
    gain = 1 + 0.1 * torch.randn(rows, 1, 1, 1, device=pixels.device)
    offset = 0.03 * torch.randn(rows, 3, 1, 1, device=pixels.device)
    noise = 0.02 * torch.randn_like(pixels)
    return (gain * pixels + offset + noise).clamp(0, 1)
