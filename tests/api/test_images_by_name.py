"""Images as vLLM takes them: ``{"image": ...}``, one or several, without a class around them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vlmbatch import LLM, ImageFeatureData, ImagePixelData
from vlmbatch.errors import ErrorCode

QUESTION = "USER: <image>\nWhat number is written? ASSISTANT:"
IMAGE = "images/1001000001.jpg"
ANSWER = "92"


def forms(path: Path) -> Iterator[tuple[str, Any]]:
    """One image as ``{"image": ...}`` may hold it."""
    picture = Image.open(path).convert("RGB")
    pixels = np.asarray(picture)
    yield "Pillow", picture
    yield "array", pixels
    yield "array of one", pixels[None]
    yield "tensor", torch.from_numpy(pixels.copy())
    yield "list", [picture]
    yield "tuple", (pixels,)
    yield "class", ImagePixelData(picture)
    yield "path", str(path)
    yield "bytes", path.read_bytes()


def test_images_by_name_as_vllm_takes_them(llm: LLM, samples: Path) -> None:
    found = dict(forms(samples / IMAGE))
    requests: list[Any] = [
        {"prompt": QUESTION, "multi_modal_data": {"image": form}} for form in found.values()
    ]
    texts = [output.outputs[0].text for output in llm.generate(requests, strict=True)]
    assert dict(zip(found, texts, strict=True)) == dict.fromkeys(found, ANSWER)


def test_several_images_by_name(llm: LLM, samples: Path) -> None:
    pixels = np.asarray(Image.open(samples / IMAGE).convert("RGB"))
    two = "USER: <image> <image>\nWhat? ASSISTANT:"
    requests: list[Any] = [
        {"prompt": two, "multi_modal_data": images}
        for images in (
            [ImagePixelData(pixels)] * 2,
            {"image": [pixels, Image.fromarray(pixels)]},
            {"image": np.stack([pixels, pixels])},
            {"image": torch.from_numpy(np.stack([pixels, pixels]))},
        )
    ]
    outputs = llm.generate(requests, strict=True)
    assert [output.num_image_tokens for output in outputs] == [200] * 4
    assert len({output.outputs[0].text for output in outputs}) == 1


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ({"image": None}, ErrorCode.IMAGE_TOKEN_MISMATCH),
        ({}, ErrorCode.IMAGE_TOKEN_MISMATCH),
        ({"video": []}, ErrorCode.PROMPT_INVALID),
        ({"image": 5}, ErrorCode.IMAGE_INVALID),
        ({"image": [[1]]}, ErrorCode.IMAGE_INVALID),
        ({"image": {"image_embeds": 5}}, ErrorCode.IMAGE_INVALID),
        ({"image": ImageFeatureData(np.zeros((100, 6), np.float32))}, ErrorCode.IMAGE_INVALID),
    ],
)
def test_bad_images_by_name(llm: LLM, data: Any, code: ErrorCode) -> None:
    (output,) = llm.generate({"prompt": QUESTION, "multi_modal_data": data})
    assert output.error is not None and output.error.code is code
