"""Prompts of LLaVA-NeXT and LLaVA-OneVision models: chat templates, placeholders, features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llava_next_checkpoints import IMAGE_TOKEN_ID, SPECIAL_TOKENS, make_checkpoint

from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.errors import ConfigError, ErrorCode, RowError
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.llava_next.processor import LlavaNextProcessor
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.types import FeatureImage, ImageGrid, ImageRef, PixelImage, Row

GRID = ImageGrid(2, 3, 17, 1)
# In the manner of those published with each.
TEMPLATES = {
    "mistral": (
        "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' }}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}"
        "{% endfor %}{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}"
        "{{ p['text'] }}{% endfor %}{{ ' [/INST]' }}{% endif %}{% endfor %}",
        "[INST] <image>\nWhat? [/INST]",
    ),
    "vicuna": (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] + ' ' }}"
        "{% else %}{{ m['role'].upper() + ': ' }}{% endif %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}"
        "{% endfor %}{% if m['role'] == 'user' %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ p['text'] + ' ' }}"
        "{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}"
        "{% endif %}",
        "USER: <image>\nWhat? ASSISTANT:",
    ),
    "qwen2": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + ' ' }}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}"
        "{% endfor %}{% for p in m['content'] | selectattr('type', 'equalto', 'video') %}"
        "{{ '<video>' }}{% endfor %}"
        "{% for p in m['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + p['text'] }}"
        "{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}",
        "<|im_start|>user <image>\nWhat?<|im_end|><|im_start|>assistant",
    ),
}


@pytest.fixture(scope="module", params=["next-mistral", "onevision"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava")
    make_checkpoint(request.param, folder)
    return folder


def load(folder: Path, prompt: PromptConfig | None = None, **arguments: Any) -> LlavaNextProcessor:
    config = load_model_config(folder)
    made = load_processor(folder, config, prompt or PromptConfig(), ImageArguments(**arguments))
    assert isinstance(made, LlavaNextProcessor)
    return made


def encoded(processor: LlavaNextProcessor, images: int = 0, **row: Any) -> EncodedPrompt:
    tokens = processor.tokenize(Row(0, "0", 1, "", images=(ImageRef("x"),) * images, **row))
    return processor.place(tokens, [GRID] * images)


def text_of(processor: LlavaNextProcessor, prompt: EncodedPrompt) -> str:
    """With one image token for every run of them."""
    ids = prompt.token_ids
    kept = [a for a, b in zip(ids, [*ids[1:], -1], strict=True) if a != b or a != IMAGE_TOKEN_ID]
    return "".join(
        SPECIAL_TOKENS[token]
        if token < len(SPECIAL_TOKENS)
        else processor.tokenizer.decode([token])
        for token in kept
    )


@pytest.mark.parametrize(("template", "expected"), TEMPLATES.values(), ids=TEMPLATES)
def test_chat_templates(folder: Path, template: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text(template)
    processor = load(folder, PromptConfig(chat=True, chat_template=tmp_path / "t.jinja"))
    plain = encoded(processor, 1, prompt="What?")
    assert text_of(processor, plain) == expected
    assert [(span.length, span.image) for span in plain.image_spans] == [(17, 0)]
    parts = [{"type": "image_url"}, {"type": "text", "text": "What?"}]
    asked = encoded(processor, 1, messages=[{"role": "user", "content": parts}])
    assert asked.token_ids == plain.token_ids


def test_several_images_anywhere(folder: Path) -> None:
    prompt = encoded(load(folder), 3, prompt="a<image>b<image><image>")
    assert [(span.start, span.length, span.image) for span in prompt.image_spans] == [
        (1, 17, 0),
        (19, 17, 1),
        (36, 17, 2),
    ]


@pytest.mark.parametrize(
    ("prompt", "images", "said"),
    [
        ("<image>", 0, "0 images: expected 0 image tokens in the prompt, found 1"),
        ("none", 1, "1 image: expected 17 or 1 image tokens in the prompt, found 0"),
        ("<image>" * 3, 2, "2 images: expected 34 (2 x 17) or 2 image tokens"),
    ],
)
def test_mismatches(folder: Path, prompt: str, images: int, said: str) -> None:
    with pytest.raises(RowError) as caught:
        encoded(load(folder), images, prompt=prompt)
    assert caught.value.code is ErrorCode.IMAGE_TOKEN_MISMATCH
    assert said in caught.value.message


def test_a_video_is_refused(folder: Path) -> None:
    parts = [{"type": "video", "video": "a.mp4"}, {"type": "text", "text": "What?"}]
    with pytest.raises(RowError, match="part 1 is of type 'video'") as caught:
        encoded(load(folder), messages=[{"role": "user", "content": parts}])
    assert caught.value.code is ErrorCode.PROMPT_INVALID


@pytest.mark.parametrize(
    "given", [{"image_feature_size": 576}, {"image_input_shape": (1, 3, 336, 336)}]
)
def test_arguments_of_a_fixed_size_are_refused(folder: Path, given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="varies with the size of the image"):
        load(folder, **given)


def test_the_largest_image_is_one_that_the_model_takes(folder: Path) -> None:
    processor = load(folder)
    largest = processor.largest_image()
    assert isinstance(largest, PixelImage)
    assert largest.grid == processor.largest_grid
    assert largest.num_bytes <= processor.largest_grid.num_bytes


def test_features_have_a_grid(folder: Path) -> None:
    processor = load(folder, image_input_type="image_features", disable_image_processor=True)
    grid = processor.feature_grid((6, 48))
    assert grid == ImageGrid(1, 6, 6, 4 * 6 * 48)
    assert processor.feature_shape(grid) == (6, 48)
    largest = processor.largest_image()
    assert isinstance(largest, FeatureImage)
    assert largest.features.shape == (512, 48) and largest.grid == processor.largest_grid
    for shape, said in {
        (1, 6, 48): r"\(1, 6, 48\), expected \(tokens, 48\)",
        (6, 47): "expected",
        (0, 48): "expected",
        (513, 48): "above the limit of 512 tokens",
    }.items():
        with pytest.raises(ValueError, match=said):
            processor.feature_grid(shape)
