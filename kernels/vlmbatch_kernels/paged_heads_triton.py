"""What kernels that write to the paged pool have in common."""

from __future__ import annotations

import triton
import triton.language as tl

from vlmbatch_kernels.quantized_rows import E4M3_MAX

_MAX: tl.constexpr = tl.constexpr(E4M3_MAX)


@triton.jit
def scaled_heads(heads: tl.tensor, scale: tl.tensor, cache: tl.tensor):
    """``heads`` over ``scale``, as ``cache`` holds them: see ``write_heads``."""
    scaled = heads.to(tl.float32) / scale
    scaled = tl.clamp(scaled, -_MAX, _MAX, propagate_nan=tl.PropagateNan.ALL)
    return scaled.to(cache.dtype.element_ty)
