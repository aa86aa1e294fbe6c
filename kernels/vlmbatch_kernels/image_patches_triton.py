"""``normalize_patches`` in Triton: bytes in, patches out, in one pass over both."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.image_patches import patch_row_size


@triton.jit(do_not_specialize=["height", "width", "across"])
def _normalize_patches(
    pixels: tl.tensor,
    scale: tl.tensor,
    bias: tl.tensor,
    out: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    across: tl.tensor,
    PATCH: tl.constexpr,
    ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program for the patches beside each other: where a number stands is the same in all."""
    down = tl.program_id(0)
    image = tl.program_id(1).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < 3 * PATCH * PATCH
    source = pixels + (image * height + down * PATCH) * width * 3
    source += at // (3 * PATCH) * width * 3 + at % (3 * PATCH)
    target = out + (image * tl.num_programs(0) + down) * across * ROW + at
    gain = tl.load(scale + at % 3, mask=inside, other=0.0)
    shift = tl.load(bias + at % 3, mask=inside, other=0.0)
    for patch in tl.range(0, across):
        value = tl.load(source + patch * PATCH * 3, mask=inside, other=0).to(tl.float32)
        tl.store(target + patch * ROW, value * gain + shift, mask=at < ROW)


def normalize_patches(
    pixels: Tensor, scale: Tensor, bias: Tensor, patch_size: int, dtype: torch.dtype
) -> Tensor:
    assert pixels.ndim == 4 and pixels.shape[3] == 3, f"pixels of shape {tuple(pixels.shape)}"
    assert pixels.dtype == torch.uint8, f"pixels of {pixels.dtype}"
    assert scale.shape == bias.shape == (3,)
    assert scale.dtype == bias.dtype == torch.float32
    assert all(tensor.is_contiguous() for tensor in (pixels, scale, bias))
    images, height, width, _ = pixels.shape
    down, across = height // patch_size, width // patch_size
    row = patch_row_size(patch_size)
    out = torch.empty(images, down * across, row, dtype=dtype, device=pixels.device)
    _normalize_patches[(down, images)](
        pixels,
        scale,
        bias,
        out,
        height,
        width,
        across,
        PATCH=patch_size,
        ROW=row,
        BLOCK=triton.next_power_of_2(row),
        num_warps=4,
    )
    return out
