"""``resample`` in Triton: every pixel is read where it lies, and only sums are kept."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.resample import SHARE_BITS

_ACROSS, _ALONG = 64, 8  # of a tile: pixels beside each other in memory, and not


@triton.jit
def _resample(
    pixels: tl.tensor,
    first: tl.tensor,
    shares: tl.tensor,
    color: tl.tensor,
    out: tl.tensor,
    lines: tl.tensor,
    length: tl.tensor,
    count: tl.tensor,
    taps: tl.tensor,
    pixels_channel: tl.tensor,
    pixels_line: tl.tensor,
    pixels_place: tl.tensor,
    out_channel: tl.tensor,
    out_line: tl.tensor,
    out_place: tl.tensor,
    HAS_COLOR: tl.constexpr,
    SHARE_BITS: tl.constexpr,
    LINES: tl.constexpr,
    PLACES: tl.constexpr,
):
    channel = tl.program_id(2)
    line = tl.program_id(0) * LINES + tl.arange(0, LINES)
    place = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    wanted = (line < lines)[:, None] & (place < count)[None, :]
    start = tl.load(first + place, mask=place < count, other=0)
    row = pixels + channel * pixels_channel + line[:, None] * pixels_line
    total = tl.full((LINES, PLACES), 1 << (SHARE_BITS - 1), tl.int32)
    for tap in range(taps):
        source = start + tap
        share = tl.load(shares + place * taps + tap, mask=place < count, other=0)
        inside = ((source >= 0) & (source < length))[None, :]
        values = tl.load(row + source[None, :] * pixels_place, mask=wanted & inside, other=0)
        values = values.to(tl.int32)
        if HAS_COLOR:
            values = tl.where(inside, values, tl.load(color + channel))
        total += values * share[None, :]
    resized = tl.minimum(tl.maximum(total >> SHARE_BITS, 0), 255).to(tl.uint8)
    target = out + channel * out_channel + line[:, None] * out_line + place[None, :] * out_place
    tl.store(target, resized, mask=wanted)


def resample(
    pixels: Tensor, first: Tensor, shares: Tensor, out: Tensor, color: Tensor | None = None
) -> Tensor:
    (channels, lines, length), (count, taps) = pixels.shape, shares.shape
    assert first.shape == (count,) and out.shape == (channels, lines, count)
    assert color is None or color.shape == (channels,)
    assert first.is_contiguous() and shares.is_contiguous()
    across = pixels.stride(2) == 1
    tile_lines, tile_places = (_ALONG, _ACROSS) if across else (_ACROSS, _ALONG)
    grid = (triton.cdiv(lines, tile_lines), triton.cdiv(count, tile_places), channels)
    _resample[grid](
        pixels,
        first,
        shares,
        shares if color is None else color,
        out,
        lines,
        length,
        count,
        taps,
        *pixels.stride(),
        *out.stride(),
        HAS_COLOR=color is not None,
        SHARE_BITS=SHARE_BITS,
        LINES=tile_lines,
        PLACES=tile_places,
    )
    return out
