"""A GPU decodes only where there is one and what it takes; its engine leaves memory for that."""

from __future__ import annotations

import importlib.util
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import vlmbatch.engine.loading
from vlmbatch.config import EngineConfig, ImageArguments, ImageLoading, SessionConfig
from vlmbatch.errors import ConfigError
from vlmbatch.images.loading.loader import FeatureLoader
from vlmbatch.nvjpeg.decoder import NvJpegDecoder
from vlmbatch.session.gpu_decoder import check_gpu_decoder, gpu_decoder
from vlmbatch.session.load import load_engine
from vlmbatch.session.open import ModelInputs, _open_decoders, open_images, open_model

MODEL = Path(__file__).parents[2] / "samples/tiny-llava"
GPU = SessionConfig(str(MODEL), image_loading=ImageLoading(decoder="gpu", workers=1))


@pytest.fixture(scope="module")
def inputs() -> ModelInputs:
    return open_model(GPU)


def pretend(monkeypatch: pytest.MonkeyPatch, *, cuda: bool, torchvision: bool) -> None:
    find_spec = importlib.util.find_spec
    found = object() if torchvision else None
    monkeypatch.setattr(
        "vlmbatch.session.gpu_decoder.find_spec",
        lambda name: found if name == "torchvision" else find_spec(name),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)


@pytest.mark.parametrize(
    ("cuda", "torchvision", "said", "unsaid"),
    [
        (False, True, "needs a CUDA device", "torchvision"),
        (True, False, r"needs torchvision \(pip install 'vlmbatch\[cuda\]'\)", "CUDA"),
        (False, False, r"needs a CUDA device .* and torchvision", "nothing"),
    ],
)
def test_what_is_missing_is_named(
    inputs: ModelInputs,
    monkeypatch: pytest.MonkeyPatch,
    cuda: bool,
    torchvision: bool,
    said: str,
    unsaid: str,
) -> None:
    pretend(monkeypatch, cuda=cuda, torchvision=torchvision)
    for refuse in (lambda: open_images(GPU, inputs, 1), lambda: load_engine(GPU, inputs)):
        with pytest.raises(ConfigError, match=said) as caught:
            refuse()
        assert unsaid not in str(caught.value)


def test_a_cpu_is_no_gpu(inputs: ModelInputs, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, cuda=True, torchvision=True)
    with pytest.raises(ConfigError, match="image_decoder gpu needs a GPU, and device is cpu"):
        check_gpu_decoder(replace(GPU, engine=EngineConfig(device="cpu")), inputs.processor)
    check_gpu_decoder(GPU, inputs.processor)


def test_without_workers_there_is_nobody_for_the_rest() -> None:
    with pytest.raises(ConfigError, match="image_decoder gpu and image_workers 0 contradict"):
        ImageLoading(decoder="gpu", workers=0)


def test_features_are_not_decoded() -> None:
    config = replace(GPU, image_arguments=ImageArguments("image_features"))
    assert isinstance(_open_decoders(config, open_model(config), 1, None), FeatureLoader)


@pytest.mark.parametrize(("decoder", "reserved"), [("gpu", 5 * 2**29), ("exact", 0)])
def test_the_engine_leaves_memory_for_it(
    inputs: ModelInputs, monkeypatch: pytest.MonkeyPatch, decoder: Any, reserved: int
) -> None:
    pretend(monkeypatch, cuda=True, torchvision=True)
    left = []

    class BuiltError(Exception):
        pass

    def build(*_: object, reserved_bytes: int, **__: object) -> None:
        left.append(reserved_bytes)
        raise BuiltError

    monkeypatch.setattr(vlmbatch.engine.loading, "build_engine", build)
    with pytest.raises(BuiltError):
        load_engine(replace(GPU, image_loading=ImageLoading(decoder=decoder)), inputs)
    assert left == [reserved]


def test_the_process_is_sent_how_to_decode_on_which_device() -> None:
    made = pickle.loads(pickle.dumps(gpu_decoder("cuda:3")))
    assert (made.func, made.args) == (NvJpegDecoder, ("cuda:3",))
