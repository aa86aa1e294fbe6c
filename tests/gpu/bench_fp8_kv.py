"""Time the kernels that write and read keys and values, in bf16 and in e4m3, beside flash-attn.

    PYTHONPATH=tests/support:tests/gpu python tests/gpu/bench_fp8_kv.py

Heads as of LLaVA-1.5-7B (32 of keys) and of Qwen3-VL-8B (8). GB/s: keys and values read or written
once, over the time. TFLOP/s: products of queries with the keys that they see, and of values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from bench_kernels import SETS, time_us
from fp8_kv_cases import quantized
from torch import Tensor
from vlmbatch_kernels.qkv_linear import project_qkv
from vlmbatch_kernels.rotary import rotary_and_cache

from vlmbatch.attention import make_backend
from vlmbatch.attention.base import (
    AttentionBackend,
    AttentionMetadata,
    AttentionSpec,
    LayerKVCache,
    SharedPrefixes,
)

HEADS, HEAD_DIM, HIDDEN, PAGE, GRANULE = 32, 128, 4096, 256, 16
DTYPE = torch.bfloat16


def cache(slots: int, kv_heads: int, *, e4m3: bool) -> LayerKVCache:
    pool = torch.randn(2, slots + PAGE, kv_heads, HEAD_DIM, device="cuda")
    if not e4m3:
        return LayerKVCache(*pool.to(DTYPE))
    scales = torch.full((2, kv_heads), 2.0**-5, device="cuda")
    return LayerKVCache(*(quantized(*each) for each in zip(pool, scales, strict=True)), scales)


def step(rows: int, queries: int, keys: int, shared: int = 0, group: int = 1) -> AttentionMetadata:
    """Rows of ``queries`` tokens behind others; each ``group`` of them shares ``shared`` keys."""
    pages = -(-keys // PAGE)
    starts = torch.arange(rows * pages, dtype=torch.int32, device="cuda").view(rows, pages)
    table = starts * (PAGE // GRANULE)
    at = torch.arange(keys - queries, keys, device="cuda")
    slots = table[:, at // PAGE].long() * GRANULE + at % PAGE
    prefixes = None
    if shared:
        first = torch.arange(0, rows, group, dtype=torch.int32, device="cuda")
        lens = torch.full((rows,), shared, dtype=torch.int32, device="cuda")
        prefixes = SharedPrefixes(lens, torch.stack([first, torch.full_like(first, group)], 1))
    return AttentionMetadata(
        cu_seqlens_q=torch.arange(rows + 1, dtype=torch.int32, device="cuda") * queries,
        seqlens_k=torch.full((rows,), keys, dtype=torch.int32, device="cuda"),
        block_table=table,
        slot_mapping=slots.flatten(),
        query_lens=[queries] * rows,
        seqlens_k_host=[keys] * rows,
        num_decodes=rows if queries == 1 else 0,
        max_seqlen_q=queries,
        max_seqlen_k=keys,
        shared=prefixes,
    )


def attention_us(
    backend: AttentionBackend, metadata: AttentionMetadata, kv_heads: int, *, e4m3: bool
) -> float:
    spec = AttentionSpec(HEADS, kv_heads, HEAD_DIM, HEAD_DIM**-0.5)
    slots = metadata.block_table.numel() * PAGE
    tokens = sum(metadata.query_lens)
    inputs = [
        (torch.randn(tokens, HEADS, HEAD_DIM, device="cuda").to(DTYPE), each)
        for each in (cache(slots, kv_heads, e4m3=e4m3) for _ in range(SETS))
    ]
    return time_us(lambda query, pool: backend.attend(query, pool, metadata, spec), inputs)


def attention() -> None:
    flash, triton = (make_backend(name, "cuda", DTYPE) for name in ("flash-attn", "triton"))
    shapes = {
        "decode 256 x 700": step(256, 1, 700),
        "decode 32 x 4000": step(32, 1, 4000),
        "shared 512 x 600, 8 share 576": step(512, 1, 600, 576, 8),
        "prefill 14 x 600": step(14, 600, 600),
        "prefill 5 x 1500": step(5, 1500, 1500),
        "chunks 4 x 2048 of 8192": step(4, 2048, 8192),
    }
    for name, metadata in shapes.items():
        rows, queries = len(metadata.query_lens), metadata.max_seqlen_q
        keys = metadata.max_seqlen_k
        pairs = rows * (queries * keys - queries * (queries - 1) // 2)
        for kv_heads in (32, 8):
            line = f"{name}, {kv_heads} heads".ljust(40)
            for kind, backend, e4m3 in (
                ("flash bf16", flash, False),
                ("Triton bf16", triton, False),
                ("Triton e4m3", triton, True),
            ):
                us = attention_us(backend, metadata, kv_heads, e4m3=e4m3)
                if queries == 1:
                    num_bytes = rows * keys * 2 * kv_heads * HEAD_DIM * (1 if e4m3 else 2)
                    rate = f"{num_bytes / us / 1e3:.0f} GB/s"
                else:
                    rate = f"{4 * HEADS * HEAD_DIM * pairs / us / 1e6:.0f} TFLOP/s"
                line += f"{kind} {us:8.1f} us {rate:>12}   "
            print(line, flush=True)


def writing() -> None:
    for kv_heads in (32, 8):
        columns = (HEADS + 2 * kv_heads) * HEAD_DIM
        weight = torch.randn(columns, HIDDEN, device="cuda").to(DTYPE) / 64
        for tokens in (256, 8192):
            forms: dict[str, tuple[Callable[..., Tensor], Callable[[], tuple[Any, ...]]]] = {
                "rotary": (
                    rotary_and_cache,
                    lambda t=tokens, c=columns: (
                        torch.randn(t, c // HEAD_DIM, HEAD_DIM, device="cuda").to(DTYPE),
                    ),
                ),
                "projection": (
                    project_qkv,
                    lambda t=tokens, w=weight: (
                        torch.randn(t, HIDDEN, device="cuda").to(DTYPE),
                        w,
                        None,
                    ),
                ),
            }
            for name, (kernel, first) in forms.items():
                line = f"{name} of {tokens} tokens, {kv_heads} heads".ljust(40)
                for e4m3 in (False, True):
                    inputs = []
                    for _ in range(SETS):
                        pool = cache(2 * tokens, kv_heads, e4m3=e4m3)
                        cos, sin = torch.rand(2, tokens, 1, HEAD_DIM, device="cuda").to(DTYPE)
                        slots = torch.randperm(2 * tokens, device="cuda")[:tokens]
                        places = cos, sin, pool.key, pool.value, slots
                        inputs.append((*first(), *places, None, None, 0.0, pool.scales))
                    line += f"{'e4m3' if e4m3 else 'bf16'} {time_us(kernel, inputs):8.1f} us   "
                print(line, flush=True)


if __name__ == "__main__":
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    attention()
    writing()
