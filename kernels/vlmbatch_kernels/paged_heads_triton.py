"""What kernels that write to the paged pool have in common."""

from __future__ import annotations

import triton
import triton.language as tl

from vlmbatch_kernels.quantized_rows import E4M3_MAX

_MAX: tl.constexpr = tl.constexpr(E4M3_MAX)


@triton.jit
def scaled_heads(heads: tl.tensor, scale: tl.tensor, cache: tl.tensor):
    """``heads`` over ``scale``, as ``cache`` holds them: see ``write_heads``."""
    # Of powers of two the inverse is exact, and so is what is multiplied by it.
    scaled = heads.to(tl.float32) * tl.math.div_rn(1.0, scale)
    scaled = tl.clamp(scaled, -_MAX, _MAX, propagate_nan=tl.PropagateNan.ALL)
    return scaled.to(cache.dtype.element_ty)


@triton.jit
def in_float16(query: tl.tensor):
    """Queries (M, D) in float16 over a power of two, and that, so that none is too large or small.

    A GPU turns e4m3 into float16 in one step and into bfloat16 in four.
    """
    wide = query.to(tl.float32)
    largest = tl.max(tl.max(tl.abs(wide), axis=1), axis=0)
    # Powers of two by their bits: nothing is rounded, whatever the other queries are.
    exponent = (largest.to(tl.int32, bitcast=True) >> 23) & 255
    up = tl.minimum(268 - exponent, 254)  # to less than 2**15
    factor = (up << 23).to(tl.float32, bitcast=True)
    power = ((254 - up) << 23).to(tl.float32, bitcast=True)
    return (wide * factor).to(tl.float16), power
