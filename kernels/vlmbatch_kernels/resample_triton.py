"""``resample`` in Triton: one launch a pass, for all images; pixels are read where they lie."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from vlmbatch_kernels.resample import SHARE_BITS, Lines, has_words

_OUTER, _INNER = 8, 64  # of a tile: its pixels beside each other in memory are the inner ones
_FIELDS = 16  # of an image, in the table; 128 bytes keep each row aligned


@triton.jit
def _resample_tile(
    row: tl.tensor,
    weights: tl.tensor,
    line: tl.tensor,
    place: tl.tensor,
    SHARE_BITS: tl.constexpr,
    PIXELS: tl.constexpr,
):
    """``line`` and ``place`` are the two sides of a tile; PIXELS are read at a time."""
    lines = tl.load(row + 3).to(tl.int32)
    length = tl.load(row + 4).to(tl.int32)
    count = tl.load(row + 5).to(tl.int32)
    taps = tl.load(row + 7).to(tl.int32)
    channel = tl.program_id(1)
    shade = ((tl.load(row + 8) >> (8 * channel)) & 255).to(tl.int32)
    wanted = (line < lines) & (place < count)
    start = tl.load(row) + channel * tl.load(row + 9)
    at = line * tl.load(row + 10).to(tl.int32)
    shares = weights + tl.load(row + 6) + place
    source = tl.load(shares, mask=place < count, other=0)
    total = tl.full(wanted.shape, 1 << (SHARE_BITS - 1), tl.int32)
    if PIXELS == 4:
        words = start.to(tl.pointer_type(tl.int32))
        at = at // 4 + source // 4
        for _ in range(taps // 4):
            inside = (source >= 0) & (source < length)
            four = tl.load(words + at, mask=wanted & inside, other=shade * 0x01010101)
            for pixel in tl.static_range(4):
                shares += count
                share = tl.load(shares, mask=place < count, other=0)
                total += ((four >> (8 * pixel)) & 255) * share
            source += 4
            at += 1
    else:
        pixels = start.to(tl.pointer_type(tl.uint8))
        step = tl.load(row + 11).to(tl.int32)
        at = at + source * step
        for _ in range(taps):
            inside = (source >= 0) & (source < length)
            one = tl.load(pixels + at, mask=wanted & inside, other=shade)
            shares += count
            share = tl.load(shares, mask=place < count, other=0)
            total += one.to(tl.int32) * share
            source += 1
            at += step

    resized = tl.minimum(tl.maximum(total >> SHARE_BITS, 0), 255).to(tl.uint8)
    out = tl.load(row + 1).to(tl.pointer_type(tl.uint8)) + channel * tl.load(row + 12)
    out += line * tl.load(row + 13) + place * tl.load(row + 14)
    tl.store(out, resized, mask=wanted)


@triton.jit
def _resample(
    table: tl.tensor,
    weights: tl.tensor,
    FIELDS: tl.constexpr,
    SHARE_BITS: tl.constexpr,
    OUTER: tl.constexpr,
    INNER: tl.constexpr,
):
    tile = tl.program_id(0)
    row = table + tl.program_id(2) * FIELDS
    way = tl.load(row + 2)
    lines = tl.load(row + 3).to(tl.int32)
    count = tl.load(row + 5).to(tl.int32)
    num_outer, num_inner = tl.where(way > 0, lines, count), tl.where(way > 0, count, lines)
    inner_tiles = tl.cdiv(num_inner, INNER)
    if tile >= inner_tiles * tl.cdiv(num_outer, OUTER):
        return
    outer = (tile // inner_tiles * OUTER + tl.arange(0, OUTER))[:, None]
    inner = (tile % inner_tiles * INNER + tl.arange(0, INNER))[None, :]
    if way == 0:
        _resample_tile(row, weights, inner, outer, SHARE_BITS, 1)
    elif way == 1:
        _resample_tile(row, weights, outer, inner, SHARE_BITS, 1)
    else:
        _resample_tile(row, weights, outer, inner, SHARE_BITS, 4)


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
    assert num_lines * pixels.stride(1) + length * pixels.stride(2) < 2**31
    assert not lines.by_words or (has_words(pixels) and lines.taps % 4 == 0)
    red, green, blue = lines.color
    return [
        *(pixels.data_ptr(), out.data_ptr(), _along(lines) + int(lines.by_words)),
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
