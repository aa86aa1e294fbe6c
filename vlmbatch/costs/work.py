"""The work of rows of any lengths summed up, and what it takes on a GPU.

Counted as `vlmbatch bench` counts its workloads: matrix products and attention, reads of the KV
cache while decoding, and one read of the weights for each decode step of a full batch. Rows whose
image an earlier row had are given its tokens for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vlmbatch.costs.model import ModelCosts, causal_pairs
from vlmbatch.costs.rates import DeviceRates
from vlmbatch.models.config import ModelConfig

CACHED_IMAGE_TOKENS = 73_728  # whose embeddings an engine keeps
_MAX_BATCH = 512  # sequences of a step
# What steps take beside weights, KV cache and kept images, fitted to pools that were measured.
_STEP_BYTES = 3 * 10**9
_LOGIT_COPIES = 15  # of float32, for every sequence of a step


@dataclass(slots=True)
class Work:
    """Sums over rows."""

    rows: int = 0
    layer_tokens: int = 0  # that pass through the decoder
    pairs: int = 0  # queries and the keys that they attend to
    head_tokens: int = 0  # generated
    steps: int = 0  # decode steps: the first token comes with the prefill
    kv_tokens: int = 0  # read while decoding
    held_tokens: int = 0  # of the KV cache, at the end of each row
    image_flops: int = 0

    def add(
        self,
        prompt_tokens: int,
        generated: int,
        image_flops: int,
        shared_tokens: int = 0,
        answers: int = 1,
    ) -> None:
        """A row with so many ``answers`` of ``generated`` tokens each.

        ``image_flops``: of images that no earlier row had; ``shared_tokens``: of the prompt, those
        of an image that one had.
        """
        steps = max(0, generated - 1)
        own = prompt_tokens - shared_tokens
        self.rows += 1
        self.layer_tokens += own + answers * steps
        self.pairs += causal_pairs(shared_tokens, prompt_tokens)
        self.pairs += answers * causal_pairs(prompt_tokens, prompt_tokens + steps)
        self.head_tokens += answers * generated
        self.steps += answers * steps
        self.kv_tokens += answers * (steps * own + steps * (steps + 1) // 2)
        self.held_tokens += own + answers * generated
        self.image_flops += image_flops

    def add_classes(
        self,
        prompt_tokens: int,
        beginnings: Iterable[int],
        image_flops: int,
        shared_tokens: int = 0,
    ) -> None:
        """A row whose classes are scored, by tokens behind ``beginnings`` of so many tokens, all
        but the prompt's own in one step beside each other."""
        self.add(prompt_tokens, 1, image_flops, shared_tokens)
        for length in beginnings:
            self.layer_tokens += length
            self.pairs += causal_pairs(prompt_tokens, prompt_tokens + length)
            self.head_tokens += 1
            self.held_tokens += length


@dataclass(frozen=True, slots=True)
class Bound:
    """Seconds that work takes at the least by arithmetic and by reads; ``batch``: rows decoded at
    once."""

    arithmetic_seconds: float
    read_seconds: float
    batch: int

    @property
    def serial_seconds(self) -> float:
        """When they take turns."""
        return self.arithmetic_seconds + self.read_seconds


def bound(
    work: Work, costs: ModelCosts, rates: DeviceRates, kv_cache_tokens: int, rows: int
) -> Bound:
    """The bound of ``work``, which stands for a manifest of ``rows`` rows."""
    if not work.rows:
        return Bound(0.0, 0.0, 0)
    layer_rate = rates.flops_per_second
    if costs.is_quantized and rates.fp8_flops_per_second is not None:
        layer_rate = rates.fp8_flops_per_second
    other = work.image_flops + costs.pair_flops * work.pairs + costs.head_flops * work.head_tokens
    per_row = max(1.0, work.held_tokens / work.rows)
    batch = max(1, min(rows, _MAX_BATCH, int(kv_cache_tokens / per_row)))
    num_bytes = costs.kv_bytes_per_token * work.kv_tokens + costs.step_bytes * work.steps / batch
    scale = rows / work.rows
    arithmetic = costs.token_flops * work.layer_tokens / layer_rate
    arithmetic += other / rates.flops_per_second
    return Bound(scale * arithmetic, scale * num_bytes / rates.bytes_per_second, batch)


def kv_cache_tokens(
    memory: int, weight_bytes: int, config: ModelConfig, costs: ModelCosts, itemsize: int
) -> int:
    """About how many tokens of KV cache a GPU of ``memory`` bytes holds beside the weights; none
    where they do not fit."""
    images = CACHED_IMAGE_TOKENS * config.image_embedding_size * itemsize
    logits = _LOGIT_COPIES * _MAX_BATCH * config.text.vocab_size * 4
    left = memory - weight_bytes - images - logits - _STEP_BYTES
    return max(0, left // costs.kv_bytes_per_token)
