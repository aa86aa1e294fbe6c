"""Qwen-VL's image processing beside transformers' Pillow back end."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoding import encoded
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from qwen_vl_checkpoints import KINDS, preprocessor
from qwen_vl_images import assert_equal_patches, loaded, processor, theirs_of
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
    smart_resize,
)
from worker_processes import PHOTOS

from vlmbatch.config import ImageLimits
from vlmbatch.errors import CheckpointError, ErrorCode, RowError
from vlmbatch.images.decode import decode_image
from vlmbatch.types import ImageRef

SIDES = st.integers(1, 9000)
LIMITS = st.tuples(st.integers(1, 10**6), st.integers(0, 10**7)).map(lambda x: (x[0], sum(x)))


@given(SIDES, SIDES, st.sampled_from((28, 32)), LIMITS)
@example(200, 1, 28, (3136, 12845056))
@example(1, 201, 28, (3136, 12845056))
@example(13, 13, 28, (1, 28 * 28))
@example(8000, 40, 32, (65536, 65536))
def test_sizes_are_those_of_smart_resize(
    height: int, width: int, factor: int, limits: tuple[int, int]
) -> None:
    ours = processor(factor, limits)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(RowError) as caught:
            ours.grid(height, width)
        assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
        assert f"{width} x {height} pixels" in caught.value.message
        return
    theirs = smart_resize(height, width, factor, *limits)
    assert ours.size(height, width) == theirs
    grid, largest = ours.grid(height, width), ours.largest_grid
    assert (grid.height * factor, grid.width * factor) == theirs
    assert grid.num_tokens == grid.height * grid.width > 0
    assert grid.num_bytes == 3 * theirs[0] * theirs[1]
    assert grid.num_tokens <= largest.num_tokens and grid.num_bytes <= largest.num_bytes


def test_a_strip_is_refused_with_both_numbers() -> None:
    with pytest.raises(RowError, match=r"^2010 x 10 pixels: one side is 201 times .* up to 200 "):
        processor(28, (3136, 12845056)).grid(10, 2010)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 200), (230, 41), (60, 201), (640, 480), (333, 777), (28, 28), (2000, 11)]
)
def test_patches_are_those_of_transformers(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    fields = preprocessor(kind)
    values = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(values)
    made = theirs_of(fields)(images=[image], return_tensors="pt")
    assert_equal_patches(kind, loaded(tmp_path, fields, kind), image, made)


def odd_files() -> dict[str, bytes]:
    """Images of all modes that transformers sees as we do: it does not know of white behind alpha,
    nor of 16 bits."""
    photo = Image.open(PHOTOS / "coffee.jpg").resize((151, 97))
    turned = Image.Exif()
    turned[0x0112] = 6
    return {
        "grey": encoded(photo.convert("L"), "PNG"),
        "bilevel": encoded(photo.convert("1"), "PNG"),
        "palette": encoded(photo.convert("P", palette=Image.Palette.ADAPTIVE), "PNG"),
        "palette of a GIF": encoded(photo.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        "CMYK": encoded(photo.convert("CMYK"), "JPEG"),
        "turned": encoded(photo, "JPEG", exif=turned),
        "opaque": encoded(photo.convert("RGBA"), "PNG"),
        "strip": encoded(photo.resize((199, 1)), "PNG"),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", odd_files())
def test_files_of_all_modes(kind: str, name: str, tmp_path: Path) -> None:
    data = odd_files()[name]
    theirs = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    made = theirs_of(preprocessor(kind))(images=[theirs], return_tensors="pt")
    mine = decode_image(ImageRef(data=data), ImageLimits())
    assert_equal_patches(kind, loaded(tmp_path, preprocessor(kind), kind), mine, made)


PUBLISHED = {
    "Qwen2.5-VL": ({"min_pixels": 3136, "max_pixels": 12845056}, (3136, 12845056)),
    "Qwen3-VL": ({"size": {"longest_edge": 16777216, "shortest_edge": 65536}}, (65536, 16777216)),
    "both": ({"size": {"min_pixels": 9, "max_pixels": 99}, "max_pixels": 88}, (9, 88)),
    "defaults": ({}, (3136, 1003520)),
}


@pytest.mark.parametrize(("fields", "limits"), PUBLISHED.values(), ids=PUBLISHED)
def test_pixel_limits(fields: dict[str, Any], limits: tuple[int, int], tmp_path: Path) -> None:
    ours = loaded(tmp_path, fields)
    assert (ours.min_pixels, ours.max_pixels) == limits
    if "min_pixels" not in fields.get("size", {}):  # which transformers takes from calls alone
        theirs = Qwen2VLImageProcessorPil(**fields)
        assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == limits


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is 'CLIPImage"),
        ({"do_resize": False}, "do_resize is False, expected true"),
        ({"patch_size": 16}, "patch_size is 16, expected the vision tower's 14"),
        ({"merge_size": 1}, "merge_size is 1, expected the vision tower's 2"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is [0.5, 0, 0.5], expected numbers above 0"),
        ({"resample": 9}, "resample is 9"),
        ({"size": {"height": 224, "width": 224}}, "size is {'height': 224, 'width': 224}"),
        ({"min_pixels": 100, "max_pixels": 99}, "not 100 and 99"),
        ({"min_pixels": 0}, "min_pixels is 0"),
        ({"min_pixels": 10**12, "max_pixels": 10**13}, "at most 67108864 pixels at the least, not"),
    ],
)
def test_refused_settings(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        loaded(tmp_path, fields)
    assert said in str(caught.value)


def test_the_fingerprint_follows_what_changes_pixels(tmp_path: Path) -> None:
    base = {"min_pixels": 3136, "max_pixels": 12845056}
    changes: list[dict[str, Any]] = [{}, {"max_pixels": 9999}, {"min_pixels": 1}, {"resample": 2}]
    changes += [{"image_mean": 0.5}, {"rescale_factor": 1.0}]
    assert len({loaded(tmp_path, base | change).fingerprint for change in changes}) == len(changes)
