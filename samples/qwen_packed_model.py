"""Runs Hugging Face's Qwen3-VL on packs: one or two pictures, many questions that share them.

The modules are Hugging Face's, and so are their parameters; their calculation is written out here
for whole batches of pictures of different sizes, which theirs goes through one by one.

Letters in shapes: N packs of I pictures, T image tokens at most, P = 4 T patches, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import qwen_vocabulary as words
import torch
from packed_model import Batch, answered_right
from packing import IGNORE
from qwen_checkpoint import MEAN, MERGE, ROPE_SECTIONS, STD
from qwen_layers import (
    by_token,
    frequencies,
    layer_norm,
    merge,
    rms_norm,
    rotary,
    text_layer,
    vision_layer,
)
from qwen_layout import SIZES, Layout
from qwen_packing import KINDS, Chunk, Packs
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import Qwen3VLForConditionalGeneration
from vocabulary import token_id


@dataclass(frozen=True)
class Pictures:
    """All pictures, on the device."""

    patches: Tensor  # (sum of patches, 3 * PATCH**2) uint8
    starts: Tensor  # (pictures,) the first patch of each
    sizes: Tensor  # (pictures,) index into SIZES


@dataclass(frozen=True)
class Group:
    """Packs about pictures of like sizes."""

    packs: Batch
    image_tokens: int  # that a picture has, at most

    def __len__(self) -> int:
        return len(self.packs["images"])

    def take(self, rows: Tensor | slice) -> Group:
        packs = {name: values[rows] for name, values in self.packs.items()}
        return Group(packs, self.image_tokens)


def to_device(chunks: Iterable[Chunk], device: torch.device) -> tuple[Pictures, dict[str, Group]]:
    """The pictures, and the packs about them by group."""
    patches: list[Tensor] = []
    all_sizes: list[np.ndarray] = []
    packs: dict[str, list[Packs]] = {}
    num_pictures = 0
    for chunk in chunks:
        patches.append(torch.from_numpy(chunk.patches).to(device))
        all_sizes.append(chunk.sizes)
        for name, some in chunk.packs.items():
            some.images += num_pictures
            packs.setdefault(name, []).append(some)
        num_pictures += len(chunk.sizes)
    sizes = np.concatenate(all_sizes)
    tokens = sizes.prod(1)
    starts = torch.from_numpy(MERGE**2 * (tokens.cumsum() - tokens)).to(device)
    indices = torch.tensor([SIZES.index((height, width)) for height, width in sizes.tolist()])
    pictures = Pictures(torch.cat(patches), starts, indices.to(device))
    return pictures, {name: _group_of(some, tokens, device) for name, some in packs.items()}


def _group_of(packs: list[Packs], tokens: np.ndarray, device: torch.device) -> Group:
    """Without the padding that all of them have behind their text."""
    arrays = {
        name: np.concatenate([vars(some)[name] for some in packs])
        for name in Packs.__dataclass_fields__
    }
    length = int((arrays["segments"] >= 0).sum(1).max())
    for name in ("tokens", "targets", "positions", "questions", "segments"):
        arrays[name] = arrays[name][:, :length]
    on_device = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
    return Group(on_device, int(tokens[arrays["images"]].max()))


class QwenPackedModel:
    """Logits, loss and accuracy of a model on batches of packs.

    ``heads`` are the tokens before the pictures: the bare one first, then one a system prompt.
    """

    def __init__(
        self, model: Qwen3VLForConditionalGeneration, tokenizer: Tokenizer, device: torch.device
    ) -> None:
        self.model, self.device = model.to(device), device
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.heads = [
            torch.tensor(tokenizer.encode(words.head(system)).ids, device=device)
            for system in (None, *words.SYSTEM_PROMPTS)
        ]
        around = [token_id(tokenizer, token) for token in (words.VISION_START, words.VISION_END)]
        self.around = torch.tensor(around, device=device)
        vision, text = model.config.vision_config, model.config.text_config
        self.layout = Layout.of(math.isqrt(vision.num_position_embeddings), device)
        self.interpolation = self.layout.interpolation.to(self.dtype)
        of_axis = frequencies(vision.hidden_size // vision.num_heads // 2, device)
        angles = self.layout.patch_places[..., None] * of_axis
        self.rotary = [table[:, None].to(self.dtype) for table in rotary(angles.flatten(2))]
        self.frequencies = frequencies(text.head_dim, device)
        self.axes = torch.zeros(len(self.frequencies), dtype=torch.long, device=device)
        for axis in (1, 2):  # in turns, until a section ends
            self.axes[axis : 3 * ROPE_SECTIONS[axis] : 3] = axis

    def logits(
        self, pictures: Pictures, group: Group, head: Tensor | None = None, augment: bool = False
    ) -> Tensor:
        """Next-token logits at the text tokens: (N, text, vocabulary)."""
        batch, image_tokens = group.packs, group.image_tokens
        head = self.heads[0] if head is None else head
        text, embed = self.model.model.language_model, self.model.model.language_model.embed_tokens
        num_rows, num_images = batch["images"].shape
        images = batch["images"].flatten()
        levels = [
            level.unflatten(0, (num_rows, num_images))
            for level in self._features(pictures, images, image_tokens, augment)
        ]
        sizes = pictures.sizes[images].view(num_rows, num_images)
        weight = embed.weight.to(self.dtype)
        around = weight[self.around].expand(num_rows, -1, -1)
        parts = [weight[head].expand(num_rows, -1, -1)]
        for index in range(num_images):
            parts += [around[:, :1], levels[0][:, index], around[:, 1:]]
        hidden = torch.cat([*parts, weight[batch["tokens"].long()]], dim=1)
        prefix_length = len(head) + num_images * (image_tokens + 2)
        positions, valid = self._positions(sizes, image_tokens, len(head), batch["positions"])
        mask = _attention_mask(batch["segments"], valid)
        angles = positions[..., self.axes] * self.frequencies
        cos, sin = (table[:, None].to(self.dtype) for table in rotary(angles))
        for index, layer in enumerate(text.layers):
            hidden = text_layer(layer, hidden, cos, sin, mask)
            if index + 1 < len(levels):
                hidden = hidden + self._spread(levels[index + 1], len(head), hidden.shape[1])
        hidden = rms_norm(text.norm, hidden[:, prefix_length:])
        return functional.linear(hidden, weight)

    def loss(self, pictures: Pictures, group: Group, head: Tensor) -> Tensor:
        """Mean cross-entropy of the answers' tokens, on augmented pictures."""
        logits = self.logits(pictures, group, head, augment=True).flatten(0, 1).float()
        targets = group.packs["targets"].flatten().long()
        return functional.cross_entropy(logits, targets, ignore_index=IGNORE)

    @torch.no_grad()
    def accuracy(
        self, pictures: Pictures, groups: Iterable[Group], batch_size: int
    ) -> dict[str, float]:
        """The share of greedy answers that are right, by question kind."""
        asked, right = np.zeros(len(KINDS)), np.zeros(len(KINDS))
        for part in (part for group in groups for part in _parts(group, batch_size)):
            right_ones = answered_right(self.logits(pictures, part), part.packs)
            for index in range(len(KINDS)):
                of_kind = part.packs["kinds"] == index
                asked[index] += of_kind.sum().item()
                right[index] += (of_kind & right_ones).sum().item()
        shares = (right / asked.clip(1)).round(4).tolist()
        return dict(zip(KINDS, shares, strict=True))

    def _features(
        self, pictures: Pictures, images: Tensor, image_tokens: int, augment: bool
    ) -> list[Tensor]:
        """What the decoder is given of each picture, deep levels behind the first: (N, T, C)."""
        visual, dtype = self.model.model.visual, self.dtype
        sizes = pictures.sizes[images]
        num_patches = image_tokens * MERGE**2
        offsets = torch.arange(num_patches, device=self.device)
        rows = (pictures.starts[images, None] + offsets).clamp(max=len(pictures.patches) - 1)
        pixels = pictures.patches[rows].float() / 255
        if augment:
            pixels = _augmented(pixels)
        kernel = visual.patch_embed.proj.weight.sum(2).flatten(1)  # both frames are the same
        bias = visual.patch_embed.proj.bias.to(dtype)
        hidden = functional.linear(((pixels - MEAN) / STD).to(dtype), kernel.to(dtype), bias)
        learned = visual.pos_embed.weight.to(dtype)
        hidden = hidden + self.interpolation[sizes, :num_patches] @ learned
        cos, sin = (table[sizes, :, :num_patches] for table in self.rotary)
        mask = self.layout.valid[sizes, :image_tokens].repeat_interleave(MERGE**2, dim=1)[
            :, None, None
        ]
        deep: list[Tensor] = []
        for index, block in enumerate(visual.blocks):
            hidden = vision_layer(block, hidden, cos, sin, mask)
            if index in visual.deepstack_visual_indexes:
                merger = visual.deepstack_merger_list[len(deep)]
                deep.append(merge(merger, layer_norm(merger.norm, by_token(hidden))))
        merged = merge(visual.merger, by_token(layer_norm(visual.merger.norm, hidden)))
        return [merged, *deep]

    def _positions(
        self, sizes: Tensor, image_tokens: int, head_length: int, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Positions of all tokens (N, length, 3), and which of the prefix are there (N, prefix)."""
        num_rows = len(sizes)
        start = torch.arange(head_length, device=self.device)
        parts = [start.view(1, -1, 1).expand(num_rows, -1, 3)]
        valid = [torch.ones(num_rows, head_length, dtype=torch.bool, device=self.device)]
        at = torch.full((num_rows, 1, 1), head_length, device=self.device)
        one = valid[0][:, :1]
        for size in sizes.T:
            rows_and_columns = self.layout.places[size, :image_tokens]
            places = functional.pad(rows_and_columns, (1, 0)) + at + 1
            end = at + 1 + self.layout.extent[size, None, None]
            parts += [at.expand(-1, -1, 3), places, end.expand(-1, -1, 3)]
            valid += [one, self.layout.valid[size, :image_tokens], one]
            at = end + 1
        parts.append((positions.long()[:, :, None] + at).expand(-1, -1, 3))
        return torch.cat(parts, dim=1), torch.cat(valid, dim=1)

    def _spread(self, level: Tensor, head_length: int, length: int) -> Tensor:
        """A deep level (N, I, T, C) at the places of its image tokens, zeros elsewhere."""
        slots = functional.pad(level, (0, 0, 1, 1)).flatten(1, 2)
        return functional.pad(slots, (0, 0, head_length, length - head_length - slots.shape[1]))


def _parts(group: Group, size: int) -> Iterator[Group]:
    for start in range(0, len(group), size):
        yield group.take(slice(start, start + size))


def _attention_mask(segments: Tensor, valid: Tensor) -> Tensor:
    """(N, 1, length, length): causal, what is there, and beyond the prefix only in a segment."""
    prefix_length = valid.shape[1]
    segments = functional.pad(segments, (prefix_length, 0), value=-2)
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments.device).tril()
    in_prefix = functional.pad(valid, (0, length - prefix_length), value=False)
    same = segments[:, :, None] == segments[:, None, :]
    same &= (segments != -2)[:, :, None]
    own = torch.eye(length, dtype=torch.bool, device=segments.device)  # none attends to nothing
    return (causal & (in_prefix[:, None] | same) | own)[:, None]


def _augmented(pixels: Tensor) -> Tensor:
    rows = len(pixels)
    gain = 1 + 0.1 * torch.randn(rows, 1, 1, device=pixels.device)
    offset = 0.03 * torch.randn(rows, 1, 3, 1, device=pixels.device)
    noise = 0.02 * torch.randn_like(pixels)
    shifted = ((gain * pixels + noise).unflatten(2, (3, -1)) + offset).flatten(2)
    return shifted.clamp(0, 1)
