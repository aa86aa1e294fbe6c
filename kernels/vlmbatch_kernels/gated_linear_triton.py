"""``silu_gated_linear`` in Triton: a matrix product that multiplies gate and up before it writes.

The products themselves are never written to memory. A tile of the output takes as many columns of
the gate as of the up projection; both stand beside each other in one tile of the product.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from vlmbatch_kernels.activation import silu_and_mul
from vlmbatch_kernels.linear import linear
from vlmbatch_kernels.multiprocessors import multiprocessors
from vlmbatch_kernels.persistent import ALIGNMENT, GROUP, MIN_ROWS, STAGES, is_hopper, place

_BLOCK_M, _BLOCK_N, _BLOCK_K = 128, 128, 64  # rows and columns of the output, depth of a load


# Numbers of rows differ from step to step: none is to ask for another compilation.
@triton.jit(do_not_specialize=["rows", "num_programs"])
def _silu_gated_linear(
    x: tl.tensor_descriptor,
    weight: tl.tensor_descriptor,
    out: tl.tensor_descriptor,
    rows: tl.tensor,
    size: tl.tensor,
    depth: tl.tensor,
    num_programs: tl.tensor,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    num_m = tl.cdiv(rows, BLOCK_M)
    num_n = tl.cdiv(size, BLOCK_N)
    num_k = tl.cdiv(depth, BLOCK_K)
    # A count of its own for what is written: the loop's runs ahead.
    written = tl.program_id(0) - num_programs
    for tile in tl.range(tl.program_id(0), num_m * num_n, num_programs, flatten=True):
        m, n = place(tile, num_m, num_n, GROUP)
        products = tl.zeros((BLOCK_M, 2 * BLOCK_N), tl.float32)
        for k in range(num_k):
            left = x.load([m * BLOCK_M, k * BLOCK_K])
            right = weight.load([0, n * BLOCK_N, k * BLOCK_K]).reshape(2 * BLOCK_N, BLOCK_K)
            products = tl.dot(left, right.T, products)
        written += num_programs
        m, n = place(written, num_m, num_n, GROUP)
        pairs = products.reshape(BLOCK_M, 2, BLOCK_N).permute(0, 2, 1).to(out.dtype)
        gate, up = tl.split(pairs)
        wide = gate.to(tl.float32)
        gated = wide * tl.sigmoid(wide) * up.to(tl.float32)
        out.store([m * BLOCK_M, n * BLOCK_N], gated.to(out.dtype))


def silu_gated_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    sizes = x.shape[1], weight.shape[0] // 2
    is_aligned = x.element_size() == 2 and not any(size % ALIGNMENT for size in sizes)
    if bias is None and len(x) >= MIN_ROWS and is_aligned and is_hopper(x.device):
        return fused(x, weight)
    return silu_and_mul(linear(x, weight, bias))


def fused(
    x: Tensor,
    weight: Tensor,
    block: tuple[int, int, int] = (_BLOCK_M, _BLOCK_N, _BLOCK_K),
    group: int = GROUP,
    stages: int = STAGES,
    num_warps: int = 8,
) -> Tensor:
    """The kernel itself, for any number of rows."""
    (rows, depth), size = x.shape, weight.shape[0] // 2
    assert weight.shape == (2 * size, depth), f"x {tuple(x.shape)}, weight {tuple(weight.shape)}"
    assert x.dtype == weight.dtype, f"x of {x.dtype}, weight of {weight.dtype}"
    assert x.is_contiguous() and weight.is_contiguous()
    out = x.new_empty(rows, size)
    block_m, block_n, block_k = block
    tiles = triton.cdiv(rows, block_m) * triton.cdiv(size, block_n)
    num_programs = min(multiprocessors(x.device), tiles)
    _silu_gated_linear[(num_programs,)](
        TensorDescriptor.from_tensor(x, [block_m, block_k]),
        TensorDescriptor(weight, [2, size, depth], [size * depth, depth, 1], [2, block_n, block_k]),
        TensorDescriptor.from_tensor(out, [block_m, block_n]),
        rows,
        size,
        depth,
        num_programs,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=block_k,
        GROUP=group,
        num_warps=num_warps,
        num_stages=stages,
    )
    return out
