"""Dense layers: through another library than torch asks where that is not the fastest.

On the CPU, oneDNN, which torch itself asks only for convolutions there. Measured on an AMD EPYC
with AVX-512 (one thread, float32, 128 to 768 features): MKL stays at 95 GFLOP/s for any number of
rows, oneDNN is at 95 for 32 rows and at 120 to 230 for more. For fewer rows its dispatch costs more
than it gains. On Intel processors the two are alike.

On a part of a Hopper GPU, ``persistent_triton``.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from vlmbatch_kernels.dispatch import has_triton
from vlmbatch_kernels.stream_sms import current_limit

_MIN_ROWS = 32
_MIN_PERSISTENT_ROWS = 1024  # tiles enough for programs that stay
_HAS_BOTH = (
    torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # what torch.compile emits; not public
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``x @ weight.T + bias``.

    ``x``: (..., in_features); ``weight``: (out_features, in_features); ``bias``: (out_features,).
    """
    if x.is_cuda:
        num_sms = current_limit()
        if num_sms is not None and bias is None and _fits_persistent(x, weight):
            from vlmbatch_kernels import persistent_triton

            return persistent_triton.linear(x, weight, num_sms)
        return F.linear(x, weight, bias)
    many_rows = x.numel() >= _MIN_ROWS * x.shape[-1]
    if not (_HAS_BOTH and many_rows and x.dtype == torch.float32):
        return F.linear(x, weight, bias)
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out


def _fits_persistent(x: Tensor, weight: Tensor) -> bool:
    """Whether the tensor memory accelerator can take them, in tiles that were measured."""
    return (
        x.ndim == 2
        and x.shape[0] >= _MIN_PERSISTENT_ROWS
        and x.dtype in (torch.bfloat16, torch.float16)
        and x.shape[1] % 64 == weight.shape[0] % 8 == 0
        and x.is_contiguous()
        and has_triton()
        and _is_hopper(x.device)
    )


@cache
def _is_hopper(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)
