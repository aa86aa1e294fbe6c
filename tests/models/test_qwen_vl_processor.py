"""Prompts of Qwen-VL models: placeholders, chat templates, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import jinja2
import pytest
from qwen_vl_checkpoints import IMAGE_TOKEN_ID, SPECIAL_TOKENS, TEMPLATE, make_checkpoint

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import CheckpointError, ConfigError, ErrorCode, RowError
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.models.qwen_vl.processor import QwenVLProcessor
from vlmbatch.types import FeatureImage, ImageGrid, ImageRef, Row

PAD = "<|vision_start|><|image_pad|><|vision_end|>"
GRID = ImageGrid(2, 3, 6, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen")
    make_checkpoint("qwen2_5_vl", folder)
    return folder


def load(folder: Path, prompt: PromptConfig | None = None, **arguments: Any) -> QwenVLProcessor:
    config = load_model_config(folder)
    made = load_processor(folder, config, prompt or PromptConfig(), ImageArguments(**arguments))
    assert isinstance(made, QwenVLProcessor)
    return made


def encoded(processor: QwenVLProcessor, images: int = 0, **row: Any) -> EncodedPrompt:
    tokens = processor.tokenize(Row(0, "0", 1, "", images=(ImageRef("x"),) * images, **row))
    return processor.place(tokens, [GRID] * images)


def text_of(processor: QwenVLProcessor, prompt: EncodedPrompt) -> str:
    """With one image token for every run of them."""
    ids = prompt.token_ids
    kept = [a for a, b in zip(ids, [*ids[1:], -1], strict=True) if a != b or a != IMAGE_TOKEN_ID]
    special = [token if token < len(SPECIAL_TOKENS) else None for token in kept]
    parts = (
        SPECIAL_TOKENS[token] if token is not None else processor.tokenizer.decode([kept[index]])
        for index, token in enumerate(special)
    )
    return "".join(parts)


@pytest.mark.parametrize("placeholder", ["<image>", PAD])
def test_placeholders_of_both_kinds(folder: Path, placeholder: str) -> None:
    processor = load(folder)
    prompt = encoded(processor, 2, prompt=f"a {placeholder}{placeholder} b")
    assert text_of(processor, prompt) == f"a {PAD}{PAD} b"
    assert [span.length for span in prompt.image_spans] == [6, 6]
    assert processor.image_token == "<image>"


QUESTION = {"type": "text", "text": "What is it?"}
IMAGE = {"type": "image"}
MESSAGES: dict[str, tuple[list[dict[str, Any]], int, list[dict[str, Any]]]] = {
    "parts": (
        [{"role": "user", "content": [IMAGE, QUESTION, {"type": "image_url"}]}],
        2,
        [{"role": "user", "content": [IMAGE, QUESTION, IMAGE]}],
    ),
    "text only": ([{"role": "user", "content": "Hi"}], 0, [{"role": "user", "content": "Hi"}]),
    "images that nothing stands for": (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}],
        1,
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [IMAGE, {"type": "text", "text": "What?"}]},
        ],
    ),
    "placeholders in the text": (
        [{"role": "user", "content": "This <image> or <image>?"}],
        2,
        [{"role": "user", "content": f"This {PAD} or {PAD}?"}],
    ),
    "the model's own tokens": (
        [{"role": "user", "content": [{"type": "text", "text": f"This {PAD}?"}]}],
        1,
        [{"role": "user", "content": f"This {PAD}?"}],
    ),
    "turns": (
        [
            {"role": "user", "content": [IMAGE, QUESTION]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": [IMAGE, {"type": "text", "text": "And this?"}]},
        ],
        2,
        [
            {"role": "user", "content": [IMAGE, QUESTION]},
            {"role": "assistant", "content": "A cat."},
            {"role": "user", "content": [IMAGE, {"type": "text", "text": "And this?"}]},
        ],
    ),
}


@pytest.mark.parametrize(("messages", "images", "plain"), MESSAGES.values(), ids=MESSAGES)
def test_chat_templates(
    folder: Path, messages: list[dict[str, Any]], images: int, plain: list[dict[str, Any]]
) -> None:
    processor = load(folder)
    prompt = encoded(processor, images, messages=messages)
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    expected = environment.from_string(TEMPLATE).render(messages=plain, add_generation_prompt=True)
    assert text_of(processor, prompt) == expected


def test_prompts_in_the_chat_template(folder: Path) -> None:
    processor = load(folder, PromptConfig(chat=True))
    prompt = encoded(processor, 1, prompt="<image> What?")
    expected = f"<|im_start|>user\n{PAD} What?<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(processor, prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "images", "said"),
    [
        ("<image>", 0, "0 images: expected 0 image tokens in the prompt, found 1"),
        ("none", 1, "1 image: expected 6 or 1 image tokens in the prompt, found 0"),
        ("<image>" * 3, 2, "2 images: expected 12 (2 x 6) or 2 image tokens"),
        ("<image>" * 6, 1, "image 1: expected its 6 image tokens in one run, found 1"),
    ],
)
def test_mismatches(folder: Path, prompt: str, images: int, said: str) -> None:
    with pytest.raises(RowError) as caught:
        encoded(load(folder), images, prompt=prompt)
    assert caught.value.code is ErrorCode.IMAGE_TOKEN_MISMATCH
    assert said in caught.value.message


def test_all_of_an_images_tokens_written_out(folder: Path) -> None:
    whole = f"<|vision_start|>{'<|image_pad|>' * 6}<|vision_end|>"
    strict = load(folder, strict_image_tokens=True)
    written = encoded(strict, 1, prompt=f"{whole} what?")
    short = encoded(load(folder), 1, prompt="<image> what?")
    assert written.token_ids == short.token_ids
    with pytest.raises(RowError, match="found 1"):
        encoded(strict, 1, prompt="<image> what?")


@pytest.mark.parametrize("name", ["vision_start_token_id", "vision_end_token_id"])
def test_a_tokenizer_that_lacks_the_tokens(folder: Path, name: str, tmp_path: Path) -> None:
    changed = shutil.copytree(folder, tmp_path / "model")
    fields = json.loads((changed / "config.json").read_bytes())
    (changed / "config.json").write_text(json.dumps(fields | {name: 90_000}))
    with pytest.raises(CheckpointError, match=rf"no token of the model's {name} 90000"):
        load(changed)


@pytest.mark.parametrize(
    "given", [{"image_feature_size": 400}, {"image_input_shape": (1, 3, 80, 80)}]
)
def test_arguments_of_a_fixed_size_are_refused(folder: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="varies with the size of the image"):
        load(folder, **given)


def test_features_have_a_grid(folder: Path) -> None:
    processor = load(folder, image_input_type="image_features", disable_image_processor=True)
    grid = processor.feature_grid((2, 3, 48))
    assert grid == ImageGrid(2, 3, 6, 4 * 6 * 48)
    assert processor.feature_shape(grid) == (2, 3, 48)
    largest = processor.largest_image()
    assert isinstance(largest, FeatureImage)
    assert largest.features.shape == (512, 48) and largest.grid == processor.largest_grid
    for shape, said in {
        (6, 48): r"\(6, 48\), expected \(height, width, 48\)",
        (2, 3, 47): "expected",
        (0, 3, 48): "expected",
        (2, 257, 48): "514 tokens, above the limit of 512",
    }.items():
        with pytest.raises(ValueError, match=said):
            processor.feature_grid(shape)
