"""Inputs for every Triton kernel, and the one rule that judges them all.

The Triton form may be at most twice as far from float32 as torch's form in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import accumulate
from typing import Any

import torch
from paged_batch import make_metadata, shuffled_tables
from torch import Tensor
from vlmbatch_kernels import activation, embedding, image_patches, layer_norm, rms_norm, rotary
from vlmbatch_kernels.granules import copy_granules
from vlmbatch_kernels.packed_attention import packed_attention
from vlmbatch_kernels.paged_attention import PageLayout, Scores, paged_attention
from vlmbatch_kernels.paged_decode import paged_decode

Make = Callable[[torch.Generator], tuple[Any, ...]]


def _norm(rows: int, hidden: int) -> Make:
    return lambda g: (
        torch.randn(rows, hidden, generator=g) * 3,
        torch.randn(hidden, generator=g),
        1e-3,
    )


def _add_norm(*shape: int, bias: bool = False) -> Make:
    return lambda g: (
        torch.randn(shape, generator=g) * 3,
        torch.randn(shape, generator=g) + 1,
        *(torch.randn(shape[-1], generator=g) for _ in range(1 + bias)),
        1e-3,
    )


def _activation(*shape: int) -> Make:
    return lambda g: (torch.randn(shape, generator=g) * 3,)


def _strided(x: Tensor) -> Tensor:
    """The same numbers, with others between the rows."""
    return torch.cat([x, torch.full_like(x[:, :1], torch.nan)], dim=1)[:, :-1]


def _rotary(
    tokens: int,
    heads: int,
    kv_heads: int,
    size: int,
    strided: bool = False,
    norms: bool = False,
) -> Make:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        inv_freq = 1 / 10_000 ** (torch.arange(0, size, 2) / size)
        cos, sin = rotary.rotary_tables(inv_freq, 4096, torch.float32)
        positions = torch.randint(4096, (tokens,), generator=g)
        qkv = torch.randn(tokens, heads + 2 * kv_heads, size, generator=g)
        key_cache, value_cache = torch.randn(2, 3 * tokens, kv_heads, size, generator=g)
        slots = torch.randperm(3 * tokens, generator=g)[:tokens]
        qkv = _strided(qkv) if strided else qkv
        pools = key_cache, value_cache, slots
        weights = (*torch.randn(2, size, generator=g), 1e-3) if norms else ()
        return qkv, cos[positions, None], sin[positions, None], *pools, *weights

    return make


def _embedding(tokens: int, hidden: int, vocab: int, num_features: int) -> Make:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        rows = torch.randint(-1, num_features, (tokens,), generator=g)
        rows[torch.rand(tokens, generator=g) < 0.3] = -1
        table = torch.randn(vocab, hidden, generator=g)
        features = torch.randn(num_features, hidden, generator=g)
        return torch.randint(vocab, (tokens,), generator=g), table, features, rows

    return make


def _pool(
    totals: list[int], kv_heads: int, size: int, layout: PageLayout, g: torch.Generator
) -> tuple[Tensor, Tensor, list[list[int]]]:
    """Keys and values in shuffled pages, and the block tables; NaN where no token is."""
    tables, slots = shuffled_tables(totals, layout.page_size, layout.granule, g)
    pool = torch.full((2, slots + layout.page_size, kv_heads, size), torch.nan)
    for table, total in zip(tables, totals, strict=True):
        token = torch.arange(total)
        page = torch.tensor(table)[token // layout.page_size]
        at = page * layout.granule + token % layout.page_size
        pool[:, at] = torch.randn(2, total, kv_heads, size, generator=g)
    return *pool, tables


def _paged(
    lengths: list[tuple[int, int]],
    heads: int,
    kv_heads: int,
    size: int,
    window: int = 0,
    softcap: float = 0.0,
    page_size: int = 256,
) -> Make:
    """Sequences with (queries, keys in all), over pages of ``page_size`` in granules of 16."""

    def make(g: torch.Generator) -> tuple[Any, ...]:
        layout = PageLayout(page_size, 16)
        key_cache, value_cache, tables = _pool([n for _, n in lengths], kv_heads, size, layout, g)
        step = make_metadata(lengths, tables, page_size, layout.granule)
        query = torch.randn(sum(step.query_lens), heads, size, generator=g)
        places = (step.block_table, step.cu_seqlens_q, step.seqlens_k, step.max_seqlen_q)
        scores = Scores(size**-0.5 * 2, window, softcap)
        return query, key_cache, value_cache, *places, layout, scores

    return make


def _decode(
    totals: list[int],
    heads: int,
    kv_heads: int,
    size: int,
    window: int = 0,
    softcap: float = 0.0,
    page_size: int = 256,
) -> Make:
    make_paged = _paged([(1, n) for n in totals], heads, kv_heads, size, window, softcap, page_size)

    def make(g: torch.Generator) -> tuple[Any, ...]:
        query, keys, values, table, _, seqlens_k, _, layout, scores = make_paged(g)
        return query, keys, values, table, seqlens_k, layout, scores

    return make


def _granules(planes: int, granules: int, size: int, count: int) -> Make:
    def make(g: torch.Generator) -> tuple[Any, ...]:
        source, target = torch.randperm(granules, generator=g)[: 2 * count].chunk(2)
        return torch.randn(planes, granules, size, generator=g), source, target

    return make


def _packed(lengths: list[int], heads: int, size: int) -> Make:
    """Sequences behind each other; queries, keys and values are parts of one projection."""

    def make(g: torch.Generator) -> tuple[Any, ...]:
        query, key, value = torch.randn(3, sum(lengths), heads, size, generator=g)
        bounds = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
        return query * 3, key, value, bounds, max(lengths), size**-0.5

    return make


TOTALS = [5, 16, 257, 1, 512, 33]

# name: twin, inputs in float32, which of the inputs it writes to
CASES: dict[str, tuple[Callable[..., Any], Make, tuple[int, ...]]] = {
    "rms_norm-113x203": (rms_norm.rms_norm, _norm(113, 203), ()),
    "rms_norm-3x4096": (rms_norm.rms_norm, _norm(3, 4096), ()),
    "rms_norm_residual-113x203": (rms_norm.rms_norm_residual, _add_norm(113, 203), ()),
    "rms_norm_residual-2x5120": (rms_norm.rms_norm_residual, _add_norm(2, 5120), ()),
    "layer_norm_residual-113x203": (
        layer_norm.layer_norm_residual,
        _add_norm(113, 203, bias=True),
        (),
    ),
    "layer_norm_residual-2x17x1024": (
        layer_norm.layer_norm_residual,
        _add_norm(2, 17, 1024, bias=True),
        (),
    ),
    "silu_and_mul-113x203": (activation.silu_and_mul, _activation(113, 2 * 203), ()),
    "silu_and_mul-2x11008": (activation.silu_and_mul, _activation(2, 2 * 11008), ()),
    "quick_gelu-113x203": (activation.quick_gelu, _activation(113, 203), ()),
    "quick_gelu-2x3x4096": (activation.quick_gelu, _activation(2, 3, 4096), ()),
    "rotary-mha-128": (rotary.rotary_and_cache, _rotary(5, 8, 8, 128), (3, 4)),
    "rotary-gqa-128": (rotary.rotary_and_cache, _rotary(5, 14, 2, 128, strided=True), (3, 4)),
    "rotary-gqa-64": (rotary.rotary_and_cache, _rotary(17, 14, 2, 64), (3, 4)),
    "rotary-mqa-24": (rotary.rotary_and_cache, _rotary(7, 3, 1, 24, strided=True), (3, 4)),
    "rotary-norms-128": (
        rotary.rotary_and_cache,
        _rotary(5, 8, 2, 128, strided=True, norms=True),
        (3, 4),
    ),
    "rotary-norms-24": (rotary.rotary_and_cache, _rotary(7, 3, 1, 24, norms=True), (3, 4)),
    "embed-113x203": (embedding.embed_with_features, _embedding(113, 203, 57, 31), ()),
    "embed-9x5120": (embedding.embed_with_features, _embedding(9, 5120, 5, 3), ()),
    "paged_attention-prefill": (
        paged_attention,
        _paged([(7, 7), (33, 33), (150, 150)], 2, 2, 64),
        (),
    ),
    "paged_attention-chunks-gqa-24": (
        paged_attention,
        _paged([(5, 400), (16, 48), (3, 3), (2, 290)], 6, 2, 24),
        (),
    ),
    "paged_attention-window": (
        paged_attention,
        _paged([(40, 300), (2, 31), (21, 21)], 4, 2, 32, window=37),
        (),
    ),
    "paged_attention-window-1": (paged_attention, _paged([(19, 45)], 2, 1, 16, window=1), ()),
    "paged_attention-softcap": (
        paged_attention,
        _paged([(20, 80), (70, 70)], 2, 1, 32, softcap=1.5),
        (),
    ),
    "paged_attention-pages-of-16": (
        paged_attention,
        _paged([(20, 80), (3, 90)], 2, 2, 40, page_size=16),
        (),
    ),
    "paged_decode-mha-64": (paged_decode, _decode(TOTALS, 2, 2, 64), ()),
    "paged_decode-gqa-24": (paged_decode, _decode(TOTALS, 14, 2, 24), ()),
    "paged_decode-mqa-128": (paged_decode, _decode([700, 90], 40, 1, 128), ()),
    "paged_decode-window": (paged_decode, _decode(TOTALS, 4, 2, 32, window=37), ()),
    "paged_decode-softcap": (paged_decode, _decode(TOTALS, 4, 2, 32, softcap=1.5), ()),
    "paged_decode-pages-of-16": (
        paged_decode,
        _decode([290, 256, 257, 3], 4, 2, 32, page_size=16),
        (),
    ),
    "paged_decode-window-pages-of-16": (
        paged_decode,
        _decode([600, 280, 257, 3], 4, 2, 32, window=90, page_size=16),
        (),
    ),
    "packed_attention-72": (packed_attention, _packed([1, 300, 64, 129, 7], 2, 72), ()),
    "packed_attention-80": (packed_attention, _packed([257, 40], 3, 80), ()),
    "packed_attention-96": (packed_attention, _packed([128], 1, 96), ()),
    "copy_granules-3x50x203": (copy_granules, _granules(3, 50, 203, 17), (0,)),
    "copy_granules-2x9x8192": (copy_granules, _granules(2, 9, 8192, 4), (0,)),
}


def triton_form(twin: Callable[..., Any]) -> Callable[..., Any]:
    """The launcher itself, whatever the device (under the interpreter it takes CPU tensors)."""
    form: Callable[..., Any] = getattr(import_module(f"{twin.__module__}_triton"), twin.__name__)
    return form


def check(name: str, dtype: torch.dtype, device: str) -> None:
    """Judge the Triton form on fresh inputs, all that it returns and all that it writes."""
    twin, make, written = CASES[name]
    generator = torch.Generator()
    seed = generator.seed()
    inputs = make(generator)
    exact = _run(twin, [_round(x, dtype, torch.float32) for x in inputs], written)
    plain = _run(twin, [_round(x, dtype) for x in inputs], written)
    on_device = [_place(_round(x, dtype), device) for x in inputs]
    before = [x.clone() if isinstance(x, Tensor) else x for x in on_device]
    with _fresh_memory_is_nan():
        got = _run(triton_form(twin), on_device, written)
    for want, theirs, ours in zip(exact, plain, got, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == want.shape
        ours_off, theirs_off = ((x.cpu().float() - want).norm() for x in (ours, theirs))
        assert ours_off <= 2 * theirs_off, f"{ours_off} against {theirs_off}, seed {seed}"
    for index, (old, new) in enumerate(zip(before, on_device, strict=True)):
        if isinstance(old, Tensor) and index not in written:
            assert torch.equal(old.nan_to_num(), new.nan_to_num()), f"input {index} was changed"


def check_normalize_patches(
    shape: tuple[int, int, int], patch_size: int, dtype: torch.dtype, device: str
) -> None:
    pixels = torch.randint(256, (*shape, 3), dtype=torch.uint8)
    scale, bias = torch.rand(3) / 50, torch.randn(3)
    twin = image_patches.normalize_patches
    exact = twin(pixels, scale, bias, patch_size, torch.float32)
    plain = twin(pixels, scale, bias, patch_size, dtype)
    on_device = (x.to(device) for x in (pixels, scale, bias))
    got = triton_form(twin)(*on_device, patch_size, dtype).cpu()
    assert got.dtype == dtype
    assert got.shape == plain.shape
    assert (got - exact).norm() <= 2 * (plain - exact).norm()


def check_silu_gated_linear(
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    device: str,
    **tiles: Any,
) -> None:
    """The kernel itself, which its launcher may decide against. ``shape``: rows, depth, size."""
    from vlmbatch_kernels.gated_linear import silu_gated_linear
    from vlmbatch_kernels.gated_linear_triton import fused

    rows, depth, size = shape
    x, weight = torch.randn(rows, depth).to(dtype), torch.randn(2 * size, depth).to(dtype) / 8
    exact = silu_gated_linear(x.float(), weight.float())
    plain = silu_gated_linear(x, weight)
    with _fresh_memory_is_nan():
        got = fused(x.to(device), weight.to(device), **tiles).cpu()
    assert got.dtype == dtype
    assert got.shape == plain.shape
    assert (got - exact).norm() <= 2 * (plain - exact).norm()


def check_project_qkv(
    sizes: tuple[int, int, int, int],
    head_dim: int,
    dtype: torch.dtype,
    device: str,
    bias: bool,
    norms: bool = False,
    **tiles: Any,
) -> None:
    """The kernel itself. ``sizes``: rows, in_features, query heads, key-value heads."""
    from vlmbatch_kernels.qkv_linear import project_qkv
    from vlmbatch_kernels.qkv_linear_triton import fused

    rows, depth, heads, kv_heads = sizes
    generator = torch.Generator()
    generator.seed()
    _, *rest = _rotary(rows, heads, kv_heads, head_dim, norms=norms)(generator)
    columns = (heads + 2 * kv_heads) * head_dim
    projection = (
        torch.randn(rows, depth, generator=generator),
        torch.randn(columns, depth, generator=generator) / 8,
        torch.randn(columns, generator=generator) if bias else None,
    )
    inputs = [*projection, *rest]
    exact = _run(project_qkv, [_round(x, dtype, torch.float32) for x in inputs], (5, 6))
    plain = _run(project_qkv, [_round(x, dtype) for x in inputs], (5, 6))
    on_device = [_place(_round(x, dtype), device) for x in inputs]
    with _fresh_memory_is_nan():
        got = _run(lambda *args: fused(*args, **tiles), on_device, (5, 6))
    for want, theirs, ours in zip(exact, plain, got, strict=True):
        assert ours.dtype == dtype
        assert ours.shape == want.shape
        assert (ours.cpu().float() - want).norm() <= 2 * (theirs - want).norm()


def check_resample(shapes: Sequence[tuple[int, int, int, int]], device: str) -> None:
    """Two passes over images of these lines, lengths, counts and taps, in a launch each.

    Lines along memory, by words of it where there are such, and across it; parts of larger images,
    and what lies beyond their ends.
    """
    from vlmbatch_kernels.resample import Lines, has_words, resample

    made: list[Tensor] = []
    passes: tuple[list[Lines], list[Lines]] = ([], [])
    expected = []
    for index, (lines, length, count, taps) in enumerate(shapes):
        image = torch.randint(0, 256, (3, lines, length + 4), dtype=torch.uint8)
        if index % 2:
            image = image.transpose(1, 2).contiguous().transpose(1, 2)
        pixels = image[:, :, :length]
        color = (200, 3, index) if index % 3 else (0, 0, 0)
        by_words = has_words(pixels) and taps % 4 == 0
        part, part_at = _resampled(pixels, count, taps, color, made, 4 if by_words else 1)
        whole, whole_at = _resampled(part.transpose(1, 2), count, min(taps, lines), color, made)
        expected += [part, whole]
        placed = image.to(device)[:, :, :length]
        between = torch.empty(3, lines, count, dtype=torch.uint8, device=device)
        out = torch.empty(count, count, 3, dtype=torch.uint8, device=device).permute(2, 0, 1)
        passes[0].append(Lines(placed, between, part_at, taps, color, by_words))
        turned = between.transpose(1, 2)
        passes[1].append(Lines(turned, out, whole_at, min(taps, lines), color))
    weights = torch.cat(made).to(device)
    outs = [each.out for pair in zip(*passes, strict=True) for each in pair]
    torch_form: Any = resample
    for form, num_launches in ((torch_form.__wrapped__, 0), (triton_form(resample), 2)):
        for out in outs:
            out.zero_()
        with count_resample_launches() as grids:
            form(weights, passes)
        assert len(grids) == num_launches
        assert all(map(torch.equal, (out.cpu() for out in outs), expected))


@contextmanager
def count_resample_launches() -> Iterator[list[tuple[int, int, int]]]:
    """The grids that the kernel is launched on meanwhile."""
    from vlmbatch_kernels import resample_triton

    grids: list[tuple[int, int, int]] = []
    kernel = resample_triton._resample

    class Counted:
        def __getitem__(self, grid: tuple[int, int, int]) -> Any:
            grids.append(grid)
            return kernel[grid]

    resample_triton._resample = Counted()
    try:
        yield grids
    finally:
        resample_triton._resample = kernel


def _resampled(
    pixels: Tensor,
    count: int,
    taps: int,
    color: tuple[int, int, int],
    made: list[Tensor],
    step: int = 1,
) -> tuple[Tensor, int]:
    """What becomes of lines by new random weights, which are added to ``made``, and where.

    ``step``: of first places.
    """
    from vlmbatch_kernels.resample import SHARE_BITS

    length, beyond = pixels.shape[2], 2 * step if any(color) else 0
    most = (length - taps + beyond) // step
    first = step * torch.randint(-(beyond // step), most + 1, (count,)).int()
    parts = torch.randn(count, taps).softmax(1) * 1.2
    parts[:, 0] -= 0.2
    shares = (parts * 2**SHARE_BITS).int()
    padded = torch.tensor(color)[:, None, None].repeat(1, pixels.shape[1], length + 2 * beyond)
    padded[:, :, beyond : beyond + length] = pixels
    places = first[:, None].long() + beyond + torch.arange(taps)
    sums = (padded[:, :, places] * shares.long()).sum(-1)
    start = sum(map(len, made))
    made += [first, shares.T.reshape(-1)]
    return ((sums + 2 ** (SHARE_BITS - 1)) >> SHARE_BITS).clamp(0, 255).byte(), start


def check_mask_tokens(rows: int, vocab: int, dtype: torch.dtype, device: str) -> None:
    """Some rows have masks, in any order, in logits that stand apart; the others stay."""
    from vlmbatch_kernels.token_masks import mask_tokens_

    logits = torch.randn(rows, vocab + 3).to(dtype)
    chosen = torch.randperm(rows)[: rows - 1]
    words = -(-vocab // 32)
    masks = torch.randint(-(2**31), 2**31, (rows - 1, words), dtype=torch.int64).to(torch.int32)
    masks[0], masks[1] = 0, -1
    expected = logits.clone()
    for row, mask in zip(chosen.tolist(), masks.tolist(), strict=True):
        for token in range(vocab):
            if not mask[token // 32] >> (token % 32) & 1:
                expected[row, token] = -torch.inf
    placed = logits.to(device)
    got = triton_form(mask_tokens_)(placed[:, :vocab], chosen.to(device), masks.to(device))
    assert got.data_ptr() == placed.data_ptr()
    assert torch.equal(placed.cpu(), expected)
    torch_form: Any = mask_tokens_
    twin = torch_form.__wrapped__(logits[:, :vocab], chosen, masks)
    assert torch.equal(twin, expected[:, :vocab])


def check_greedy_tokens(rows: int, vocab: int, dtype: torch.dtype, device: str) -> None:
    """Ties, rows of -inf, the ends of a row, rows that stand apart, and NaN."""
    from vlmbatch_kernels.sampling import greedy_tokens

    logits = torch.randn(rows, vocab + 3).round(decimals=1).to(dtype)[:, :vocab]
    logits[0, -1] = logits[1, 0] = 50.0
    logits[2] = -torch.inf
    logits[3, vocab // 2] = logits[3, vocab // 2 + 1] = 50.0
    got = triton_form(greedy_tokens)(logits.to(device))
    assert got.dtype == torch.int64
    best = logits.amax(dim=1, keepdim=True)
    first = (logits == best).int().argmax(dim=1)
    assert torch.equal(got.cpu(), first)
    logits[:, vocab // 3] = torch.nan
    assert (triton_form(greedy_tokens)(logits.to(device)) == vocab // 3).all()


def _run(function: Callable[..., Any], args: list[Any], written: tuple[int, ...]) -> list[Tensor]:
    out = function(*args)
    returned = out if isinstance(out, tuple) else () if out is None else (out,)
    return [*returned, *(args[index] for index in written)]


@contextmanager
def _fresh_memory_is_nan() -> Iterator[None]:
    """What a kernel leaves out of its output shows, and is not by chance what was there."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _round(x: object, *dtypes: torch.dtype) -> Any:
    if isinstance(x, Tensor) and x.is_floating_point():
        for dtype in dtypes:
            x = _like(x.to(dtype), x)
        return x.clone() if x.is_contiguous() else x
    return x


def _place(x: object, device: str) -> Any:
    return _like(x.to(device), x) if isinstance(x, Tensor) else x


def _like(converted: Tensor, x: Tensor) -> Tensor:
    """Conversions pack what is strided; give it its strides back."""
    return converted if x.is_contiguous() else _strided(converted)
