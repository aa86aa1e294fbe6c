"""Checkpoint folders from a model's config alone: what a run needs beside weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from itertools import chain, islice, product
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from vlmbatch.errors import CheckpointError
from vlmbatch.models.family import FAMILIES, Family, family_of, load_model_config
from vlmbatch.models.json_fields import read_json

_NEEDED_FILES = ("tokenizer.json", "preprocessor_config.json")
_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>")
_IMAGE_TOKEN = "<image>"
_SPACE = "\u0120"  # a space as byte-level tokenizers write it
_CONSONANTS, _VOWELS = "bcdfghjklmnprstvwxyz", "aeiou"


def built_in_configs() -> dict[str, Mapping[str, Any]]:
    """Published configs of all families, by the names that ``--random-weights`` knows."""
    configs: dict[str, Mapping[str, Any]] = {}
    for package in FAMILIES.values():
        configs |= Family(package).preset_configs
    return configs


def prepare_checkpoint(model: str, into: Path) -> None:
    """Fill ``into`` with what a run with random weights of ``model`` needs, all but the weights.

    ``model`` is a built-in name or its Hub id, a ``config.json``, or a folder that holds one, whose
    tokenizer and image processor are taken when it has both.

    Raises:
        CheckpointError: no such config, or one that is malformed or unsupported.
    """
    path = Path(model).expanduser()
    source = path / "config.json" if path.is_dir() else path
    fields: Mapping[str, Any]
    if source.exists():
        fields = read_json(source)
    elif (known := built_in_configs().get(_short_name(model))) is not None:
        fields = known
    else:
        raise CheckpointError(
            f"{model}: with --random-weights, give a config.json, a folder that holds one, or one "
            f"of: {', '.join(built_in_configs())}"
        )
    _write_json(into / "config.json", fields)
    if path.is_dir() and all((path / name).exists() for name in _NEEDED_FILES):
        for file in path.glob("*.json"):
            shutil.copyfile(file, into / file.name)
        return
    config = load_model_config(into)
    make_tokenizer(config.text.vocab_size, config.image_token_id).save(str(into / "tokenizer.json"))
    names = dict(zip(("unk_token", "bos_token", "eos_token"), _SPECIAL_TOKENS, strict=True))
    _write_json(into / "tokenizer_config.json", names)
    _write_json(into / "preprocessor_config.json", family_of(config).processor_config(config))


def make_tokenizer(vocab_size: int, image_token_id: int) -> Tokenizer:
    """A byte-level BPE of ``vocab_size`` tokens. Words such as " pabo" are one token each.

    Raises:
        CheckpointError: too small a vocabulary for all bytes, or an image token among those that
            begin it.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    num_fixed = len(_SPECIAL_TOKENS) + len(alphabet) + 1
    if vocab_size < num_fixed or image_token_id < len(_SPECIAL_TOKENS):
        raise CheckpointError(
            f"a tokenizer for random weights needs a vocabulary of at least {num_fixed} tokens and "
            f"an image token id of at least {len(_SPECIAL_TOKENS)}; the config has {vocab_size} "
            f"and {image_token_id}"
        )
    # Consonant and vowel merge first, so that every word of such pairs splits in one way only.
    pairs = [first + second for first, second in product(_CONSONANTS, _VOWELS)]
    words = [first + second for first, second in product(pairs, pairs)]
    possible = chain(
        product(_CONSONANTS, _VOWELS),
        product(pairs, pairs),
        product([_SPACE], words),
        product(words, pairs),
        product(words, words),
    )
    merges = list(islice(possible, vocab_size - num_fixed))
    tokens = [*_SPECIAL_TOKENS, *alphabet, *(first + second for first, second in merges)]
    tokens.insert(image_token_id, _IMAGE_TOKEN)
    vocab = {token: index for index, token in enumerate(tokens)}
    assert len(vocab) == vocab_size
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in (*_SPECIAL_TOKENS, _IMAGE_TOKEN)]
    tokenizer.add_special_tokens(special)
    bos = _SPECIAL_TOKENS[1]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, vocab[bos])]
    )
    return tokenizer


def _short_name(model: str) -> str:
    """The built-in name of a Hub id: llava-1.5-7b of llava-hf/llava-1.5-7b-hf."""
    name = model.rpartition("/")[2].removesuffix("-hf").removesuffix("-ov")
    return name.removesuffix("-Instruct").lower()


def _write_json(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
