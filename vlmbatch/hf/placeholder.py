"""What stands for an image in the prompts of a checkpoint's own processor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from vlmbatch.errors import RowError, UsageError
from vlmbatch.hf.library_processor import LibraryProcessor
from vlmbatch.models.chat import ChatTemplate
from vlmbatch.models.prompt_text import IMAGE_PLACEHOLDER
from vlmbatch.models.tokenizer import Tokenizer

_BEFORE, _AFTER = "vlmbatch before", "vlmbatch after"
_PROBE = "a"
_SIDE = 64  # of the image that a processor is tried with, in pixels


@dataclass(frozen=True, slots=True)
class Placeholder:
    """``own``: the token that the processor looks for; None where it puts images first by itself.

    ``text``: what <image> in a prompt becomes: ``own`` with what the model's template writes around
    it, or nothing.
    """

    own: str | None
    text: str

    def count(self, prompt: str) -> int:
        """How many images a prompt speaks of, by <image> and by the model's own token."""
        found = prompt.count(IMAGE_PLACEHOLDER)
        if self.own is not None and self.own != IMAGE_PLACEHOLDER:
            found += prompt.count(self.own)
        return found

    def translate(self, prompt: str) -> str:
        """The prompt as the processor takes it."""
        if self.own == IMAGE_PLACEHOLDER:
            return prompt
        return prompt.replace(IMAGE_PLACEHOLDER, self.text)


def find_placeholder(
    library: LibraryProcessor, image_token_id: int | None, folder: Path, tokenizer: Tokenizer
) -> Placeholder:
    """Ask the processor, and the checkpoint's chat template where it has one."""
    own = library.image_token
    if own is None or _ignores(library, own, image_token_id):
        return Placeholder(None, "")
    return Placeholder(own, _in_template(own, folder, tokenizer) or own)


def _ignores(library: LibraryProcessor, own: str, image_token_id: int | None) -> bool:
    """Whether the processor adds an image's tokens beside a placeholder, not in its place.

    Found out by a prompt with an image: where a placeholder is one token more, none is wanted.
    """
    image = Image.new("RGB", (_SIDE, _SIDE), (128, 128, 128))
    without = library.try_image(_PROBE, image)
    with_it = library.try_image(own + _PROBE, image)
    if without is None:
        return False
    if with_it is None:
        return True
    counts = [
        len(ids) if image_token_id is None else ids.count(image_token_id)
        for ids in (found["input_ids"][0].tolist() for found in (without, with_it))
    ]
    return counts[0] > 0 and counts[1] == counts[0] + 1


def _in_template(own: str, folder: Path, tokenizer: Tokenizer) -> str | None:
    """What the checkpoint's chat template writes for an image; None where that is unknown."""
    parts = [{"type": "text", "text": _BEFORE}, {"type": "image"}, {"type": "text", "text": _AFTER}]
    try:
        template = ChatTemplate.load(folder, tokenizer.special_tokens, own)
        rendered = template.render([{"role": "user", "content": parts}])
    except (UsageError, RowError):
        return None
    _, before, rest = rendered.partition(_BEFORE)
    image, after, _ = rest.partition(_AFTER)
    image = image.strip()
    return image if before and after and image.count(own) == 1 else None
