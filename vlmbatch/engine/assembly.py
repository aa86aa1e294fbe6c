"""Builds an engine from its parts: pool, KV cache, scheduler, runner and CUDA graphs."""

from __future__ import annotations

from functools import partial

import torch
from vlmbatch_kernels.quantized_rows import E4M3

from vlmbatch.attention.base import AttentionBackend
from vlmbatch.config import EngineConfig
from vlmbatch.engine.batch import build_step_inputs
from vlmbatch.engine.block_pool import BlockPool
from vlmbatch.engine.decode_graphs import DecodeGraphs
from vlmbatch.engine.engine import Engine
from vlmbatch.engine.grammars import Grammars
from vlmbatch.engine.kv_cache import KVCache, pool_granules, resolve_kv_dtype
from vlmbatch.engine.limits import Limits
from vlmbatch.engine.model_runner import ModelRunner
from vlmbatch.engine.scheduler import Scheduler
from vlmbatch.models.config import ModelConfig
from vlmbatch.models.parallel import SINGLE_DEVICE, ParallelContext
from vlmbatch.models.vision_language_model import VisionLanguageModel


def make_engine(
    model: VisionLanguageModel,
    model_config: ModelConfig,
    config: EngineConfig,
    backend: AttentionBackend,
    device: torch.device,
    dtype: torch.dtype,
    *,
    ahead: bool | None = None,
    parallel: ParallelContext = SINGLE_DEVICE,
    grammars: Grammars | None = None,
) -> Engine:
    """An engine around ``model``, whose weights are on ``device`` in ``dtype``.

    ``ahead``: prepare a step while the one before is computed; None: on a GPU. ``parallel``: this
    rank, whose heads ``model_config`` counts, of those that divide the model. ``grammars``: where
    it samples.

    Raises:
        ConfigError: the KV cache that ``config`` asks for is less than a granule, or of a type that
            ``device`` does not read.
    """
    text = model_config.text
    limits = Limits.resolve(config, text, device.type)
    granule, block_size = backend.granule, backend.block_size
    kv_dtype = resolve_kv_dtype(config.kv_cache_dtype, dtype, device)
    granules = pool_granules(config.kv_cache_tokens, text, limits, granule, kv_dtype)
    scales = model.kv_scales() if kv_dtype == E4M3 else None
    kv_cache = KVCache(text, granules * granule, granule, block_size, kv_dtype, device, scales)
    runner = ModelRunner(
        model,
        kv_cache,
        device,
        cached_image_tokens=limits.cached_image_tokens,
        vision_tokens=limits.vision_tokens,
        parallel=parallel,
    )
    graphs = None
    if device.type == "cuda" and backend.captures_decodes and config.cuda_graphs:
        max_blocks = -(-limits.max_model_len // block_size)
        graphs = DecodeGraphs(limits.max_num_seqs, max_blocks, kv_cache.spare_slot, device)
    has_full_attention = None in (text.sliding_windows or (None,))
    return Engine(
        runner,
        lambda: Scheduler(
            BlockPool(granules, block_size // granule),
            granule=granule,
            max_num_seqs=limits.max_num_seqs,
            max_batched_tokens=limits.max_batched_tokens,
            enable_prefix_caching=config.enable_prefix_caching,
        ),
        partial(
            build_step_inputs,
            block_size=block_size,
            granule=granule,
            device=device,
            share_prefixes=backend.shares_prefixes and has_full_attention,
        ),
        graphs,
        limits,
        eos_token_ids=frozenset(model_config.eos_token_ids),
        device=device,
        ahead=device.type == "cuda" if ahead is None else ahead,
        recovers=parallel.world_size == 1,
        grammars=grammars,
    )
