"""How much of a GPU's memory is left for the KV cache, measured on a step of the largest kind."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from vlmbatch_kernels.quantized_rows import E4M3

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import SamplingParams
from vlmbatch.engine.batch import build_step_inputs
from vlmbatch.engine.block_pool import Block
from vlmbatch.engine.gpu import memory_use
from vlmbatch.engine.kv_cache import (
    KVCache,
    full_length,
    kv_bytes_per_token,
    useful_granules,
)
from vlmbatch.engine.limits import Limits
from vlmbatch.engine.model_runner import ModelRunner
from vlmbatch.engine.sequence import Sequence
from vlmbatch.engine.step import ScheduledChunk
from vlmbatch.errors import ConfigError
from vlmbatch.models.config import ModelConfig, TextConfig
from vlmbatch.models.parallel import SINGLE_DEVICE, ParallelContext
from vlmbatch.models.vision_language_model import VisionLanguageModel
from vlmbatch.types import ImageInput, ImageSpan, Request

# What no single step shows: CUDA graphs with the logits that each of them keeps, a decode step
# beside the largest one, memory that is free in pieces too small.
_MARGIN_BYTES = 3 * 2**29

_SAMPLING = SamplingParams(temperature=1.0, top_k=50, top_p=0.9)  # takes more than greedy choice


def kv_tokens_beside(
    model: VisionLanguageModel,
    model_config: ModelConfig,
    limits: Limits,
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    kv_dtype: torch.dtype,
    largest_image: ImageInput,
    reserved_bytes: int = 0,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> int:
    """Tokens of KV cache that the GPU ``device`` holds beside the weights and any step.

    Where ranks divide the model, each measures its own, and all get the least.
    ``dtype``: that the model computes in; ``kv_dtype``: that the cache is to be in.
    ``largest_image``: of which no image has more tokens; see ``Processor``. ``reserved_bytes``: for
    other processes, whether they have taken them yet or not.

    Raises:
        ConfigError: the largest step finds no room, or what it leaves is too little for one
            sequence of full length.
    """
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    reserved = torch.cuda.memory_reserved(device)
    torch.cuda.reset_peak_memory_stats(device)
    try:
        run_largest_step(
            model, model_config, limits, backend, device, kv_dtype, largest_image, parallel
        )
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"GPU memory left beside the weights is {free / 2**30:.1f} GiB, too little for a step "
            f"of {limits.max_batched_tokens} tokens ({memory_use(device)}); lower it with "
            "--max-batched-tokens"
        ) from error
    # The two pages of cache that the step had count as well, and so do its images below.
    step = torch.cuda.max_memory_reserved(device) - reserved
    torch.cuda.empty_cache()
    # Again: kernels that were loaded for the step stay.
    free = torch.cuda.mem_get_info(device)[0]
    cached_tokens = max(limits.cached_image_tokens, largest_image.grid.num_tokens)
    images = cached_tokens * model_config.image_embedding_size * dtype.itemsize
    left = free - step - images - reserved_bytes - _MARGIN_BYTES
    try:
        tokens = kv_tokens_within(left, model_config.text, limits, backend.granule, kv_dtype)
    except ConfigError as error:
        raise ConfigError(f"{error} ({memory_use(device)})") from error
    return parallel.least(tokens, device)


def kv_tokens_within(
    num_bytes: int, text: TextConfig, limits: Limits, granule: int, kv_dtype: torch.dtype
) -> int:
    """Tokens that ``num_bytes`` hold, whole granules of them and no more than steps can use.

    Raises:
        ConfigError: fewer than one sequence of full length takes.
    """
    allowed = max(0, num_bytes) // kv_bytes_per_token(text, kv_dtype)
    if allowed // granule < full_length(limits, granule):
        raise ConfigError(
            f"GPU memory left for the KV cache holds {allowed} tokens, fewer than the context "
            f"length of {limits.max_model_len}; lower it with --max-model-len"
        )
    return min(allowed // granule, useful_granules(limits, granule)) * granule


def run_largest_step(
    model: VisionLanguageModel,
    model_config: ModelConfig,
    limits: Limits,
    backend: AttentionBackend,
    device: torch.device,
    kv_dtype: torch.dtype,
    largest_image: ImageInput,
    parallel: ParallelContext = SINGLE_DEVICE,
) -> None:
    """Run a step with as many tokens, sampled tokens and new image tokens as any may have.

    All its sequences write to the same page and read it: the step takes hardly any KV cache, and
    what it computes means nothing. Afterwards the kernels of prefill are compiled and loaded.
    """
    page = backend.block_size
    text = model_config.text
    # As good as the model's own, which take memory for a moment.
    ones = [torch.ones(2, text.num_kv_heads, device=device)] * text.num_layers
    scales = ones if kv_dtype == E4M3 else None
    cache = KVCache(text, page, backend.granule, page, kv_dtype, device, scales)
    runner = ModelRunner(
        model, cache, device, limits.cached_image_tokens, limits.vision_tokens, parallel
    )
    count = max(1, limits.vision_tokens // largest_image.grid.num_tokens)
    images = [replace(largest_image, content_hash=b"%d" % index) for index in range(count)]
    chunks = _largest_chunks(text, limits, images)
    for chunk in chunks:
        chunk.sequence.blocks = [Block(0, page // backend.granule)] * -(-chunk.length // page)
    inputs = build_step_inputs(chunks, page, backend.granule, device)
    inputs.upcoming_images = images
    runner.sample(runner.score(inputs)).token_ids()


def _largest_chunks(
    text: TextConfig, limits: Limits, images: list[ImageInput]
) -> list[ScheduledChunk]:
    """Whole prompts for all the tokens of a step: first ones with an image, then longer ones.

    Of an image larger than a prompt or a step, the prompt takes as much as there is room for.
    """
    left = limits.max_batched_tokens
    lengths = [1] * min(limits.max_num_seqs, left)
    left -= len(lengths)
    image_size = max(1, min(images[0].grid.num_tokens, limits.max_model_len - 1, left))
    for length in (image_size + 1, limits.max_model_len):
        for index, before in enumerate(lengths):
            grown = min(max(before, min(length, limits.max_model_len)), before + left)
            lengths[index] = grown
            left -= grown - before
    chunks = []
    for index, length in enumerate(lengths):
        with_image = length > image_size
        request = Request(
            index,
            [0] * length,
            _SAMPLING,
            (images[index % len(images)],) if with_image else (),
            (ImageSpan(0, image_size, 0),) if with_image else (),
            *((np.zeros((3, length), np.int64), 1) if text.rope.sections else (None, None)),
        )
        sequence = Sequence(request, length + 1, frozenset())
        chunks.append(ScheduledChunk(sequence, 0, length, needs_sampling=True))
    return chunks
