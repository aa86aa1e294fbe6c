"""``resample`` in Triton: one launch a pass, for all images; pixels are read where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.resample import SHARE_BITS, Lines

_OUTER, _INNER = 8, 64  # of a tile: its pixels beside each other in memory are the inner ones
_FIELDS = 16  # of an image, in the table; 128 bytes keep each row aligned


@triton.jit
def _resample(
    table: tl.tensor,
    weights: tl.tensor,
    FIELDS: tl.constexpr,
    SHARE_BITS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    tile, channel = tl.program_id(0), tl.program_id(1)
    row = table + tl.program_id(2) * FIELDS
    along = tl.load(row + 2) != 0
    lines = tl.load(row + 3).to(tl.int32)
    length = tl.load(row + 4).to(tl.int32)
    count = tl.load(row + 5).to(tl.int32)
    num_outer, num_inner = tl.where(along, lines, count), tl.where(along, count, lines)
    inner_tiles = tl.cdiv(num_inner, INNER)
    if tile >= inner_tiles * tl.cdiv(num_outer, OUTER):
        return
    outer = (tile // inner_tiles * OUTER + tl.arange(0, OUTER))[:, None]
    inner = (tile % inner_tiles * INNER + tl.arange(0, INNER))[None, :]
    wanted = (outer < num_outer) & (inner < num_inner)
    line, place = tl.where(along, outer, inner), tl.where(along, inner, outer)

    first = weights + tl.load(row + 6)
    taps = tl.load(row + 7).to(tl.int32)
    shade = ((tl.load(row + 8) >> (8 * channel)) & 255).to(tl.int32)
    pixels = tl.load(row).to(tl.pointer_type(tl.uint8)) + channel * tl.load(row + 9)
    step = tl.load(row + 11)
    source = tl.load(first + place, mask=wanted, other=0)
    pixels += line * tl.load(row + 10) + source * step
    shares = first + count + place
    total = tl.full((OUTER, INNER), 1 << (SHARE_BITS - 1), tl.int32)
    for _ in range(taps):
        share = tl.load(shares, mask=wanted, other=0)
        inside = (source >= 0) & (source < length)
        values = tl.load(pixels, mask=wanted & inside, other=0).to(tl.int32)
        total += tl.where(inside, values, shade) * share
        source += 1
        pixels += step
        shares += count

    resized = tl.minimum(tl.maximum(total >> SHARE_BITS, 0), 255).to(tl.uint8)
    out = tl.load(row + 1).to(tl.pointer_type(tl.uint8)) + channel * tl.load(row + 12)
    tl.store(out + line * tl.load(row + 13) + place * tl.load(row + 14), resized, mask=wanted)


def resample(weights: Tensor, passes: Sequence[Sequence[Lines]]) -> None:
    rows = [_row(each) for lines in passes for each in lines]
    # One copy for all passes, so that nothing comes between their launches. Torch lends pinned
    # memory to nobody else before the copies that read it are done.
    table = torch.tensor(rows, dtype=torch.int64, pin_memory=weights.is_cuda)
    table = table.to(weights.device, non_blocking=True)
    for lines in passes:
        of_pass, table = table[: len(lines)], table[len(lines) :]
        grid = (max(map(_num_tiles, lines)), 3, len(lines))
        _resample[grid](
            of_pass,
            weights,
            FIELDS=_FIELDS,
            SHARE_BITS=SHARE_BITS,
            OUTER=_OUTER,
            INNER=_INNER,
        )


def _row(lines: Lines) -> list[int]:
    pixels, out = lines.pixels, lines.out
    channels, num_lines, length = pixels.shape
    count = out.shape[2]
    assert channels == 3 and out.shape == (channels, num_lines, count)
    assert pixels.dtype == out.dtype == torch.uint8
    red, green, blue = lines.color
    return [
        *(pixels.data_ptr(), out.data_ptr(), int(_along(lines))),
        *(num_lines, length, count, lines.weights, lines.taps),
        *(red | green << 8 | blue << 16, *pixels.stride(), *out.stride(), 0),
    ]


def _along(lines: Lines) -> bool:
    """Whether the pixels of a line, and not those of a column, lie beside each other."""
    return lines.pixels.stride(2) <= lines.pixels.stride(1)


def _num_tiles(lines: Lines) -> int:
    num_lines, count = lines.out.shape[1:]
    outer, inner = (num_lines, count) if _along(lines) else (count, num_lines)
    return -(-outer // _OUTER) * -(-inner // _INNER)
