"""Time every Triton kernel against torch at the shapes of LLaVA-1.5-7B; check them on the way.

    PYTHONPATH=tests/support python tests/gpu/bench_kernels.py

Each figure is the median over replays of a CUDA graph that runs the kernel on four sets of inputs
in turn: launches cost next to nothing, as in a captured decode step. The inputs of the small
shapes stay in the L2 cache, as they do behind a real matrix product. GB/s: each input read once
and each output written once, over Triton's time. Error: Triton's distance from float32 over
torch's, in bf16. Beside ``shared_decode`` stands no time of torch, but that of ``paged_decode``.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vlmbatch_kernels import (
    activation,
    dispatch,
    embedding,
    image_patches,
    layer_norm,
    rms_norm,
    rotary,
    sampling,
    shared_decode,
)
from vlmbatch_kernels.paged_attention import PageLayout, Scores

from vlmbatch.attention.base import AttentionMetadata, LayerKVCache
from vlmbatch.models.config import TextConfig
from vlmbatch.models.decoder import Decoder
from vlmbatch.models.llava.vision import VisionTower
from vlmbatch.models.llava.vision_config import VisionConfig
from vlmbatch.models.parallel import SINGLE_DEVICE
from vlmbatch.models.vision_language_model import Embedded
from vlmbatch.models.weights import materialise, random_weights

SETS = 4  # of inputs
HIDDEN, INTERMEDIATE, HEADS, HEAD_DIM, VOCAB = 4096, 11008, 32, 128, 32064
DTYPE = torch.bfloat16


@dataclass
class Case:
    """``num_bytes``: what the kernel has to move. ``plain``: torch's form, if not the twin."""

    kernel: Callable[..., Any]
    shape: str
    make: Callable[[], tuple[Any, ...]]
    num_bytes: int
    plain: Callable[..., Any] | None = None


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=DTYPE)


def decoder_cases(tokens: int) -> Iterator[Case]:
    row = 2 * tokens * HIDDEN
    shape = f"{tokens} x {HIDDEN}"

    def rotary_inputs() -> tuple[Any, ...]:
        angles = torch.rand(tokens, 1, HEAD_DIM // 2, device="cuda") * 6
        cos = torch.cat([angles.cos()] * 2, -1).to(DTYPE)
        sin = torch.cat([-angles.sin(), angles.sin()], -1).to(DTYPE)
        pools = [randn(2 * tokens, HEADS, HEAD_DIM) for _ in range(2)]
        slots = torch.randperm(2 * tokens, device="cuda")[:tokens]
        return randn(tokens, 3 * HEADS, HEAD_DIM), cos, sin, *pools, slots

    yield Case(
        rms_norm.rms_norm, shape, lambda: (randn(tokens, HIDDEN), randn(HIDDEN), 1e-5), 2 * row
    )
    yield Case(
        rms_norm.rms_norm_residual,
        shape,
        lambda: (randn(tokens, HIDDEN), randn(tokens, HIDDEN), randn(HIDDEN), 1e-5),
        4 * row,
    )
    yield Case(
        activation.silu_and_mul,
        f"{tokens} x {2 * INTERMEDIATE}",
        lambda: (randn(tokens, 2 * INTERMEDIATE),),
        6 * tokens * INTERMEDIATE,
    )
    yield Case(
        rotary.rotary_and_cache,
        f"{tokens} x {3 * HEADS} x {HEAD_DIM}",
        rotary_inputs,
        6 * row + 4 * tokens * HEAD_DIM,
    )


def shared_case(kv_heads: int) -> Case:
    """512 rows of 600 tokens; eight each share 576, of which the last 64 are copies."""
    rows, per_group, shared, own = 512, 8, 576, 24
    groups, layout = rows // per_group, PageLayout(256, 16)

    def make() -> tuple[Any, ...]:
        pages = torch.arange(2 * groups, dtype=torch.int32, device="cuda").view(-1, 2) * 16
        last = groups * 32 + torch.arange(rows, dtype=torch.int32, device="cuda") * 6
        table = torch.cat([pages.repeat_interleave(per_group, 0), last[:, None]], 1)
        pool = (int(last[-1]) * 16 + 512, kv_heads, HEAD_DIM)
        seqlens, lens = (
            torch.full((rows,), length, dtype=torch.int32, device="cuda")
            for length in (shared + own, shared)
        )
        first = torch.arange(0, rows, per_group, dtype=torch.int32, device="cuda")
        tiles = torch.stack([first, torch.full_like(first, per_group)], 1)
        keys, values = randn(*pool), randn(*pool)
        scores = Scores(HEAD_DIM**-0.5)
        query = randn(rows, HEADS, HEAD_DIM)
        return query, keys, values, table, seqlens, lens, tiles, layout, scores

    def row_by_row(*args: Any) -> Tensor:
        from vlmbatch_kernels.paged_decode_triton import paged_decode

        return paged_decode(*args[:5], *args[7:])

    tokens = groups * shared + rows * own
    num_bytes = 4 * HEAD_DIM * (tokens * kv_heads + rows * HEADS)
    shape = f"{rows} x {shared + own}, {kv_heads} heads"
    return Case(shared_decode.shared_decode, shape, make, num_bytes, plain=row_by_row)


def cases() -> Iterator[Case]:
    yield from decoder_cases(128)
    yield from decoder_cases(256)
    yield from decoder_cases(8192)
    tokens, images = 8192, 64
    row = 2 * tokens * HIDDEN

    def embedding_inputs() -> tuple[Any, ...]:
        rows = torch.arange(tokens, device="cuda")
        rows[torch.rand(tokens, device="cuda") < 0.04] = -1
        ids = torch.randint(VOCAB, (tokens,), device="cuda")
        return ids, randn(VOCAB, HIDDEN), randn(tokens, HIDDEN), rows

    yield Case(embedding.embed_with_features, f"{tokens} x {HIDDEN}", embedding_inputs, 2 * row)
    tower = (images, 577, 1024)
    size = 2 * images * 577 * 1024
    yield Case(
        layer_norm.layer_norm_residual,
        "64 x 577 x 1024",
        lambda: (randn(*tower), randn(*tower), randn(1024), randn(1024), 1e-5),
        4 * size,
    )
    yield Case(
        activation.quick_gelu, "64 x 577 x 4096", lambda: (randn(images, 577, 4096),), 8 * size
    )
    pixels = images * 336 * 336 * 3
    yield Case(
        image_patches.normalize_patches,
        "64 x 336 x 336 x 3",
        lambda: (
            torch.randint(256, (images, 336, 336, 3), dtype=torch.uint8, device="cuda"),
            torch.rand(3, device="cuda") / 50,
            torch.randn(3, device="cuda"),
            14,
            DTYPE,
        ),
        3 * pixels,
    )
    for rows in (128, 256):
        yield Case(
            sampling.greedy_tokens,
            f"{rows} x {VOCAB}",
            lambda rows=rows: (randn(rows, VOCAB),),
            2 * rows * VOCAB,
            plain=lambda logits: logits.float().argmax(dim=-1),
        )
    yield from map(shared_case, (32, 8))


def time_us(call: Callable[..., Any], inputs: list[tuple[Any, ...]]) -> float:
    """Microseconds of one call."""
    for args in inputs:
        call(*args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    rounds = 5
    with torch.cuda.graph(graph):
        for args in inputs * rounds:
            call(*args)
    times = []
    for _ in range(9):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times) / (rounds * len(inputs))


@contextmanager
def torch_only() -> Iterator[None]:
    """Within, every kernel runs its twin."""
    has_triton = dispatch.has_triton
    dispatch.has_triton = lambda: False  # type: ignore[assignment]
    try:
        yield
    finally:
        dispatch.has_triton = has_triton


def error_ratio(kernel: Callable[..., Any], args: tuple[Any, ...]) -> float:
    """Distance from the twin in float32: Triton's over the twin's in bf16."""
    wide = [x.float() if isinstance(x, Tensor) and x.dtype == DTYPE else x for x in args]
    with torch_only():
        exact = _tensors(kernel(*(torch.float32 if x is DTYPE else x for x in wide)))
        plain = _tensors(kernel(*args))
    ours = _tensors(kernel(*args))
    far, theirs = (
        sum(float((a.float() - b).norm()) for a, b in zip(form, exact, strict=True))
        for form in (ours, plain)
    )
    return far / theirs if theirs else far


def _tensors(out: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return out if isinstance(out, tuple) else (out,)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--blocks", action="store_true", help="decoder and tower too: flash-attn")
    blocks = parser.parse_args().blocks
    torch.manual_seed(torch.seed() % 2**63)
    print(torch.cuda.get_device_name(), "torch", torch.__version__)
    print(f"{'kernel':<22}{'shape':<20}{'torch us':>10}{'Triton us':>11}{'gain':>7}", end="")
    print(f"{'GB/s':>7}{'error':>7}")
    for case in cases():
        inputs = [case.make() for _ in range(SETS)]
        with torch_only():
            plain = time_us(case.plain or case.kernel, inputs)
        ours = time_us(case.kernel, inputs)
        ratio = error_ratio(case.kernel, inputs[0])
        print(
            f"{case.kernel.__name__:<22}{case.shape:<20}{plain:>10.1f}{ours:>11.1f}"
            f"{plain / ours:>6.2f}x{case.num_bytes / ours / 1e3:>7.0f}{ratio:>7.2f}",
            flush=True,
        )
        del inputs
    if blocks:
        for name, run in (("decoder, 128 rows", decode()), ("tower, 64 images", tower())):
            with torch_only():
                plain = time_us(run, [()])
            ours = time_us(run, [()])
            print(f"{name:<42}{plain:>10.1f}{ours:>11.1f}{plain / ours:>6.2f}x")


def decode() -> Callable[[], Tensor]:
    """A decode step of 128 sequences of 700 tokens through two layers."""
    from vlmbatch.attention.flash import FlashAttnBackend

    rows, length, layers = 128, 700, 2
    sizes = (VOCAB, HIDDEN, INTERMEDIATE, layers, HEADS, HEADS, HEAD_DIM)
    config = TextConfig("llama", *sizes, rms_norm_eps=1e-5, max_position_embeddings=4096)
    with torch.device("meta"):
        decoder = Decoder(config, SINGLE_DEVICE)
    materialise(decoder, torch.device("cuda"), DTYPE)
    random_weights(decoder, 0)
    pages = -(-length // 256)
    starts = torch.arange(rows * pages, dtype=torch.int32, device="cuda").view(rows, pages) * 16
    pool = (2, (rows * pages + 1) * 256, HEADS, HEAD_DIM)
    caches = [LayerKVCache(*randn(*pool)) for _ in range(layers)]
    at = length - 1
    metadata = AttentionMetadata(
        cu_seqlens_q=torch.arange(rows + 1, dtype=torch.int32, device="cuda"),
        seqlens_k=torch.full((rows,), length, dtype=torch.int32, device="cuda"),
        block_table=starts,
        slot_mapping=starts[:, at // 256].long() * 16 + at % 256,
        query_lens=[1] * rows,
        seqlens_k_host=[length] * rows,
        num_decodes=rows,
        max_seqlen_q=1,
        max_seqlen_k=length,
    )
    embeds = randn(rows, HIDDEN)
    positions = torch.full((rows,), at, device="cuda")
    backend = FlashAttnBackend()
    return lambda: decoder(Embedded(embeds), positions, caches, metadata, backend)


def tower() -> Callable[[], Tensor]:
    """64 images through two layers of CLIP-L."""
    from vlmbatch.attention.flash import FlashAttnBackend

    config = VisionConfig("clip_vision_model", 1024, 4096, 2, 16, 336, 14, "quick_gelu", 1e-5)
    with torch.device("meta"):
        model = VisionTower(config, (2,), SINGLE_DEVICE)
    materialise(model, torch.device("cuda"), DTYPE)
    random_weights(model, 0)
    patches, backend = randn(64, 576, 592), FlashAttnBackend()
    return lambda: model(patches, backend)


if __name__ == "__main__":
    main()
