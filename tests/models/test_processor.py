from __future__ import annotations

import json
import pickle
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import AddedToken, decoders, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import AutoProcessor

from vlmbatch.config import ImageArguments, PromptConfig, SamplingParams
from vlmbatch.errors import CheckpointError, ConfigError, ErrorCode, RowError, VlmbatchError
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.llava.image_processor import LlavaImageProcessor
from vlmbatch.models.llava.processor import LlavaProcessor
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.types import ImageRef, ImageSpan, Row

ROOT = Path(__file__).parents[2]
TINY_LLAVA = ROOT / "samples" / "tiny-llava"
PHOTO = ROOT / "tests" / "photos" / "chelsea.jpg"
IMAGE_ID = 3
SIZE = 16  # image tokens: 4 x 4 patches
TEMPLATE = """\
{% for message in messages %}{{ message['role'] | upper }}: \
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}<image>
{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}\
{{ part['text'] }} {% endfor %}{% endfor %}\
{% if add_generation_prompt %}ASSISTANT:{% endif %}"""


def make_checkpoint(folder: Path, template: str = TEMPLATE, byte_level: bool = True) -> Path:
    """What a LLaVA checkpoint has, but for weights."""
    backend = Backend(BPE(unk_token=None if byte_level else "<unk>"))
    if byte_level:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        backend.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["USER: What colour is the circle? ASSISTANT: It is red."], trainer)
    backend.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    backend.save(str(folder / "tokenizer.json"))
    files: dict[str, Any] = {
        "tokenizer_config.json": {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "image_token": "<image>",
        },
        "config.json": {
            "model_type": "llava",
            "image_token_index": IMAGE_ID,
            "text_config": {"model_type": "llama", "max_position_embeddings": 64},
            "vision_config": {"model_type": "clip_vision_model", "image_size": 56}
            | {"patch_size": 14},
        },
        "preprocessor_config.json": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 56},
            "crop_size": {"height": 56, "width": 56},
        },
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "patch_size": 14,
            "num_additional_image_tokens": 1,
            "vision_feature_select_strategy": "default",
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path)


def load(
    folder: Path,
    prompt: PromptConfig | None = None,
    images: ImageArguments | None = None,
    max_model_len: int | None = None,
) -> LlavaProcessor:
    loaded = load_processor(
        folder,
        load_model_config(folder),
        prompt or PromptConfig(),
        images or ImageArguments(),
        max_model_len,
    )
    assert isinstance(loaded, LlavaProcessor)
    return loaded


def row(
    prompt: str | None = None, messages: list[dict[str, Any]] | None = None, num_images: int = 0
) -> Row:
    return Row(
        index=4,
        id="4",
        line=5,
        file="m.jsonl",
        prompt=prompt,
        messages=messages,
        images=(ImageRef("a.jpg"),) * num_images,
        sampling=SamplingParams(),
    )


def encode(processor: LlavaProcessor, row: Row) -> EncodedPrompt:
    """As a run does it: grids come with the images."""
    grids = [processor.images.grid(48, 64) for _ in row.images]
    return processor.place(processor.tokenize(row), grids)


def photo() -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB")


PROMPTS = [
    ("USER: <image>\nWhat colour is the circle? ASSISTANT:", 1),
    ("<image>", 1),
    ("<image><image>naïve 🙂 <image>", 3),
    ("What is this? <image> And this? <image>  ", 2),
    ("no image here", 0),
    (" ", 0),
]


def assert_equal(folder: Path, prompt: str, num_images: int) -> None:
    theirs = AutoProcessor.from_pretrained(folder)
    images = [photo()] * num_images
    expected = theirs(text=prompt, images=images or None, return_tensors="np")
    ours = load(folder, max_model_len=None)
    encoded = encode(ours, row(prompt, num_images=num_images))
    assert encoded.token_ids == expected["input_ids"][0].tolist()
    size = ours.config.image_feature_size
    assert [span.length for span in encoded.image_spans] == [size] * num_images
    for index, image in enumerate(images):
        assert isinstance(ours.images, LlavaImageProcessor)
        pixels = ours.images.process(image).pixels
        scale, bias = (np.asarray(x, np.float32) for x in (ours.images.scale, ours.images.bias))
        np.testing.assert_allclose(
            (pixels * scale + bias).transpose(2, 0, 1), expected["pixel_values"][index], atol=1e-5
        )


@pytest.mark.parametrize("byte_level", [True, False], ids=["byte level", "metaspace"])
@pytest.mark.parametrize(("prompt", "num_images"), PROMPTS)
def test_equals_transformers(
    tmp_path: Path, prompt: str, num_images: int, byte_level: bool
) -> None:
    assert_equal(make_checkpoint(tmp_path, byte_level=byte_level), prompt, num_images)


@pytest.mark.parametrize(("prompt", "num_images"), PROMPTS[:2] + PROMPTS[3:])
def test_sample_model_equals_transformers(prompt: str, num_images: int) -> None:
    assert_equal(TINY_LLAVA, prompt, num_images)


MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "What colour?"},
            {"type": "image_url", "image_url": {"url": "a.jpg"}},
        ],
    },
]


@pytest.mark.parametrize("bos", ["", "{{ bos_token }}"], ids=["no bos", "bos in the template"])
def test_chat_equals_transformers(tmp_path: Path, bos: str) -> None:
    make_checkpoint(tmp_path, bos + TEMPLATE)
    theirs = AutoProcessor.from_pretrained(tmp_path)
    text = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True)
    tokenized = theirs.tokenizer(
        text.replace("<image>", "<image>" * SIZE), add_special_tokens=not bos
    )
    encoded = encode(load(tmp_path), row(messages=MESSAGES, num_images=1))
    assert encoded.token_ids == tokenized["input_ids"]
    assert encoded.token_ids.count(1) == 1


def decoded(processor: LlavaProcessor, row: Row) -> str:
    """The encoded prompt as text, with one <image> for each run."""
    encoded = encode(processor, row)
    text = processor.tokenizer._backend.decode(encoded.token_ids, skip_special_tokens=False)
    assert isinstance(text, str)
    return text.replace("<image>" * SIZE, "<image>")


def test_chat_puts_the_images_first(folder: Path) -> None:
    processor = load(folder, PromptConfig(chat=True, system_prompt="Be brief."))
    assert decoded(processor, row("What?", num_images=1)) == (
        "<s>SYSTEM: Be brief. USER: <image>\nWhat? ASSISTANT:"
    )
    # Unless the prompt says where they are.
    assert decoded(processor, row("This <image> is?", num_images=1)) == (
        "<s>SYSTEM: Be brief. USER: This <image> is? ASSISTANT:"
    )


def test_own_system_message_stays(folder: Path) -> None:
    processor = load(folder, PromptConfig(chat=True, system_prompt="Be long."))
    text = decoded(processor, row(messages=MESSAGES, num_images=1))
    assert text == "<s>SYSTEM: Be brief. USER: <image>\nWhat colour? ASSISTANT:"


def test_system_message_does_not_make_up_for_messages(folder: Path) -> None:
    processor = load(folder, PromptConfig(chat=True, system_prompt="Be brief."))
    not_messages: list[Any] = [[], ["hello"]]
    for messages in not_messages:
        with pytest.raises(RowError, match=r"empty|'hello'"):
            processor.tokenize(row(messages=messages))


def test_chat_template_from_a_file(folder: Path) -> None:
    own = folder / "own.jinja"
    own.write_text("Q: {{ messages[0].content }} A:")
    processor = load(folder, PromptConfig(chat=True, chat_template=own))
    assert decoded(processor, row("What?", num_images=1)) == "<s>Q: <image>\nWhat? A:"


def test_a_processor_that_has_read_its_template_goes_to_another_process(folder: Path) -> None:
    processor = load(folder, PromptConfig(chat=True))
    tokens = processor.tokenize(row("Hi")).token_ids
    assert pickle.loads(pickle.dumps(processor)).tokenize(row("Hi")).token_ids == tokens


def test_prompt_template(folder: Path) -> None:
    prompt = PromptConfig(prompt_template="USER: <image>\n{prompt} {}ASSISTANT:")
    text = decoded(load(folder, prompt), row("What {prompt}?", num_images=1))
    assert text == "<s>USER: <image>\nWhat {prompt}? {}ASSISTANT:"
    chat = PromptConfig(prompt_template="Say: {prompt}", chat=True)
    text = decoded(load(folder, chat), row("What?", num_images=1))
    assert text == "<s>USER: <image>\nSay: What? ASSISTANT:"


def test_full_count_is_taken_as_it_is(folder: Path) -> None:
    single = encode(load(folder), row("a <image> b", num_images=1))
    full = row(f"a {'<image>' * SIZE} b", num_images=1)
    assert encode(load(folder), full) == single
    strict = load(folder, images=ImageArguments(strict_image_tokens=True))
    assert encode(strict, full) == single
    with pytest.raises(RowError, match="expected 16 image tokens in the prompt, found 1"):
        strict.tokenize(row("a <image> b", num_images=1))


def test_what_the_engine_is_given(folder: Path) -> None:
    encoded = encode(load(folder), row("<image>x", num_images=1))
    assert encoded.token_ids == [1, *[IMAGE_ID] * SIZE, encoded.token_ids[-1]]
    assert encoded.image_spans == (ImageSpan(1, SIZE, 0),)
    assert encoded.positions is None and encoded.next_position is None


@pytest.mark.parametrize(
    ("bad", "code", "said"),
    [
        (row(), ErrorCode.PROMPT_INVALID, "neither a prompt nor messages"),
        (row("a\ud800b"), ErrorCode.PROMPT_INVALID, "character 1 is a lone surrogate"),
        (row(messages=[]), ErrorCode.PROMPT_INVALID, "empty"),
        (row(messages=[{"role": "user"}]), ErrorCode.PROMPT_INVALID, "content is None"),
        (row("x", num_images=1), ErrorCode.IMAGE_TOKEN_MISMATCH, "found 0"),
        (row("<image>"), ErrorCode.IMAGE_TOKEN_MISMATCH, "0 images"),
        (row("<image>" * 15, num_images=1), ErrorCode.IMAGE_TOKEN_MISMATCH, "16 or 1"),
        (
            row("<image>" * 4, num_images=4),
            ErrorCode.PROMPT_TOO_LONG,
            "65 tokens, 64 of them for images",
        ),
        (row("# " * 100), ErrorCode.PROMPT_TOO_LONG, "exceeds the context of 64"),
    ],
)
def test_row_errors(folder: Path, bad: Row, code: ErrorCode, said: str) -> None:
    with pytest.raises(RowError) as caught:
        load(folder).tokenize(bad)
    assert caught.value.code == code
    assert said in caught.value.message


def test_room_for_one_new_token(folder: Path) -> None:
    prompt = row("<image>", num_images=1)
    assert len(encode(load(folder, max_model_len=SIZE + 2), prompt).token_ids) == SIZE + 1
    with pytest.raises(RowError) as caught:
        load(folder, max_model_len=SIZE + 1).tokenize(prompt)
    assert caught.value.code == ErrorCode.PROMPT_TOO_LONG
    assert "17 tokens" in caught.value.message


def test_prompt_without_any_token(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text()) | {"post_processor": None}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(RowError, match="the prompt is empty"):
        load(folder).tokenize(row(""))


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"max_model_len": 65}, ConfigError, "65, but must be from 2 to the model's 64"),
        ({"prompt": PromptConfig(prompt_template="x")}, ConfigError, "has no {prompt}"),
        ({"prompt": PromptConfig(system_prompt="x")}, ConfigError, "--chat"),
        ({"images": ImageArguments(image_feature_size=17)}, ConfigError, "17"),
        (
            {"prompt": PromptConfig(chat=True, chat_template=Path("missing.jinja"))},
            ConfigError,
            "missing.jinja",
        ),
    ],
)
def test_bad_arguments(
    folder: Path, arguments: dict[str, Any], error: type[VlmbatchError], said: str
) -> None:
    with pytest.raises(error) as caught:
        load(folder, **arguments)
    assert said in str(caught.value)


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_images_of_the_wrong_size_for_the_tower(folder: Path) -> None:
    change(folder / "preprocessor_config.json", crop_size={"height": 42, "width": 56})
    with pytest.raises(CheckpointError, match=r"\(42, 56\).*\(56, 56\)"):
        load(folder)


@pytest.mark.parametrize(
    ("token_id", "said"), [(31_000, "no token of the model's image_token_id 31000"), (0, None)]
)
def test_image_token_of_the_tokenizer(folder: Path, token_id: int, said: str | None) -> None:
    change(folder / "config.json", image_token_index=token_id)
    if said is None:
        processor = load(folder)
        assert processor.image_token == "<image>", "it stands for the model's own"
        for text in ("<image>", "<unk>"):
            row = Row(0, "0", 1, "", prompt=f"a {text}", images=(ImageRef("x"),))
            prompt = processor.place(processor.tokenize(row), [processor.largest_grid])
            assert prompt.token_ids[-1] == 0
        return
    with pytest.raises(CheckpointError, match=said):
        load(folder)


def test_image_token_that_the_tokenizer_splits(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = tokenizer["added_tokens"][:3]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    change(folder / "tokenizer_config.json", image_token=None)
    with pytest.raises(CheckpointError, match="image_token_id is 3"):
        load(folder)


def test_missing_template_matters_to_chats_alone(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    processor = load(folder)
    assert processor.tokenize(row("x"))
    for _ in range(2):
        with pytest.raises(RowError, match="no chat template; give one with") as caught:
            processor.tokenize(row(messages=MESSAGES, num_images=1))
        assert caught.value.code == ErrorCode.PROMPT_INVALID
    with pytest.raises(ConfigError, match="no chat template"):
        load(folder, PromptConfig(chat=True))


def test_a_broken_template_is_an_error_of_rows_that_need_it(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% if %}")
    processor = load(folder)
    assert processor.tokenize(row("x"))
    with pytest.raises(RowError, match="not valid Jinja"):
        processor.tokenize(row(messages=MESSAGES, num_images=1))
    with pytest.raises(ConfigError, match="not valid Jinja"):
        load(folder, PromptConfig(chat_template=folder / "chat_template.jinja"))


def test_settings_name_what_decides_tokens_and_pixels(folder: Path) -> None:
    own = folder / "own.jinja"
    own.write_text("Q: {{ messages[0].content }} A:")
    first = load(folder).settings
    assert load(folder).settings == first
    assert load(folder, max_model_len=50).settings == first
    others = [
        load(folder, PromptConfig(chat=True)).settings,
        load(folder, PromptConfig(chat_template=own)).settings,
        load(folder, PromptConfig(chat=True, chat_template=own)).settings,
        load(folder, PromptConfig(chat=True, system_prompt="x")).settings,
        load(folder, PromptConfig(prompt_template="{prompt}!")).settings,
        load(folder, images=ImageArguments(strict_image_tokens=True)).settings,
    ]
    change(folder / "preprocessor_config.json", resample=2)
    others.append(load(folder).settings)
    change(folder / "tokenizer_config.json", mask_token="<mask>")
    others.append(load(folder).settings)
    assert all(one != other for one, other in combinations([first, *others], 2))


def test_neither_torch_nor_transformers_is_imported(folder: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from vlmbatch.config import ImageArguments, PromptConfig
from vlmbatch.models.family import load_model_config, load_processor
from vlmbatch.models.processor import EncodedPrompt
from vlmbatch.models.hub import resolve_model
from vlmbatch.models.llava.processor import LlavaProcessor
folder = resolve_model({str(folder)!r})
load_processor(folder, load_model_config(folder), PromptConfig(chat=True), ImageArguments())
print([name for name in ("torch", "transformers", "huggingface_hub.hf_api") if name in sys.modules])
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("[]\n", "")
