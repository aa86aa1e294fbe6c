"""Which prompt tokens take the features of which image."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.types import ImageSpan


def place_images(
    token_ids: Sequence[int], image_token_id: int, sizes: Sequence[int], strict: bool = False
) -> tuple[list[int], tuple[ImageSpan, ...]]:
    """Give image i ``sizes[i]`` image tokens and say where they stand, images in order.

    A prompt has all of them, in one run or several, or one token an image, which is repeated; where
    images stand apart, some may have all and others one. ``strict`` takes only the first.

    Raises:
        RowError: ``image_token_mismatch``, any other number of image tokens.
    """
    positions = [index for index, token_id in enumerate(token_ids) if token_id == image_token_id]
    if len(positions) == sum(sizes):
        return list(token_ids), tuple(_spans(positions, sizes))
    runs = _runs(positions)
    if not strict and len(positions) == len(sizes):
        runs = [(position, 1) for position in positions]
    elif strict or not _fit(runs, sizes):
        raise _mismatch(len(positions), sizes, strict)
    expanded: list[int] = []
    spans = []
    end = 0
    for image, ((start, length), size) in enumerate(zip(runs, sizes, strict=True)):
        expanded += token_ids[end:start]
        spans.append(ImageSpan(len(expanded), size, image))
        expanded += [image_token_id] * size
        end = start + length
    expanded += token_ids[end:]
    return expanded, tuple(spans)


def _runs(positions: Sequence[int]) -> list[tuple[int, int]]:
    """Start and length of each run of consecutive positions."""
    if not positions:
        return []
    breaks = [i for i, (left, right) in enumerate(pairwise(positions), 1) if right != left + 1]
    bounds = pairwise([0, *breaks, len(positions)])
    return [(positions[first], last - first) for first, last in bounds]


def _fit(runs: Sequence[tuple[int, int]], sizes: Sequence[int]) -> bool:
    return len(runs) == len(sizes) and all(
        length in (1, size) for (_, length), size in zip(runs, sizes, strict=True)
    )


def _spans(positions: Sequence[int], sizes: Sequence[int]) -> list[ImageSpan]:
    """Spans over a full set of image tokens; one image's may be interrupted by text."""
    spans = []
    first = 0
    for image, size in enumerate(sizes):
        offset = 0
        for start, length in _runs(positions[first : first + size]):
            spans.append(ImageSpan(start, length, image, offset))
            offset += length
        first += size
    return spans


def _mismatch(found: int, sizes: Sequence[int], strict: bool) -> RowError:
    total = sum(sizes)
    images = f"{len(sizes)} image{'s' * (len(sizes) != 1)}"
    each = f" ({len(sizes)} x {sizes[0]})" if len(sizes) > 1 and len(set(sizes)) == 1 else ""
    short = f" or {len(sizes)}" if sizes and not strict else ""
    place = "it belongs" if len(sizes) == 1 else "each of them belongs"
    advice = f": write <image> where {place}" if sizes and not strict and not found else ""
    return RowError(
        ErrorCode.IMAGE_TOKEN_MISMATCH,
        f"{images}: expected {total}{each}{short} image tokens in the prompt, found {found}"
        f"{advice}",
    )


def placeholder_mismatch(found: int, num_images: int) -> RowError:
    """``image_token_mismatch`` of a prompt that has one placeholder an image."""
    return RowError(
        ErrorCode.IMAGE_TOKEN_MISMATCH,
        f"{num_images} image{'s' * (num_images != 1)}: expected {num_images} <image> in the "
        f"prompt, one for each, found {found}",
    )
