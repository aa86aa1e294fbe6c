"""``project_qkv`` in Triton: a product that rotates heads and writes keys and values to the cache.

A tile of the product holds two heads: both halves of a head are in the same program, and each of
the pairs that are turned together in the same thread.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.multiprocessors import multiprocessors
from vlmbatch_kernels.paged_heads import check_caches
from vlmbatch_kernels.paged_heads_triton import scaled_heads
from vlmbatch_kernels.persistent import ALIGNMENT, GROUP, MIN_ROWS, STAGES, is_hopper, place
from vlmbatch_kernels.rotary import rotary_and_cache

_HEAD_DIM = 128  # two heads are then as many columns as a multiprocessor multiplies at full rate
# Offsets have 32 bits: more do not fit the registers. Larger pools take the unfused path.
_MAX_OFFSET = 2**31 - 1
_BLOCK_M, _BLOCK_K = 128, 64  # rows of a tile, depth of a load


# Numbers of rows differ from step to step: none is to ask for another compilation.
@triton.jit(do_not_specialize=["rows", "num_programs"])
def _project_qkv(
    x: tl.tensor_descriptor,
    weight: tl.tensor_descriptor,
    bias: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    query: tl.tensor,
    key_cache: tl.tensor,
    value_cache: tl.tensor,
    slot_mapping: tl.tensor,
    query_norm: tl.tensor,
    key_norm: tl.tensor,
    scales: tl.tensor,
    eps: tl.tensor,
    rows: tl.tensor,
    depth: tl.tensor,
    num_programs: tl.tensor,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_NORMS: tl.constexpr,
    SCALED: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    HALF: tl.constexpr = HEAD_DIM // 2
    num_m = tl.cdiv(rows, BLOCK_M)
    num_n = (NUM_HEADS + 2 * NUM_KV_HEADS) // 2
    num_k = tl.cdiv(depth, BLOCK_K)
    # A count of its own for what is written: the loop's runs ahead.
    written = tl.program_id(0) - num_programs
    for tile in tl.range(tl.program_id(0), num_m * num_n, num_programs, flatten=True):
        m, n = place(tile, num_m, num_n, GROUP)
        heads = tl.zeros((BLOCK_M, 2 * HEAD_DIM), tl.float32)
        for k in range(num_k):
            left = x.load([m * BLOCK_M, k * BLOCK_K])
            right = weight.load([n * 2 * HEAD_DIM, k * BLOCK_K])
            heads = tl.dot(left, right.T, heads)

        written += num_programs
        m, n = place(written, num_m, num_n, GROUP)
        if HAS_BIAS:
            columns = n * 2 * HEAD_DIM + tl.arange(0, 2 * HEAD_DIM)
            heads += tl.load(bias + columns).to(tl.float32)[None, :]
        rounded = heads.to(query.dtype.element_ty).reshape(BLOCK_M, 2, HEAD_DIM)
        first, second = tl.split(rounded.permute(0, 2, 1))

        token = m * BLOCK_M + tl.arange(0, BLOCK_M)
        is_token = token < rows
        slot = tl.load(slot_mapping + token, mask=is_token, other=0).to(tl.int32)
        head = n * 2
        if head < NUM_HEADS:
            # Of one type in all branches: scaled, the query is no target among these.
            target = key_cache if SCALED else query
            norm = query_norm
            row = token * NUM_HEADS
        elif head < NUM_HEADS + NUM_KV_HEADS:
            head -= NUM_HEADS
            target = key_cache
            norm = key_norm
            row = slot * NUM_KV_HEADS
        else:
            head -= NUM_HEADS + NUM_KV_HEADS
            target = value_cache
            norm = key_norm
            row = slot * NUM_KV_HEADS
        # Values are scaled by one and turned by no angle: all tiles take the same way.
        is_value = n * 2 >= NUM_HEADS + NUM_KV_HEADS
        if HAS_NORMS:
            column = tl.arange(0, HEAD_DIM)
            is_normed = column < tl.where(is_value, 0, HEAD_DIM)
            gain = tl.load(norm + column, mask=is_normed, other=1.0).to(tl.float32)
            first = _normalise(first, gain, eps, is_value)
            second = _normalise(second, gain, eps, is_value)
        is_turned = token < tl.where(is_value, 0, rows)
        angle = token[:, None] * HEAD_DIM + tl.arange(0, HALF)[None, :]
        # The other halves of the tables hold the same, but for the sign of the sines.
        cosine = tl.load(cos + angle, mask=is_turned[:, None], other=1.0)
        sine = tl.load(sin + angle + HALF, mask=is_turned[:, None], other=0.0)
        at = (row + head)[:, None] * HEAD_DIM + tl.arange(0, HEAD_DIM)[None, :]
        if SCALED:
            # Queries and others are written by one way as well: to either, nothing is.
            is_query = n * 2 < NUM_HEADS
            is_asking = (token < tl.where(is_query, rows, 0))[:, None]
            is_kept = (token < tl.where(is_query, 0, rows))[:, None]
            own = scales + tl.where(is_query, 0, head + tl.where(is_value, NUM_KV_HEADS, 0))
            turned = _turn(first, cosine, sine)
            tl.store(query + at, turned, mask=is_asking)
            tl.store(target + at, scaled_heads(turned, tl.load(own), target), mask=is_kept)
            at += HEAD_DIM
            turned = _turn(second, cosine, sine)
            tl.store(query + at, turned, mask=is_asking)
            tl.store(target + at, scaled_heads(turned, tl.load(own + 1), target), mask=is_kept)
        else:
            tl.store(target + at, _turn(first, cosine, sine), mask=is_token[:, None])
            tl.store(target + at + HEAD_DIM, _turn(second, cosine, sine), mask=is_token[:, None])


@triton.jit
def _normalise(head: tl.tensor, gain: tl.tensor, eps: tl.tensor, is_value: tl.tensor):
    """A head (M, D) of every token over its root mean square, times ``gain`` (D,); rounded as
    torch's form is, behind the scale and behind the weight."""
    wide = head.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / head.shape[1] + eps)
    scale = tl.where(is_value, 1.0, scale)
    scaled = (wide * scale[:, None]).to(head.dtype).to(tl.float32)
    return (scaled * gain[None, :]).to(head.dtype)


@triton.jit
def _turn(head: tl.tensor, cosine: tl.tensor, sine: tl.tensor):
    """A head (M, D) of every token by its angles (M, D / 2), in float32, rounded once."""
    halves = head.to(tl.float32).reshape(head.shape[0], 2, head.shape[1] // 2)
    low, high = tl.split(halves.permute(0, 2, 1))
    cosine, sine = cosine.to(tl.float32), sine.to(tl.float32)
    turned = tl.join(low * cosine - high * sine, high * cosine + low * sine)
    return turned.to(head.dtype).permute(0, 2, 1).reshape(head.shape[0], head.shape[1])


def project_qkv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    scales: Tensor | None = None,
) -> Tensor:
    num_kv_heads, size = key_cache.shape[1:]
    num_heads = weight.shape[0] // size - 2 * num_kv_heads
    fits = (
        size == _HEAD_DIM
        and num_heads % 2 == num_kv_heads % 2 == 0
        and x.element_size() == 2
        and x.shape[1] % ALIGNMENT == 0
        and max(key_cache.numel(), len(x) * num_heads * size) <= _MAX_OFFSET
    )
    rest = (cos, sin, key_cache, value_cache, slot_mapping, query_norm, key_norm, eps, scales)
    if fits and len(x) >= MIN_ROWS and is_hopper(x.device):
        return fused(x, weight, bias, *rest)
    qkv = linear(x, weight, bias).view(len(x), -1, size)
    return rotary_and_cache(qkv, *rest)


def fused(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    slot_mapping: Tensor,
    query_norm: Tensor | None = None,
    key_norm: Tensor | None = None,
    eps: float = 0.0,
    scales: Tensor | None = None,
    block: tuple[int, int] = (_BLOCK_M, _BLOCK_K),
    group: int = GROUP,
    stages: int = STAGES,
    num_warps: int = 8,
) -> Tensor:
    """The kernel itself, for any number of rows and any head size that is a power of two."""
    (rows, depth), (_, num_kv_heads, size) = x.shape, key_cache.shape
    num_heads = weight.shape[0] // size - 2 * num_kv_heads
    assert num_heads > 0 and num_heads % 2 == num_kv_heads % 2 == 0
    assert weight.shape == ((num_heads + 2 * num_kv_heads) * size, depth)
    assert cos.shape == sin.shape == (rows, 1, size) and slot_mapping.shape == (rows,)
    assert max(key_cache.numel(), rows * num_heads * size) <= _MAX_OFFSET
    assert bias is None or (bias.shape == weight.shape[:1] and bias.is_contiguous())
    norms = [] if query_norm is None or key_norm is None else [query_norm, key_norm]
    assert all(norm.shape == (size,) for norm in norms)
    packed = (x, weight, cos, sin, *norms)
    assert all(tensor.is_contiguous() for tensor in (*packed, slot_mapping))
    assert all(tensor.dtype == x.dtype for tensor in packed)
    check_caches(key_cache, value_cache, x.dtype, scales)
    query = x.new_empty(rows, num_heads, size)
    block_m, block_k = block
    tiles = triton.cdiv(rows, block_m) * (num_heads + 2 * num_kv_heads) // 2
    num_programs = min(multiprocessors(x.device), tiles)
    _project_qkv[(num_programs,)](
        TensorDescriptor.from_tensor(x, [block_m, block_k]),
        TensorDescriptor.from_tensor(weight, [2 * size, block_k]),
        x if bias is None else bias,
        cos,
        sin,
        query,
        key_cache,
        value_cache,
        slot_mapping,
        *(norms or (x, x)),
        scales,
        eps,
        rows,
        depth,
        num_programs,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=size,
        HAS_BIAS=bias is not None,
        HAS_NORMS=bool(norms),
        SCALED=scales is not None,
        BLOCK_M=block_m,
        BLOCK_K=block_k,
        GROUP=group,
        num_warps=num_warps,
        num_stages=stages,
    )
    return query
