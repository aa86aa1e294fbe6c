"""What tells two runs apart, in words."""

from __future__ import annotations

import re
from pathlib import Path

from vlmbatch.errors import UsageError

# What --incremental allows to change.
_MAY_CHANGE = (
    *("manifest", "limit", "sample", "sample_seed", "images_from"),
    *("prompt", "sidecars", "pages", "dpi"),
    "parse_json",  # answers are read for it when they are written, those that are kept as well
)

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


def forbidden(changes: list[str]) -> list[str]:
    """The changes, as of ``RunRecord.changes``, that --incremental does not allow."""
    return [change for change in changes if change.partition(":")[0] not in _MAY_CHANGE]


def refuse_changes(output: Path | str, changes: list[str], *, incremental: bool) -> None:
    """Refuse to go on with a run on ``output`` with other settings than it has.

    Raises:
        UsageError: names the changes, and what may be done.
    """
    others = forbidden(changes)
    if not changes or (incremental and not others):
        return
    hint = "" if others else "--incremental to keep the answers of unchanged rows, or "
    lines = "".join(f"\n  {explained(change)}" for change in changes)
    raise UsageError(
        f"output {output} belongs to a run with other settings:{lines}\n"
        f"Restore them to resume it, or add {hint}--overwrite to start anew"
    )
