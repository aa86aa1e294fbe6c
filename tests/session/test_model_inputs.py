"""Tokenizer and image processor: the model's own, another's, or none at all."""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qwen_vl_checkpoints import make_checkpoint

import vlmbatch.session.open
from vlmbatch.config import ImageArguments, ImageResolution, SessionConfig
from vlmbatch.errors import CheckpointError, ConfigError, RowError
from vlmbatch.images.loading.loader import FeatureLoader
from vlmbatch.images.url_fetcher import UrlFetcher
from vlmbatch.session.image_grids import HeaderGrids
from vlmbatch.session.open import _open_decoders, open_model
from vlmbatch.types import ImageRef

MODEL = Path(__file__).parents[2] / "samples/tiny-llava"
PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The sample model without its weights."""
    kept = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(MODEL, tmp_path / "model", ignore=kept))


def config(model: Path, **changes: Any) -> SessionConfig:
    return replace(SessionConfig(str(model)), **changes)


def move(model: Path, folder: Path, *names: str) -> Path:
    folder.mkdir()
    for name in names:
        if (model / name).exists():
            (model / name).rename(folder / name)
    return folder


def test_a_tokenizer_of_another_folder(model: Path, tmp_path: Path) -> None:
    own = open_model(config(model)).processor
    other = move(model, tmp_path / "other", "tokenizer.json", "tokenizer_config.json")
    with pytest.raises(CheckpointError):
        open_model(config(model))
    assert open_model(config(model, tokenizer=str(other))).processor.settings == own.settings


def test_an_image_processor_of_another_folder(model: Path, tmp_path: Path) -> None:
    own = open_model(config(model)).processor
    other = move(model, tmp_path / "other", *PROCESSOR_FILES)
    with pytest.raises(CheckpointError):
        open_model(config(model))
    images = ImageArguments(image_processor=str(other))
    processor = open_model(config(model, image_arguments=images)).processor
    assert processor.settings == own.settings

    path = other / "preprocessor_config.json"
    fields = json.loads(path.read_text())
    fields["image_mean"] = [0.5, 0.5, 0.5]
    path.write_text(json.dumps(fields))
    changed = open_model(config(model, image_arguments=images)).processor
    assert changed.settings != own.settings


@pytest.mark.parametrize("disabled", [False, True])
def test_features_need_no_image_processor(model: Path, tmp_path: Path, disabled: bool) -> None:
    move(model, tmp_path / "other", *PROCESSOR_FILES)
    images = ImageArguments("image_features", disable_image_processor=disabled)
    inputs = open_model(config(model, image_arguments=images))
    assert inputs.processor.images is None
    assert inputs.processor.largest_grid.num_bytes == 100 * 128 * 4
    assert isinstance(_open_decoders(config(model), inputs, 3, None), FeatureLoader)


@pytest.mark.parametrize(
    ("images", "asked"),
    [
        (ImageArguments(image_processor="a/b", image_processor_revision="v2"), ("a/b", "v2")),
        (ImageArguments(image_processor="a/b"), ("a/b", None)),
        (ImageArguments(image_processor_revision="v2"), ("MODEL", "v2")),
    ],
)
def test_which_revision_is_asked_for(
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: ImageArguments,
    asked: tuple[str, str | None],
) -> None:
    calls: list[tuple[str, str | None, bool]] = []

    def resolve(name: str, revision: str | None = None, *, weights: bool = True, **_: Any) -> Path:
        calls.append((name.replace(str(model), "MODEL"), revision, weights))
        return model

    monkeypatch.setattr(vlmbatch.session.open, "resolve_model", resolve)
    open_model(config(model, revision="v1", tokenizer="t/t", image_arguments=images))
    assert calls == [("MODEL", "v1", True), ("t/t", None, False), (*asked, False)]


def test_what_needs_an_image_processor_cannot_do_without() -> None:
    with pytest.raises(ConfigError, match="image_input_type pixel_values contradict"):
        ImageArguments(disable_image_processor=True)
    with pytest.raises(ConfigError, match="image_processor a/b and disable_image_processor"):
        ImageArguments("image_features", image_processor="a/b", disable_image_processor=True)


def test_headers_say_how_many_tokens_an_image_takes(model: Path) -> None:
    probe = HeaderGrids(config(model), open_model(config(model))).of
    grid = probe(ImageRef(str(MODEL.parent / "images/1001000001.jpg")))
    assert grid is not None and grid.num_tokens == 100
    with pytest.raises(RowError):
        probe(ImageRef("none.png"))


def test_of_a_url_the_resolution_is_looked_at_before_it_is_fetched(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, fetched = (MODEL.parent / "images/1001000001.jpg").read_bytes(), []

    def fetch_start(fetcher: UrlFetcher, url: str, num_bytes: int) -> bytes:
        fetched.append(url)
        return picture[:num_bytes]

    monkeypatch.setattr(UrlFetcher, "fetch_start", fetch_start)
    probe = HeaderGrids(config(model), open_model(config(model))).of
    with pytest.raises(RowError, match="always take 100 tokens"):
        probe(ImageRef(url="https://example.org/a.png", resolution=ImageResolution(5000)))
    for _ in range(2):  # which rows share
        grid = probe(ImageRef(url="https://example.org/a.png"))
        assert grid is not None and grid.num_tokens == 100
    assert fetched == ["https://example.org/a.png"]


def test_a_resolution_beside_features_is_said_to_be_of_no_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may come from a configuration file that suits the images."""
    make_checkpoint("qwen3_vl", tmp_path)
    resolution = ImageResolution(max_pixels=8192, longest_side=640)
    images = ImageArguments("image_features", resolution=resolution)
    with caplog.at_level(logging.INFO, "vlmbatch"):
        open_model(config(tmp_path, image_arguments=images))
    assert [message.partition(":")[0] for message in caplog.messages] == [
        "max_pixels, longest_side"
    ]
