"""What <image> becomes for processors of all kinds, and what templates of ours make of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hf_checkpoints import KINDS, TEMPLATE, make_tokenizer
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers.models import WordLevel
from tokenizers.processors import TemplateProcessing

from vlmbatch.config import PromptConfig, SessionConfig
from vlmbatch.errors import RowError
from vlmbatch.hf.batch import collate, signature
from vlmbatch.hf.library_processor import LibraryProcessor
from vlmbatch.hf.placeholder import Placeholder, find_placeholder
from vlmbatch.hf.processor import HfProcessor, RenderedTokens
from vlmbatch.models.tokenizer import Tokenizer
from vlmbatch.session.open import open_model
from vlmbatch.types import ImageRef, ProcessedInputs, Request, Row

PAD, IMAGE, START, END = "<|image_pad|>", 3, "<|vision_start|>", "<|vision_end|>"
REF = ImageRef("a.png")


class Library:
    """Plays a processor: ``kind`` says how it takes images."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.image_token = None if kind == "nameless" else PAD
        self.tokenizer = range(300)

    def __call__(
        self, text: list[str], images: list[Any] | None, return_tensors: str
    ) -> dict[str, Any]:
        assert return_tensors == "pt"
        nested = bool(images) and isinstance(images[0], list)
        if nested == (self.kind == "flat"):
            raise ValueError("images of another shape")
        found = text[0].count(PAD)
        if self.kind in ("in place", "flat"):
            if found != 1:
                raise ValueError(f"{found} placeholders for 1 image")
            count = 4
        else:
            count = 4 + found
        return {"input_ids": torch.tensor([[1] + [IMAGE] * count])}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a tokenizer and a template that writes tokens around an image."""
    path = tmp_path_factory.mktemp("tokenizer")
    make_tokenizer([PAD, START, END], {}).save_pretrained(path)
    (path / "chat_template.jinja").write_text(
        TEMPLATE.replace("IMAGE_TOKEN", f"\n{START}{PAD}{END}\n")
    )
    return path


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("in place", Placeholder(PAD, f"{START}{PAD}{END}")),
        ("flat", Placeholder(PAD, f"{START}{PAD}{END}")),
        ("before", Placeholder(None, "")),
        ("nameless", Placeholder(None, "")),
    ],
)
def test_what_stands_for_an_image_is_found_out(
    folder: Path, kind: str, expected: Placeholder
) -> None:
    library = LibraryProcessor(Library(kind))
    assert find_placeholder(library, IMAGE, folder, Tokenizer.load(folder)) == expected
    prompt = PAD if expected.own else "a"
    assert library(prompt, [Image.new("RGB", (9, 9))])["input_ids"].shape == (1, 5)


def test_a_model_without_an_image_token_is_told_by_lengths(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    for kind, own in (("in place", PAD), ("before", None)):
        library = LibraryProcessor(Library(kind))
        assert find_placeholder(library, None, folder, tokenizer).own == own


def test_without_a_template_it_is_the_processors_token(folder: Path, tmp_path: Path) -> None:
    library = LibraryProcessor(Library("in place"))
    tokenizer = Tokenizer.load(folder)
    assert find_placeholder(library, IMAGE, tmp_path, tokenizer) == Placeholder(PAD, PAD)
    (tmp_path / "chat_template.jinja").write_text("{{ undefined.thing }}")
    assert find_placeholder(library, IMAGE, tmp_path, tokenizer) == Placeholder(PAD, PAD)


def test_both_spellings_count() -> None:
    placeholder = Placeholder(PAD, f"{START}{PAD}{END}")
    assert placeholder.count(f"<image> and {PAD}") == 2
    assert placeholder.translate(f"<image> and {PAD}") == f"{START}{PAD}{END} and {PAD}"
    first = Placeholder(None, "")
    assert (first.count("<image>a"), first.translate("<image>a")) == (1, "a")


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gemma3")
    KINDS["gemma3"].make(path)
    return path


def processor(folder: Path, **prompt: Any) -> HfProcessor:
    opened = open_model(SessionConfig(str(folder), prompt=PromptConfig(**prompt))).processor
    assert isinstance(opened, HfProcessor)
    return opened


def rendered(made: HfProcessor, prompt: Any, images: int = 1) -> tuple[str, bool]:
    fields = {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    row = Row(0, "a", 1, "m", images=(REF,) * images, **fields)
    tokens = made.tokenize(row)
    assert isinstance(tokens, RenderedTokens)
    return tokens.text, tokens.add_special_tokens


def test_prompts_and_templates(gemma3: Path, tmp_path: Path) -> None:
    plain = processor(gemma3, prompt_template="Q: {prompt} A:")
    assert rendered(plain, "<image>x") == ("Q: <start_of_image>x A:", True)
    chat = [{"type": "text", "text": "x"}, {"type": "image"}]
    assert rendered(plain, [{"role": "user", "content": chat}]) == (
        "<s>user: x<start_of_image>assistant: ",
        False,
    )
    own = tmp_path / "own.jinja"
    own.write_text("{% for message in messages %}[{{ message['content'] }}]{% endfor %}")
    with_system = processor(gemma3, chat=True, chat_template=own, system_prompt="Be brief.")
    assert rendered(with_system, "x", 2) == (
        "[Be brief.][<start_of_image>\n<start_of_image>\nx]",
        True,
    )
    assert rendered(with_system, "x<image>") == ("[Be brief.][x<start_of_image>]", True)
    with pytest.raises(RowError, match=r"1 image: expected 1 <image>.* found 2"):
        rendered(with_system, "<image>x<start_of_image>")


def request(index: int, length: int, **tensors: Any) -> Request:
    ids = torch.arange(1, length + 1)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors}
    token_ids = ids[0].tolist()
    return Request(index, token_ids, None, inputs=ProcessedInputs(inputs, len(tensors), 0))


def test_rows_are_padded_on_the_left_and_images_put_together() -> None:
    requests = [
        request(0, 2, pixel_values=torch.full((1, 3, 2, 2), 1.0)),
        request(1, 4, pixel_values=torch.full((2, 3, 2, 2), 2.0)),
    ]
    assert signature(requests[0]) == signature(requests[1])
    batch = collate(requests, pad_token_id=9)
    assert batch["input_ids"].tolist() == [[9, 9, 1, 2], [1, 2, 3, 4]]
    assert batch["attention_mask"].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert batch["pixel_values"].shape == (3, 3, 2, 2)
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [1.0, 2.0, 2.0]


def test_masks_over_tokens_and_images_are_padded_by_token() -> None:
    requests = [
        request(index, length, cross_attention_mask=torch.ones(1, length, 1, 2))
        for index, length in enumerate([1, 3])
    ]
    mask = collate(requests, 0)["cross_attention_mask"]
    assert mask.shape == (2, 3, 1, 2)
    assert mask[0, :, 0, 0].tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "others",
    [
        {},
        {"pixel_values": torch.ones(1, 3, 2, 4)},
        {"pixel_values": torch.ones(1, 3, 2, 2), "image_sizes": torch.ones(1, 2)},
        {"pixel_values": torch.ones(1, 3, 2, 2), "names": ["a"]},
        {"pixel_values": torch.ones(1, 3, 2, 2).half()},
    ],
)
def test_rows_whose_tensors_differ_go_apart(others: dict[str, Any]) -> None:
    first = request(0, 2, pixel_values=torch.ones(1, 3, 2, 2))
    assert signature(first) != signature(request(1, 2, **others))


def test_what_cannot_be_put_together_goes_alone() -> None:
    rows = [request(index, 2, names=["a"]) for index in range(2)]
    assert signature(rows[0]) != signature(rows[1])
    assert collate(rows[:1], 0)["names"] == ["a"]


def test_a_library_without_images_counts_its_tokens() -> None:
    library = LibraryProcessor(SimpleNamespace(tokenizer=range(7)))
    assert (library.image_token, library.num_tokens) == (None, 7)


def encode_what_is_unknown() -> None:
    Backend(WordLevel({"a": 0}, unk_token="<unk>")).encode("b")


def panic() -> None:
    """As tokenizers does when it is given special tokens that its template lacks."""
    backend = Backend(WordLevel({"a": 0}))
    backend.post_processor = TemplateProcessing(single="[X] $A", special_tokens=[("[X]", 5)])
    state = json.loads(backend.to_str())
    state["post_processor"]["special_tokens"] = {}
    Backend.from_str(json.dumps(state)).encode("a")


@pytest.mark.parametrize("encode", [encode_what_is_unknown, panic])
def test_what_tokenizers_raises_is_the_rows(encode: Callable[[], None]) -> None:
    """It has no class of its own for that, and panics are not even an ``Exception``."""

    class Library:
        tokenizer = range(1)

        def __call__(self, **given: Any) -> Any:
            encode()

    with pytest.raises(ValueError, match=r"WordLevel error: Missing|no entry found"):
        LibraryProcessor(Library())("b", [])
