"""--max-pixels, --min-pixels and --longest-side of Qwen-VL's image processing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image
from qwen_vl_checkpoints import KINDS, make_checkpoint, preprocessor
from qwen_vl_images import assert_equal_patches, loaded, processor, theirs_of
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from vlmbatch.config import ImageArguments, ImageResolution, PromptConfig
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.processor import Processor
from vlmbatch.models.shrink import Shrink

SIDES = st.integers(1, 5000)
PIXELS = st.integers(784, 10**7)
RUN = (3136, 12_845_056)


@given(SIDES, SIDES, PIXELS, PIXELS, st.none() | st.integers(28, 3000))
def test_sizes_are_those_of_smart_resize_with_these_limits(
    height: int, width: int, one: int, other: int, longest_side: int | None
) -> None:
    assume(max(height, width) <= 200 * min(height, width))
    least, most = sorted((one, other))
    ours = processor(28, RUN).within(ImageResolution(most, least, longest_side))
    shrunk = Shrink(longest_side=longest_side).size(height, width)
    assert ours.size(height, width) == smart_resize(*shrunk, 28, least, most)
    assert ours.grid(height, width).num_tokens <= ours.largest_grid.num_tokens


@given(SIDES, SIDES, st.none() | PIXELS, st.none() | PIXELS, st.integers(28, 3000))
def test_no_row_has_more_tokens_than_the_run(
    height: int, width: int, most: int | None, least: int | None, longest_side: int
) -> None:
    assume(max(height, width) <= 200 * min(height, width) and (least or 0) <= (most or 10**7))
    run = processor(28, (3136, 10**6)).within(ImageResolution(longest_side=longest_side))
    try:
        grid = run.at(ImageResolution(most, least)).grid(height, width)
    except RowError as error:
        assert error.code is ErrorCode.RESOLUTION_INVALID
        return
    assert grid.num_tokens <= run.largest_grid.num_tokens
    assert grid.num_bytes <= run.largest_grid.num_bytes


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(230, 41), (640, 480), (7, 9)])
def test_patches_are_those_of_transformers_with_these_limits(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    fields = preprocessor(kind)
    image = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8), "RGB"
    )
    ours = loaded(tmp_path, fields, kind).within(ImageResolution(40_000, 5000, 300))
    theirs = theirs_of(fields, min_pixels=5000, max_pixels=40_000)
    first = Shrink(longest_side=300).apply(image)
    assert_equal_patches(kind, ours, image, theirs(images=[first], return_tensors="pt"))


REFUSED: list[tuple[dict[str, int], str]] = [
    ({"max_pixels": 783}, "max_pixels must be at least 784, got 783: a token .* is 28 x 28"),
    ({"longest_side": 27}, "longest_side must be at least 28, got 27"),
    ({"max_pixels": 3135}, "min_pixels is 3136, above max_pixels, which is 3135: the least is"),
    ({"min_pixels": 12_845_057}, "above max_pixels, which is 12845056: the most is the model's"),
    ({"min_pixels": 2**27, "max_pixels": 2**28}, "at most 67108864, got 134217728"),
]


@pytest.mark.parametrize(("given", "said"), REFUSED)
def test_limits_that_contradict_the_model(given: dict[str, int], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        processor(28, RUN).within(ImageResolution(**given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        *REFUSED[:1],
        *REFUSED[2:3],
        ({"max_pixels": 12_845_057}, "max_pixels is 12845057, above the run's 12845056"),
        ({"min_pixels": 12_845_056}, r"may take up to 18\d\d\d tokens, above the 16384 of the run"),
    ],
)
def test_rows_that_contradict_the_run(given: dict[str, int], said: str) -> None:
    with pytest.raises(RowError, match=said) as caught:
        processor(28, RUN).at(ImageResolution(**given))
    assert caught.value.code is ErrorCode.RESOLUTION_INVALID


def test_a_row_keeps_the_runs_longest_side() -> None:
    run = processor(28, RUN).within(ImageResolution(longest_side=280))
    assert run.at(ImageResolution(min_pixels=784)).size(560, 560) == (280, 280)
    assert run.at(None) is run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    make_checkpoint("qwen3_vl", folder)
    fields = preprocessor("qwen3_vl")
    fields["size"] = {"shortest_edge": 65_536, "longest_edge": 16_777_216}  # as published
    (folder / "preprocessor_config.json").write_text(json.dumps(fields))
    return folder


def opened(folder: Path, max_model_len: int | None = None, **resolution: Any) -> Processor:
    arguments = ImageArguments(resolution=ImageResolution(**resolution))
    config = load_model_config(folder)
    return load_processor(folder, config, PromptConfig(), arguments, max_model_len)


def test_the_largest_image_is_that_of_run_and_context(folder: Path) -> None:
    """It decides on the buffers of workers, and on the step that memory is measured with."""

    def tokens(*context: int, **resolution: int) -> int:
        return opened(folder, *context, **resolution).largest_grid.num_tokens

    assert tokens() == 22 * 24  # a context of 512
    assert tokens(100) == 9 * 11
    assert tokens(max_pixels=102_400, min_pixels=1024) == 11 * 13  # the longest strip
    assert tokens(longest_side=160, min_pixels=1024) == 5 * 5


def test_an_image_of_more_tokens_than_the_context_is_not_even_decoded(folder: Path) -> None:
    images = opened(folder).images
    assert images is not None
    assert images.grid(512, 992).num_tokens == 16 * 31
    for at in (images.grid, lambda *size: images.process(Image.new("RGB", size[::-1]))):
        with pytest.raises(RowError) as caught:
            at(512, 1024)
        assert caught.value.code is ErrorCode.PROMPT_TOO_LONG
        assert "1024 x 512 pixels takes 512 tokens" in caught.value.message
        assert "exceeds the context of 512" in caught.value.message
    small = opened(folder, max_pixels=300_000).images
    assert small is not None and small.grid(512, 1024).num_tokens <= 292


def test_even_at_the_least_pixels_an_image_may_be_too_large(folder: Path) -> None:
    images = opened(folder, 64).images
    assert images is not None
    with pytest.raises(
        RowError,
        match=r"takes 64 tokens; .* context of 64: with 65536 pixels at the least, no image fits",
    ):
        images.grid(8, 8)


def test_the_context_changes_no_pixels(folder: Path) -> None:
    short, long = opened(folder, 100).images, opened(folder).images
    assert short is not None and long is not None
    assert short.fingerprint == long.fingerprint
    given = {"max_pixels": 10**6, "min_pixels": 1024, "longest_side": 640}
    others = [opened(folder, **{name: value}).images for name, value in given.items()]
    assert len({images.fingerprint for images in others if images} | {long.fingerprint}) == 4
