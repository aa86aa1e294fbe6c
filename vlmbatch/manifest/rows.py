"""From a manifest's values to a ``Row``: prompt, images, sampling, and what passes through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlmbatch.config import SamplingParams
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.manifest.arrow_values import shown_with_type, times_as_text
from vlmbatch.manifest.columns import MESSAGES_COLUMN, Columns, is_request
from vlmbatch.manifest.ids import id_of_error, read_id, unknown_id
from vlmbatch.manifest.image_column import ImageColumn
from vlmbatch.manifest.jsonl import parse_value
from vlmbatch.manifest.row_settings import row_resolution, row_sampling
from vlmbatch.types import Row


class RowBuilder:
    """Reads rows by the names of ``columns``, and their images by ``images``.

    ``defaults``: the run's sampling parameters. ``with_kept``: inputs that are kept are among the
    values that pass through. ``prompt``: of rows that bring neither prompt nor messages.
    ``needs_prompts``: a row that has none, of its own or by default, is an error.
    """

    def __init__(
        self,
        columns: Columns,
        defaults: SamplingParams,
        images: ImageColumn,
        *,
        with_kept: bool = False,
        prompt: str | None = None,
        needs_prompts: bool = True,
    ) -> None:
        self.columns = columns
        self._defaults = defaults
        self._images = images
        self._left_out = columns.dropped if with_kept else columns.inputs
        self._default_prompt = prompt
        self._needs_prompts = needs_prompts
        self._has_own_prompts = self._has_default_prompts = False  # of the rows so far

    @property
    def is_prompt_unused(self) -> bool:
        """Whether the prompt of all rows was given, and those so far brought theirs."""
        is_given = self._default_prompt is not None
        return is_given and self._has_own_prompts and not self._has_default_prompts

    def build(self, index: int, file: str, line: int, values: dict[str, Any] | RowError) -> Row:
        """The row, with ``error`` set when its values (or the lack of any) rule out an answer."""
        if isinstance(values, RowError):
            row_id = id_of_error(values, self.columns.id, index)
            return Row(index, row_id, line, file, error=values)
        left_out = self._left_out
        extra = {name: value for name, value in values.items() if name not in left_out}
        row_id = unknown_id(index)
        try:
            row_id = read_id(values, self.columns.id, index)
            prompt, messages = self._prompt(values)
            images = self._images.read(values.get(self.columns.image))
            if messages is not None and not images:
                _check_nameless(messages, self.columns.image)
            if (resolution := row_resolution(values)) is not None:
                images = tuple(replace(image, resolution=resolution) for image in images)
            sampling = row_sampling(self._defaults, values, index)
        except RowError as error:
            return Row(index, row_id, line, file, extra=extra, error=error)
        return Row(index, row_id, line, file, prompt, messages, images, sampling, extra)

    def _prompt(self, values: dict[str, Any]) -> tuple[str | None, list[dict[str, Any]] | None]:
        column = self.columns.prompt
        prompt = values.get(column)
        messages = values.get(MESSAGES_COLUMN)
        if prompt is None and messages is None:
            self._has_default_prompts = True
        else:
            self._has_own_prompts = True
        if messages is None:
            prompt = self._default_prompt if prompt is None else prompt
            if isinstance(prompt, str) or (prompt is None and not self._needs_prompts):
                return prompt, None
            if column not in values:
                present = ", ".join(f'"{name}"' for name in values) or "none"
                message = (
                    f'no column "{column}" or "{MESSAGES_COLUMN}" (present: {present:.200}); '
                    "name the prompt's column with --prompt-column, or give all rows one with "
                    "--prompt"
                )
                if is_request(values):
                    message += (
                        "; it is a request of an OpenAI batch file: keep such in a file of their "
                        "own, which from standard input is read with --format openai"
                    )
            elif prompt is None:
                message = f'column "{column}" is null'
            else:
                message = f'column "{column}" must be a string, got {shown_with_type(prompt)}'
            raise RowError(ErrorCode.PROMPT_INVALID, message)
        if prompt is not None:
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f'both "{column}" and "{MESSAGES_COLUMN}" are given: leave one of them out',
            )
        if isinstance(messages, str):
            messages = _read_messages(messages)
        if not (isinstance(messages, list) and all(isinstance(item, dict) for item in messages)):
            raise RowError(
                ErrorCode.PROMPT_INVALID,
                f'column "{MESSAGES_COLUMN}" must be a list of objects with "role" and "content", '
                f"got {shown_with_type(messages)}",
            )
        if not messages:
            raise RowError(ErrorCode.PROMPT_INVALID, f'column "{MESSAGES_COLUMN}" is empty')
        return None, times_as_text(messages)


def _read_messages(text: str) -> Any:
    """Messages as JSON, as Parquet may have them: a column of it has contents of one type."""
    try:
        return parse_value(text.encode(), "the text")
    except RowError as error:
        raise RowError(
            ErrorCode.PROMPT_INVALID,
            f'column "{MESSAGES_COLUMN}" must be a list of objects with "role" and "content", or '
            f"one as JSON: {error.message}",
        ) from error


def _check_nameless(messages: list[dict[str, Any]], column: str) -> None:
    """Refuse messages that name an image themselves, as OpenAI's do."""
    for number, message in enumerate(messages, 1):
        content = message.get("content")
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("image", "image_url") and part.get(kind) is not None:
                raise RowError(
                    ErrorCode.IMAGE_TOKEN_MISMATCH,
                    f'message {number} names an image, and column "{column}" has none: name images '
                    "there, in the order of the messages; they name images themselves in "
                    "requests of OpenAI's batch files alone",
                )
