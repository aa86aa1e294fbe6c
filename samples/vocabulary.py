"""The sample model's words: prompt format, chat template, byte-level BPE tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from scenes import TRAINING_SEED, make_scene
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

UNK, BOS, EOS, PAD, IMAGE = SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
VOCAB_SIZE = 512  # upper bound: merges end when every word of the scenes is one token

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "Answer the question about the picture.",
    "Answer in a few words.",
)

# LLaVA-1.5's conversation format, image first.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set images, text = '', message['content'] -%}
  {%- else -%}
    {%- set parts = message['content'] -%}
    {%- set pictures = parts | selectattr('type', 'equalto', 'image') | list -%}
    {%- set images = '<image>\\n' * (pictures | length) -%}
    {%- set text = parts | selectattr('type', 'equalto', 'text') | map(attribute='text') | join -%}
  {%- endif -%}
  {%- if message['role'] == 'system' -%}
    {{- text + ' ' -}}
  {%- elif message['role'] == 'user' -%}
    {{- 'USER: ' + images + text + ' ' -}}
  {%- else -%}
    {{- 'ASSISTANT: ' + text + eos_token -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {{- 'ASSISTANT:' -}}
{%- endif -%}
"""


def prompt(question: str, system_prompt: str | None = None) -> str:
    turn = f"USER: {IMAGE}\n{question} ASSISTANT:"
    return turn if system_prompt is None else f"{system_prompt} {turn}"


def token_id(tokenizer: Tokenizer, token: str) -> int:
    index = tokenizer.token_to_id(token)
    assert index is not None, token
    return index


def train_bpe(
    texts: Iterable[str], special_tokens: Sequence[str], vocab_size: int, unk: str | None = None
) -> Tokenizer:
    """A byte-level tokenizer, each digit a token of its own, with the merges of these texts."""
    tokenizer = Tokenizer(models.BPE(unk_token=unk))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def train_tokenizer(num_scenes: int = 3000) -> Tokenizer:
    """Learns merges from the scenes' own text; any UTF-8 text encodes, byte by byte at worst."""
    texts = list(SYSTEM_PROMPTS) + [
        f"USER: \n{question.text} ASSISTANT: {question.answer}"
        for seed in range(TRAINING_SEED, TRAINING_SEED + num_scenes)
        for question in make_scene(seed).questions
    ]
    tokenizer = train_bpe(texts, SPECIAL_TOKENS, VOCAB_SIZE, UNK)
    # Answers begin with the space that sets them off from the prompt; texts should not.
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B",
        special_tokens=[(BOS, token_id(tokenizer, BOS))],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, max_length: int) -> None:
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"unk_token": UNK, "bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **special,
        "extra_special_tokens": {"image_token": IMAGE},
        "model_max_length": max_length,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
