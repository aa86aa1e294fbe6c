"""Images as callers have them: the same picture, the same pixels, whatever holds it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from feature_shapes import takes
from PIL import Image

from vlmbatch import ImageFeatureData, ImagePixelData
from vlmbatch.api.images import HeldFeatures, HeldImage, ImageReader
from vlmbatch.config import ImageInputType, ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import decode_image
from vlmbatch.types import ImageRef

SHAPE = (4, 6)


def reader(input_type: ImageInputType = "pixel_values", max_pixels: int = 1000) -> ImageReader:
    return ImageReader(input_type, takes(SHAPE), ImageLimits(max_pixels=max_pixels))


def pixels_of(ref: ImageRef) -> np.ndarray[Any, Any]:
    image = ref.image if isinstance(ref, HeldImage) else decode_image(ref, ImageLimits())
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.fixture
def pixels() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


@pytest.fixture
def file(pixels: np.ndarray[Any, Any], tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    return path


def test_every_kind_gives_the_same_pixels(pixels: np.ndarray[Any, Any], file: Path) -> None:
    channels_first = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    for source in (
        file,
        str(file),
        file.read_bytes(),
        Image.open(file),
        Image.fromarray(pixels),
        pixels,
        pixels[None],
        torch.from_numpy(pixels),
        channels_first,
        channels_first[None],
        np.asfortranarray(pixels),
    ):
        assert np.array_equal(pixels_of(reader().read(ImagePixelData(source))), pixels)


def test_a_pillow_image_is_treated_as_its_file(tmp_path: Path) -> None:
    turned, palette = tmp_path / "turned.jpg", tmp_path / "palette.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4), "red").save(turned, exif=exif)
    clear = Image.new("RGBA", (8, 4), (0, 0, 255, 0))
    clear.putpixel((1, 1), (0, 255, 0, 255))
    clear.quantize(4).save(palette)
    for path in (turned, palette):
        ours = pixels_of(reader().read(ImagePixelData(Image.open(path))))
        assert np.array_equal(ours, pixels_of(ImageRef(str(path))))
    assert pixels_of(reader().read(ImagePixelData(Image.open(turned)))).shape == (8, 4, 3)


def test_what_is_in_memory_is_copied(pixels: np.ndarray[Any, Any], file: Path) -> None:
    before = pixels.copy()
    with Image.open(file) as opened:
        loaded = Image.fromarray(pixels)
        refs = [reader().read(ImagePixelData(each)) for each in (pixels, opened, loaded)]
        loaded.info["kept"] = 1
    pixels[:] = 0
    loaded.paste((0, 0, 0), (0, 0, 7, 5))
    opened.close()
    for ref in refs:
        assert np.array_equal(pixels_of(ref), before)
        assert ref.num_bytes == before.nbytes
    assert loaded.info == {"kept": 1}


def test_features_are_copied_and_keep_their_numbers() -> None:
    values = torch.randn(SHAPE)
    for given, dtype in (
        (values, "float32"),
        (values[None], "float32"),
        (values.numpy(), "float32"),
        (values.double().numpy(), "float32"),
        (values.half(), "float16"),
        (values.bfloat16().requires_grad_(), "uint16"),
    ):
        ref = reader("image_features").read(ImageFeatureData(given))
        assert isinstance(ref, HeldFeatures)
        held = ref.features.features
        assert held.shape == SHAPE and held.dtype == dtype
        tensor = torch.from_numpy(held)
        tensor = tensor.view(torch.bfloat16) if dtype == "uint16" else tensor
        assert torch.equal(tensor, values.to(tensor.dtype))
        assert ref.num_bytes == held.nbytes
    ref = reader("image_features").read(ImageFeatureData(values))
    before = values.clone()
    values.zero_()
    assert isinstance(ref, HeldFeatures) and np.array_equal(ref.features.features, before.numpy())


BAD: list[tuple[Any, ErrorCode, str]] = [
    ("", ErrorCode.IMAGE_INVALID, "empty"),
    ("a\0b", ErrorCode.IMAGE_INVALID, "NUL"),
    ("https://example.org/a.jpg", ErrorCode.IMAGE_INVALID, "is a URL"),
    ("data:image/png;base64,AA==", ErrorCode.IMAGE_INVALID, "is a URL"),
    (None, ErrorCode.IMAGE_INVALID, "NoneType"),
    (np.zeros((1, 3, 5, 7), np.float32), ErrorCode.IMAGE_INVALID, "array of float32"),
    (torch.zeros((1, 3, 5, 7)), ErrorCode.IMAGE_INVALID, "array of float32"),
    (np.zeros((5, 7), np.uint8), ErrorCode.IMAGE_INVALID, r"shape \(5, 7\), expected \(height"),
    (np.zeros((5, 7, 4), np.uint8), ErrorCode.IMAGE_INVALID, r"shape \(5, 7, 4\)"),
    (np.zeros((0, 7, 3), np.uint8), ErrorCode.IMAGE_INVALID, r"shape \(0, 7, 3\)"),
    (np.zeros((2, 5, 7, 3), np.uint8), ErrorCode.IMAGE_INVALID, r"shape \(2, 5, 7, 3\)"),
    (np.zeros((40, 40, 3), np.uint8), ErrorCode.IMAGE_TOO_LARGE, "1600 pixels, over .* 1000"),
    (Image.new("RGB", (40, 40)), ErrorCode.IMAGE_TOO_LARGE, "1600 pixels, over .* 1000"),
    (Image.new("RGB", (0, 5)), ErrorCode.IMAGE_UNREADABLE, "0 x 5 pixels"),
    (Image.new("F", (5, 5)), ErrorCode.IMAGE_FORMAT_UNSUPPORTED, "floating-point"),
]


@pytest.mark.parametrize(("source", "code", "message"), BAD)
def test_what_is_no_image(source: Any, code: ErrorCode, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        reader().read(ImagePixelData(source))
    assert caught.value.code is code


def test_a_truncated_pillow_image_names_its_file(samples: Path) -> None:
    image = Image.open(samples / "images/truncated.jpg")
    with pytest.raises(RowError, match=r"truncated\.jpg: corrupt or truncated") as caught:
        reader(max_pixels=10**6).read(ImagePixelData(image))
    assert caught.value.code is ErrorCode.IMAGE_UNREADABLE


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros(SHAPE, np.uint16), "array of uint16"),
        (np.zeros(SHAPE, np.int64), "int64"),
        (torch.zeros(5, 6), r"\(5, 6\), expected \(4, 6\)"),
        (torch.full(SHAPE, float("nan")), "NaN"),
        (b"bytes", "bytes"),
    ],
)
def test_what_are_no_features(features: Any, message: str) -> None:
    with pytest.raises(RowError, match=message) as caught:
        reader("image_features").read(ImageFeatureData(features))
    assert caught.value.code is ErrorCode.FEATURES_INVALID


def test_the_other_kind_is_refused() -> None:
    features, pixels = ImageFeatureData("a.npy"), ImagePixelData("a.png")
    with pytest.raises(RowError, match=r"'image_features', but .* 'pixel_values'"):
        reader().read(features)
    with pytest.raises(RowError, match=r"'pixel_values', but .* 'image_features'"):
        reader("image_features").read(pixels)


def test_paths_do_not_depend_on_the_working_directory_of_the_process_that_decodes(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    ref = reader().read(ImagePixelData(file.name))
    monkeypatch.chdir("/")
    assert pixels_of(ref).shape == (5, 7, 3)


def test_bytes_are_those_of_a_file() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), "blue").save(buffer, "BMP")
    ref = reader().read(ImagePixelData(buffer.getvalue()))
    assert pixels_of(ref).tolist() == [[[0, 0, 255]] * 3] * 2
