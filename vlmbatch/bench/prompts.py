"""Prompts of an exact number of tokens, for any tokenizer."""

from __future__ import annotations

import random
from itertools import islice

from vlmbatch.models.processor import Processor
from vlmbatch.types import ImageGrid, ImageRef, Row

_NUM_UNITS = 64  # different words: enough that no two prompts are alike
_MAX_DRAWS = 200
_MAX_CANDIDATES = 2_048  # a vocabulary may have 150,000 words, none of which adds one token
_IMAGE = (ImageRef("photo"),)


class PromptMaker:
    """Makes prompts of one image and random words, each of ``text_tokens`` beside the image's."""

    def __init__(self, processor: Processor, grid: ImageGrid, text_tokens: int, seed: int) -> None:
        """``grid``: the image's."""
        self._processor = processor
        self._grid = grid
        self._random = random.Random(seed)
        self._head = f"{processor.image_token}\n"
        self._num_words = text_tokens - self._text_tokens(self._head)
        self._text = text_tokens
        self._units = self._find_units()
        assert self._num_words >= 0
        assert self._units, "no text that adds one token"

    def make(self) -> str:
        """Another prompt. Its first tokens are the image's, as in LLaVA's conversations."""
        for _ in range(_MAX_DRAWS):
            prompt = self._head + "".join(self._random.choices(self._units, k=self._num_words))
            if self._text_tokens(prompt) == self._text:
                return prompt
        raise AssertionError(f"no prompt of {self._text} text tokens from {self._units}")

    def _text_tokens(self, prompt: str) -> int:
        row = Row(index=0, id="0", line=1, file="", prompt=prompt, images=_IMAGE)
        encoded = self._processor.place(self._processor.tokenize(row), [self._grid])
        return len(encoded.token_ids) - self._grid.num_tokens

    def _find_units(self) -> list[str]:
        """Words that add one token each, also many of them; spaced where the tokenizer has such."""
        tokenizer = self._processor.tokenizer
        words = {tokenizer.decode([index]).strip() for index in range(tokenizer.num_tokens)}
        words = {word for word in words if word.isascii() and word.isalpha() and word.islower()}
        by_length = sorted(words, key=lambda word: (-len(word), word))[:_MAX_CANDIDATES]
        length = self._text_tokens(self._head)

        def adds_one(word: str) -> bool:
            return self._text_tokens(self._head + 4 * word) == length + 4

        spaced = (f" {word}" for word in by_length)
        return list(islice(filter(adds_one, spaced), _NUM_UNITS)) or list(
            islice(filter(adds_one, by_length), _NUM_UNITS)
        )
