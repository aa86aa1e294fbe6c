"""LLaVA-NeXT's and LLaVA-OneVision's image processing beside transformers' Pillow back ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from llava_next_case import their_image_processor, their_token_counts
from PIL import ExifTags, Image, ImageOps
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from vlmbatch_kernels.image_patches import normalize_patches

from vlmbatch.config import ImageLimits, ImageResolution
from vlmbatch.errors import CheckpointError, RowError
from vlmbatch.images.decode import decode_image
from vlmbatch.models.family import load_model_config
from vlmbatch.models.llava_next.canvas import tiles_of
from vlmbatch.models.llava_next.config import LlavaNextConfig
from vlmbatch.models.llava_next.image_processor import LlavaNextImageProcessor
from vlmbatch.models.llava_next.model import cut_out
from vlmbatch.models.llava_next.presets import CONFIGS, processor_config
from vlmbatch.models.llava_next.tiling import Size, best_fit, fit_within, scaled_down
from vlmbatch.models.shrink import Shrink
from vlmbatch.types import ImageRef, PixelImage

SIDES = st.integers(1, 9000)
NAMES = ("llava-v1.6-mistral-7b", "llava-onevision-qwen2-0.5b")
ODD_SIZES = [(1, 1), (1, 700), (900, 2), (336, 336), (641, 479), (333, 1777), (151, 150)]


def write(folder: Path, name: str, **changes: Any) -> LlavaNextConfig:
    fields = dict(CONFIGS[name])
    fields.setdefault("text_config", {})
    (folder / "config.json").write_text(json.dumps(fields))
    config = load_model_config(folder)
    assert isinstance(config, LlavaNextConfig)
    settings = processor_config(config) | changes
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return config


def load(folder: Path, name: str, **changes: Any) -> LlavaNextImageProcessor:
    return LlavaNextImageProcessor.load(folder, write(folder, name, **changes))


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp(request.param)
    write(made, request.param)
    return made


@pytest.fixture(scope="module")
def ours(folder: Path) -> LlavaNextImageProcessor:
    config = load_model_config(folder)
    assert isinstance(config, LlavaNextConfig)
    return LlavaNextImageProcessor.load(folder, config)


def their_tokens(folder: Path, size: tuple[int, int]) -> int:
    """As transformers counts them, which asks of the pixels only how large a tile is."""
    side = json.loads((folder / "config.json").read_bytes())["vision_config"]["image_size"]
    made = {
        "image_sizes": [list(size)],
        "pixel_values": np.empty((1, 1, 3, side, side)),
        "batch_num_images": [1],
    }
    return their_token_counts(folder, made)[0]


def photo(size: tuple[int, int]) -> Image.Image:
    values = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(values)


def normalized(ours: Any, image: PixelImage) -> torch.Tensor:
    """(tiles, 3, S, S), as transformers gives them."""
    pixels, side = torch.from_numpy(image.pixels), ours.tile
    tiles = cut_out(pixels, tiles_of(len(pixels), pixels.shape[1], side), side)
    scale, bias = torch.tensor(ours.normalization.scale), torch.tensor(ours.normalization.bias)
    # Whole pixels as patches: of every one, however the tower would cut them.
    rows = normalize_patches(tiles, scale, bias, 1, torch.float32)[..., :3]
    return rows.view(len(tiles), side, side, 3).permute(0, 3, 1, 2)


@given(SIDES, SIDES)
@example(1, 10_000)
@example(10_000, 1)
@example(335, 337)
def test_tokens_and_bounds(
    folder: Path, ours: LlavaNextImageProcessor, height: int, width: int
) -> None:
    grid = ours.grid(height, width)
    assert grid.num_tokens == their_tokens(folder, (height, width))
    assert grid.num_tokens <= ours.largest_grid.num_tokens
    assert grid.num_bytes <= ours.largest_grid.num_bytes


@given(st.tuples(SIDES, SIDES), st.lists(st.tuples(SIDES, SIDES), min_size=1, max_size=6))
@example((1, 9000), [(100, 100), (50, 50), (100, 50)])
def test_sizes_are_those_of_transformers(
    image: tuple[int, int], candidates: list[tuple[int, int]]
) -> None:
    canvas = best_fit(Size(*image), [Size(*pair) for pair in candidates])
    assert tuple(canvas) == select_best_resolution(image, candidates)
    outline = np.broadcast_to(np.uint8(0), (3, *image))
    fitted = get_patch_output_size(outline, canvas, ChannelDimension.FIRST)
    assert tuple(fit_within(Size(*image), canvas)) == fitted


@pytest.mark.parametrize("size", ODD_SIZES)
def test_tiles_are_those_of_transformers(
    folder: Path, ours: LlavaNextImageProcessor, size: tuple[int, int]
) -> None:
    image = photo(size)
    made = their_image_processor(folder)([image], return_tensors="pt")
    prepared = ours.process(image)
    assert prepared.grid == ours.grid(*size) and prepared.num_bytes == prepared.grid.num_bytes
    expected = made["pixel_values"][0]
    torch.testing.assert_close(normalized(ours, prepared), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", ODD_SIZES)
def test_images_of_a_row_of_several(
    folder: Path, ours: LlavaNextImageProcessor, size: tuple[int, int]
) -> None:
    """LLaVA-OneVision shows each as a square, padded in the colour of the mean."""
    images = [photo(size), photo((40, 50))]
    several = ours.at(None, 2)
    assert several.at(None, 2) is several
    given = [images] if ours.several else images
    made = their_image_processor(folder)(given, return_tensors="pt")
    counts = their_token_counts(folder, dict(made))
    for image, theirs, count in zip(images, made["pixel_values"], counts, strict=True):
        prepared = several.process(image)
        assert prepared.grid == several.grid(image.height, image.width)
        assert prepared.grid.num_tokens == count
        mine = normalized(ours, prepared)
        torch.testing.assert_close(mine, theirs[: len(mine)], atol=1e-5, rtol=0)
        assert not theirs[len(mine) :].any(), "what is over fills the batch up"


def test_a_strip_that_no_square_holds(ours: LlavaNextImageProcessor) -> None:
    """Where it is not alone, by its header as by its pixels; in tiles it is like any other."""
    assert ours.grid(1, 20_000).num_tokens > 0
    if ours.several is None:
        return
    said = "^20000 x 1 pixels: the model pads images to squares, and 20000 x 20000 is above"
    with pytest.raises(RowError, match=said):
        ours.several.grid(1, 20_000)
    with pytest.raises(RowError, match=said):
        ours.several.process(photo((1, 20_000)))


def test_an_image_alone_and_among_others_has_two_identities(
    ours: LlavaNextImageProcessor,
) -> None:
    square = photo((ours.tile, ours.tile))
    hashes = {ours.at(None, count).process(square).content_hash for count in (1, 2, 3)}
    assert len(hashes) == (1 if ours.several is None else 2)


@pytest.mark.parametrize("max_features", [None, 1, 700, 6561])
def test_maps_are_scaled_down_to_the_limit(max_features: int | None) -> None:
    for size in (Size(0, 54), Size(1, 162), Size(162, 162), Size(27, 54)):
        smaller = scaled_down(size, max_features)
        assert max_features is not None or smaller == size
        assert smaller == size or smaller.area <= (max_features or 0) < size.area


NEXT, ONEVISION = NAMES


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (NEXT, {"image_processor_type": "CLIPImageProcessor"}, "image_processor_type is 'CLIPIm"),
        (NEXT, {"do_resize": False}, "do_resize is False, expected true"),
        (NEXT, {"size": {"shortest_edge": 224}}, "expected the vision tower's 336 pixels"),
        (NEXT, {"size": {"longest_edge": 336}}, "size is {'longest_edge': 336}"),
        (NEXT, {"crop_size": {"height": 336, "width": 224}}, "crop_size is {'height': 336, 'wid"),
        (NEXT, {"crop_size": None}, "crop_size is None, expected the vision tower's 336"),
        (ONEVISION, {"crop_size": 336}, "crop_size is 336, expected the vision tower's 384"),
        (NEXT, {"image_std": [0.5, 0, 0.5]}, "image_std is [0.5, 0, 0.5], expected numbers above"),
        (NEXT, {"image_mean": [0.5, float("nan"), 0.5]}, "image_mean is [0.5, nan, 0.5]"),
        (NEXT, {"resample": 9}, "resample is 9"),
        (NEXT, {"image_grid_pinpoints": [[336, 672]]}, "expected the model's [[336, 672], [672,"),
        (NEXT, {"image_grid_pinpoints": []}, "expected a list of 1 to 256 sizes"),
        (NEXT, {"image_grid_pinpoints": [[336, 500]]}, "336 pixels, not [336, 500]"),
        (NEXT, {"image_grid_pinpoints": [[336, 336, 336]]}, "two integers, height and width"),
        (NEXT, {"image_grid_pinpoints": [[336, 336 * 10**6]]}, "at most 67108864 pixels, not"),
        (NEXT, {"image_grid_pinpoints": [[336, 336 * 199]]}, "at most 4096 patches along a side"),
    ],
)
def test_refused_settings(name: str, fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, name, **fields)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_the_fingerprint_follows_what_changes_pixels(name: str, tmp_path: Path) -> None:
    changes: list[dict[str, Any]] = [{}, {"resample": 2}, {"image_mean": 0.4}, {"image_std": 0.4}]
    changes += [{"rescale_factor": 1.0}, {"do_normalize": False}]
    made = [load(tmp_path, name, **change) for change in changes]
    assert len({each.fingerprint for each in made}) == len(changes)
    assert len({each.at(None, 2).fingerprint for each in made}) == len(changes)


def test_pinpoints_may_come_in_another_order(tmp_path: Path) -> None:
    ours = load(tmp_path, NEXT)
    other = [list(size) for size in reversed(ours.pinpoints)]
    assert load(tmp_path, NEXT, image_grid_pinpoints=other).pinpoints == ours.pinpoints[::-1]


@pytest.mark.parametrize("row_images", [1, 2])
def test_images_are_scaled_down_first(
    folder: Path, ours: LlavaNextImageProcessor, row_images: int
) -> None:
    config = load_model_config(folder)
    assert isinstance(config, LlavaNextConfig)
    limited = LlavaNextImageProcessor.load(folder, config, Shrink(longest_side=500))
    image = photo((400, 1000))
    smaller = image.resize((500, 200), Image.Resampling.BICUBIC)
    mine, plain = limited.at(None, row_images), ours.at(None, row_images)
    assert mine.grid(400, 1000) == plain.grid(200, 500) != ours.grid(400, 1000)
    np.testing.assert_array_equal(mine.process(image).pixels, plain.process(smaller).pixels)
    assert mine.fingerprint != plain.fingerprint
    own = limited.at(ImageResolution(max_pixels=100 * 100), row_images)
    assert own.grid(400, 400) == plain.grid(100, 100)
    with pytest.raises(RowError, match="min_pixels is 9"):
        limited.at(ImageResolution(min_pixels=9), row_images)


@pytest.mark.parametrize("name", ["grey.png", "palette.png", "palette.gif", "upright.jpg"])
def test_files_of_all_modes(
    folder: Path, ours: LlavaNextImageProcessor, name: str, tmp_path: Path
) -> None:
    path, image = tmp_path / name, photo((41, 130)).resize((390, 123))
    if name.startswith("palette"):
        image.quantize(50).save(path)
    elif name.startswith("grey"):
        image.convert("L").save(path)
    else:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        image.save(path, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(path))
    made = their_image_processor(folder)([upright], return_tensors="pt")
    prepared = ours.process(decode_image(ImageRef(str(path)), ImageLimits()))
    torch.testing.assert_close(
        normalized(ours, prepared), made["pixel_values"][0], atol=1e-5, rtol=0
    )
    assert prepared.grid == ours.grid(upright.height, upright.width)
