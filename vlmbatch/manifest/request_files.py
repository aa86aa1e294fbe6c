"""Whether a manifest holds OpenAI's batch requests or rows of a user's own, by its first line."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing, suppress
from typing import Any

from vlmbatch.config import ManifestConfig
from vlmbatch.errors import ManifestError
from vlmbatch.manifest.columns import MESSAGES_COLUMN, Columns, is_request
from vlmbatch.manifest.jsonl import JsonlFile
from vlmbatch.manifest.scan import ManifestFile


def holds_requests(
    config: ManifestConfig, files: Sequence[ManifestFile], columns: Columns, *, streaming: bool
) -> bool:
    """Whether ``files`` are OpenAI batch files, as ``config`` says or else by the first line.

    Of a stream, which is read once, nothing is looked at.

    Raises:
        ManifestError: the first line is plainly not of the format that ``config`` asks for.
    """
    if config.format == "openai":
        for file in files:
            if not isinstance(file, JsonlFile):
                raise ManifestError(
                    f"{file.name}: an OpenAI batch file is JSONL, and this is not: leave "
                    "--format out to read rows of your own"
                )
    first = None if streaming else _first_line(files)
    if first is None:
        return config.format == "openai"
    place, values = first
    requests = is_request(values)
    own = [name for name in (columns.prompt, MESSAGES_COLUMN, columns.image) if name in values]
    if config.format == "openai" and own and not requests:
        raise ManifestError(
            f'{place} has "{own[0]}" and no "custom_id" with a "body": it is a row of a manifest, '
            "and --format openai reads requests of OpenAI batch files. Leave --format out, or give "
            "--format manifest"
        )
    if config.format == "manifest" and requests and not own and config.prompt is None:
        raise ManifestError(
            f'{place} has "custom_id" and "body": it is a request of an OpenAI batch file, and '
            "--format manifest reads rows of your own. Leave --format out, or give --format openai"
        )
    return config.format == "openai" or (config.format == "auto" and requests)


def _first_line(files: Sequence[ManifestFile]) -> tuple[str, dict[str, Any]] | None:
    """Where the first line stands that can be read, and what it holds.

    None of files of another kind. What is wrong with files is for the passes over them to tell.
    """
    for file in files:
        if not isinstance(file, JsonlFile):
            return None
        with closing(file.records()) as records, suppress(ManifestError):
            for line, values in records:
                if isinstance(values, dict):
                    return f"{file.name}:{line}", values
    return None
