"""What tells two runs apart, in words."""

from __future__ import annotations

import re

# What has changed where a setting's name does not say it. Some values are digests of content.
_EXPLANATIONS = {
    "manifest": "manifest: its rows are others, or in another order",
    "images_from": "manifest: relative image paths start from another folder",
    "model": "model: the files of the checkpoint are others",
    "processor.tokenizer": "tokenizer: it is another, or has other special tokens",
    "processor.image_processor": "image processor: it is another, or has other parameters",
    "processor.chat_template": "chat_template: its content is another",
}
_DIGEST = re.compile(r"[0-9a-f]{32,}")
_DIGITS = 12  # of a digest, in messages


def explained(change: str) -> str:
    """A change, ``name: old -> new`` as of ``RunRecord.changes``, for people."""
    name, _, values = change.partition(": ")
    values = _DIGEST.sub(lambda found: found[0][:_DIGITS], values)
    if name in _EXPLANATIONS:
        return f"{_EXPLANATIONS[name]} ({values})"
    return f"{name.removeprefix('processor.')}: {values}"
