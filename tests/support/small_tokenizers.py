"""Tokenizers of the kinds that models have, trained on a few sentences."""

from __future__ import annotations

import json

from tokenizers import AddedToken, decoders, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "USER: <image>\nWhat colour is the circle? ASSISTANT: It is red.",
    "How many squares are there? There are two squares, and one triangle.",
    "Describe the picture. A green circle left of a blue square.  Two  spaces.",
    "naïve café, 数字と文字, emoji 🙂🙂👍🏽",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]


def byte_level(model_tokens: list[str]) -> Backend:
    """GPT-2's kind, with a post-processor that adds the first token."""
    backend = Backend(BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=500,
        special_tokens=model_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend


def sentencepiece(legacy: bool) -> Backend:
    """Llama's kind: metaspace, and bytes for characters outside the vocabulary."""
    backend = Backend(BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if legacy:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=480, special_tokens=SPECIAL[:3], show_progress=False)
    ascii_corpus = [text.encode("ascii", "ignore").decode() for text in CORPUS]
    backend.train_from_iterator([text.replace(" ", "▁") for text in ascii_corpus], trainer)
    state = json.loads(backend.to_str())
    vocabulary = state["model"]["vocab"]
    for token in byte_tokens:
        vocabulary[token] = len(vocabulary)
    backend = Backend.from_str(json.dumps(state))
    backend.add_special_tokens([AddedToken("<image>", special=True, normalized=False)])
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return backend
