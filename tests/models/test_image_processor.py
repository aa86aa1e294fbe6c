from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from vlmbatch.config import ImageLimits
from vlmbatch.errors import CheckpointError, ErrorCode, RowError
from vlmbatch.images.decode import decode_image
from vlmbatch.models.llava.image_processor import LlavaImageProcessor
from vlmbatch.types import ImageRef

PHOTOS = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
CLIP_336 = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "resample": 3,
}
SIGLIP = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 224, "width": 224}}
CLASSES = {
    "CLIPImageProcessor": CLIPImageProcessorPil,
    "LlavaImageProcessor": LlavaImageProcessorPil,
    "SiglipImageProcessor": SiglipImageProcessorPil,
}


MODEL: Any = SimpleNamespace(  # of a ``LlavaConfig``, what counts an image's tokens
    vision=SimpleNamespace(image_size=336, patch_size=14), image_feature_size=576
)


def load(folder: Path, config: dict[str, Any]) -> LlavaImageProcessor:
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return LlavaImageProcessor.load(folder, MODEL)


def random_image(width: int, height: int) -> Image.Image:
    generator = np.random.default_rng(width * 10_007 + height)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def assert_equal(
    folder: Path,
    config: dict[str, Any],
    image: Image.Image,
    reference: Image.Image | None = None,
) -> None:
    ours = load(folder, config)
    kind = config.get("image_processor_type", "LlavaImageProcessor")
    parameters = {name: config[name] for name in config if name != "image_processor_type"}
    theirs = CLASSES[kind](**parameters)(reference or image, return_tensors="np")["pixel_values"][0]
    pixels = ours.process(image).pixels
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*ours.output_size, 3)
    scale, bias = (np.asarray(each, np.float32) for each in (ours.scale, ours.bias))
    normalized = (pixels * scale + bias).transpose(2, 0, 1)
    np.testing.assert_allclose(normalized, theirs, atol=1e-5, rtol=1e-6)


CONFIGS: dict[str, dict[str, Any]] = {
    "clip": CLIP_336,
    "clip, defaults": {"image_processor_type": "CLIPImageProcessor"},
    "clip, numbers": {"image_processor_type": "CLIPImageProcessor", "size": 112, "crop_size": 112},
    "clip, small resize, large crop": CLIP_336 | {"size": {"shortest_edge": 100}},
    "clip, odd pad": CLIP_336 | {"size": 33, "crop_size": {"height": 48, "width": 81}},
    "clip, no resize": CLIP_336 | {"do_resize": False},
    "clip, bilinear": CLIP_336 | {"resample": 2},
    "clip, fixed size": CLIP_336 | {"size": {"height": 60, "width": 90}, "do_center_crop": False},
    "clip, no normalization": CLIP_336 | {"do_normalize": False},
    "clip, no rescaling": CLIP_336 | {"do_rescale": False},
    "clip, own factor": CLIP_336 | {"rescale_factor": 0.01, "image_mean": [0.1, 0.2, 0.3]},
    "llava": CLIP_336 | {"image_processor_type": "LlavaImageProcessor"},
    "llava, padded": CLIP_336 | {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
    "llava, padded, no crop": {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
        "do_center_crop": False,
    },
    "siglip": SIGLIP,
    "siglip, 384": SIGLIP | {"size": {"height": 384, "width": 384}, "resample": 1},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_photographs_equal_hugging_face(name: str, tmp_path: Path) -> None:
    assert len(PHOTOS) == 3
    for path in PHOTOS:
        with Image.open(path) as image:
            assert_equal(tmp_path, CONFIGS[name], image.convert("RGB"))


SIZES = [(1, 1), (1, 200), (200, 1), (333, 77), (336, 336), (337, 335), (2, 3), (1001, 999)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_odd_sizes_equal_hugging_face(size: tuple[int, int], tmp_path: Path) -> None:
    for config in (CLIP_336, SIGLIP, CONFIGS["clip, odd pad"], CONFIGS["llava, padded"]):
        assert_equal(tmp_path, config, random_image(*size))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 90),
    st.booleans(),
)
def test_any_sizes_equal_hugging_face(
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    edge: int,
    crop_height: int,
    crop_width: int,
    resize: bool,
) -> None:
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": edge},
        "crop_size": {"height": crop_height, "width": crop_width},
        "do_resize": resize,
    }
    assert_equal(tmp_path_factory.getbasetemp(), config, random_image(width, height))


def encode(mode: str, photo: Image.Image) -> bytes:
    """A file of the photograph in another mode."""
    file = BytesIO()
    if mode == "rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        photo.save(file, "JPEG", exif=exif)
    elif mode == "I;16":
        sixteen_bit = np.asarray(photo.convert("L")).astype(np.uint16) * 257
        Image.fromarray(sixteen_bit).save(file, "PNG")
    else:
        photo.convert(mode).save(file, "TIFF" if mode == "CMYK" else "PNG")
    return file.getvalue()


@pytest.mark.parametrize("mode", ["P", "L", "LA", "CMYK", "I;16", "rotated"])
def test_decoded_files_equal_hugging_face(mode: str, tmp_path: Path) -> None:
    with Image.open(PHOTOS[0]) as opened:
        photo = opened.convert("RGB").resize((200, 151))
    data = encode(mode, photo)
    with Image.open(BytesIO(data)) as opened:
        # Pillow would clamp 16-bit grey to white, so the reference is the 8-bit original.
        upright = photo.convert("L") if mode == "I;16" else ImageOps.exif_transpose(opened)
        reference = upright.convert("RGB")
    ours = decode_image(ImageRef(data=data), ImageLimits())
    for config in (CLIP_336, SIGLIP):
        assert_equal(tmp_path, config, ours, reference)


@pytest.mark.parametrize("size", [(1, 10_000), (10_000, 1), (1, 1_000_000)], ids=str)
def test_extreme_aspect_ratio_in_bounded_memory(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = load(tmp_path, CLIP_336).process(Image.new("RGB", size, (10, 20, 30))).pixels
    assert pixels.shape == (336, 336, 3)
    assert (pixels == (10, 20, 30)).all()


@pytest.mark.parametrize("size", [(3, 800), (800, 3)], ids=str)
def test_resizing_only_the_middle_is_near_the_whole(
    size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    width, height = size
    waves = np.add.outer(np.sin(np.arange(height) / 2), np.sin(np.arange(width) / 2))
    image = Image.fromarray((128 + 60 * waves).astype(np.uint8)).convert("RGB")
    processor = load(tmp_path, CLIP_336)
    whole = processor.process(image).pixels.astype(int)
    monkeypatch.setattr("vlmbatch.models.llava.image_processor._MAX_RESIZED_PIXELS", 1000)
    middle = processor.process(image).pixels
    assert np.ptp(whole) > 50
    assert np.abs(whole - middle).max() <= 1


def test_padding_an_endless_line_is_refused(tmp_path: Path) -> None:
    processor = load(tmp_path, CONFIGS["llava, padded"])
    with pytest.raises(RowError, match="1 x 1000000 pixels") as caught:
        processor.process(Image.new("RGB", (1, 1_000_000)))
    assert caught.value.code == ErrorCode.IMAGE_TOO_LARGE


def test_content_hash(tmp_path: Path) -> None:
    processor = load(tmp_path, CLIP_336)
    photo = random_image(64, 48)
    assert processor.process(photo).content_hash == processor.process(photo.copy()).content_hash
    changed = photo.copy()
    changed.putpixel((32, 24), (0, 0, 0))
    assert processor.process(changed).content_hash != processor.process(photo).content_hash
    # The same bytes in another shape, and the same pixels under another normalization.
    flat = Image.new("RGB", (30, 100), (7, 7, 7))
    wide = load(
        tmp_path, CLIP_336 | {"do_resize": False, "crop_size": {"height": 30, "width": 100}}
    )
    tall = load(
        tmp_path, CLIP_336 | {"do_resize": False, "crop_size": {"height": 100, "width": 30}}
    )
    first = wide.process(flat.transpose(Image.Transpose.ROTATE_90))
    second = tall.process(flat)
    assert first.pixels.tobytes() == second.pixels.tobytes()
    assert first.content_hash != second.content_hash
    other = load(tmp_path, CLIP_336 | {"image_mean": [0.5, 0.5, 0.5]})
    assert other.fingerprint != processor.fingerprint
    assert other.process(photo).content_hash != processor.process(photo).content_hash


def test_fingerprint_is_of_the_parameters_alone(tmp_path: Path) -> None:
    written_out = CLIP_336 | {
        "do_resize": True,
        "do_pad": False,
        "processor_class": "LlavaProcessor",
    }
    fingerprint = load(tmp_path, CLIP_336).fingerprint
    assert load(tmp_path, written_out).fingerprint == fingerprint
    assert load(tmp_path, CLIP_336 | {"resample": 2}).fingerprint != fingerprint


def test_processor_config_comes_first(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": SIGLIP}))
    assert load(tmp_path, CLIP_336).output_size == (224, 224)
    (tmp_path / "processor_config.json").write_text(json.dumps({"patch_size": 14}))
    assert LlavaImageProcessor.load(tmp_path, MODEL).output_size == (336, 336)


@pytest.mark.parametrize(
    "kind",
    ["CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPImageProcessor", None],
)
def test_published_type_names(kind: str | None, tmp_path: Path) -> None:
    config = {name: CLIP_336[name] for name in CLIP_336 if name != "image_processor_type"}
    name = "image_processor_type"
    expected = load(tmp_path, CLIP_336).fingerprint
    assert load(tmp_path, config | {name: kind}).fingerprint == expected
    legacy = config | {"feature_extractor_type": "CLIPFeatureExtractor"}
    assert load(tmp_path, legacy).fingerprint == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "'PixtralImageProcessor'"),
        ({"do_pad": True}, "do_pad is True"),
        ({"size": {"shortest_edge": 336, "longest_edge": 500}}, "longest_edge"),
        ({"size": {"height": 336}}, "size is {'height': 336}"),
        ({"size": -1}, "size is -1"),
        ({"size": {"shortest_edge": 336.5}}, "336.5"),
        ({"crop_size": "336"}, "crop_size is '336'"),
        ({"do_center_crop": False}, "do_center_crop is False"),
        ({"resample": 9}, "resample is 9"),
        ({"resample": "bicubic"}, "resample is 'bicubic'"),
        ({"image_mean": [0.5, 0.5]}, "image_mean is [0.5, 0.5]"),
        ({"image_std": [0.5, 0.0, 0.5]}, "image_std"),
        ({"rescale_factor": 0}, "rescale_factor is 0"),
        ({"do_resize": "yes"}, "do_resize is 'yes'"),
    ],
)
def test_refusals_name_field_and_value(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, CLIP_336 | change)
    assert said in str(caught.value)
    assert "preprocessor_config.json" in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json: no such file"):
        LlavaImageProcessor.load(tmp_path, MODEL)
