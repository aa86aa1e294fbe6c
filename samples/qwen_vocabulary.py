"""The second sample model's words: Qwen's conversation format, chat template and tokenizer."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

from pages import make_page
from pairs import Pair
from questions import Question
from scenes import TRAINING_SEED, make_scene
from tokenizers import Tokenizer, decoders
from vocabulary import train_bpe

END_OF_TEXT, TURN, END_OF_TURN = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END = "<|vision_start|>", "<|vision_end|>"
IMAGE, VIDEO = "<|image_pad|>", "<|video_pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, TURN, END_OF_TURN, VISION_START, VISION_END, IMAGE, VIDEO)
VOCAB_SIZE = 720  # upper bound: merges end when every word is one token

SYSTEM_PROMPTS = ("You are a helpful assistant.", "Answer in a few words.")

CHAT_TEMPLATE = """\
{%- macro turn(message) -%}
  {%- if message.content is string -%}
    {{- message.content -}}
  {%- else -%}
    {%- for part in message.content -%}
      {%- if part.type == 'image' or part.type == 'image_url' -%}
        {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
      {%- elif part.type == 'text' -%}
        {{- part.text -}}
      {%- endif -%}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {{- '<|im_start|>' + message.role + '\\n' + turn(message) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def head(system_prompt: str | None = None) -> str:
    """What stands before the pictures."""
    system = "" if system_prompt is None else f"{TURN}system\n{system_prompt}{END_OF_TURN}\n"
    return f"{system}{TURN}user\n"


def tail(question: str) -> str:
    """What stands behind the pictures, up to the answer."""
    return f"{question}{END_OF_TURN}\n{TURN}assistant\n"


def later_turn(question: str) -> str:
    """What stands between the end of an answer and the next."""
    return f"\n{TURN}user\n{tail(question)}"


def prompt(question: str, num_images: int, system_prompt: str | None = None) -> str:
    pictures = f"{VISION_START}{IMAGE}{VISION_END}" * num_images
    return f"{head(system_prompt)}{pictures}{tail(question)}"


def train_tokenizer(num_scenes: int = 2000) -> Tokenizer:
    """Learns merges from the questions' own text; any UTF-8 text encodes."""
    scenes = [make_scene(TRAINING_SEED + index, square=False) for index in range(num_scenes)]
    pages = [make_page(TRAINING_SEED + index) for index in range(num_scenes)]
    pairs = [Pair(first, second) for first, second in zip(scenes[::2], scenes[1::2], strict=True)]
    asked: list[Question] = []
    for items in (scenes, pages, pairs):
        asked += chain.from_iterable(item.questions for item in items)
    texts = [*SYSTEM_PROMPTS, "system"] * 100 + ["user", "assistant"] * len(asked)
    texts += chain.from_iterable((question.text, question.answer) for question in asked)
    tokenizer = train_bpe(texts, SPECIAL_TOKENS, VOCAB_SIZE)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": END_OF_TURN, "pad_token": END_OF_TEXT}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "bos_token": None,
        "unk_token": None,
        "model_max_length": max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
