"""OpenAI batch files as manifests: one request a line.

    {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {...}}

The format is that of OpenAI's Batch API, and of ``vllm run-batch``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vlmbatch.config import SamplingParams
from vlmbatch.config.seeds import derive_seed
from vlmbatch.errors import RowError
from vlmbatch.images.urls import ImageUrls
from vlmbatch.log import logger
from vlmbatch.manifest.columns import MESSAGES_COLUMN, Columns
from vlmbatch.manifest.ids import read_id, unknown_id
from vlmbatch.manifest.schema import asked_columns
from vlmbatch.openai.errors import ApiError, bad_request
from vlmbatch.openai.fields import kind_of, missing
from vlmbatch.openai.requests import (
    CHAT_URL,
    COMPLETION_URL,
    ChatRequest,
    CompletionRequest,
    parse_chat_request,
    parse_completion_request,
)
from vlmbatch.types import Row


@dataclass(frozen=True, slots=True)
class BatchColumns(Columns):
    """The fields of a line. ``url``, and what else there may be, passes through."""

    id: str = "custom_id"

    def __post_init__(self) -> None:
        object.__setattr__(self, "inputs", frozenset({"custom_id", "method", "body"}))
        object.__setattr__(self, "dropped", self.inputs)

    @property
    def renamed(self) -> dict[str, str]:
        return {}

    def images_of(self, values: Mapping[str, Any]) -> Sequence[Any]:
        """The images' URLs, as far as the request, not checked yet, is well-formed."""
        body = values.get("body")
        urls = [*_list(_field(body, "images"))]
        for message in _list(_field(body, "messages")):
            for part in _list(_field(message, "content")):
                image = _field(part, "image_url")
                if isinstance(url := _field(image, "url") or image, str):
                    urls.append(url)
        return urls

    def reserved_message(self, name: str) -> str:
        """What to do about a field beside a request's own whose name the output needs."""
        return (
            f'"{name}" is no field of a request, and has a name that the output reserves. Where '
            'the line is a row of a manifest, with no "custom_id" and no "body", keep such rows in '
            "a file of their own; else leave the field out, or give the output's own columns "
            "others with --column-prefix, such as --column-prefix vlmbatch_"
        )


class BatchRowBuilder:
    """Makes rows of batch lines; as a ``RowBuilder``.

    ``defaults`` hold for what a body leaves out. A body may name another model than ``model``, the
    one that answers: that is told once.
    """

    def __init__(
        self,
        defaults: SamplingParams,
        urls: ImageUrls,
        model: str,
        column_prefix: str | None = "",
    ) -> None:
        self.columns: Columns = BatchColumns(prefix=column_prefix, asked=asked_columns(defaults))
        self._defaults = defaults
        self._urls = urls
        self._model = model
        self._expected = (None, model, Path(model).name)
        self._is_noted = False

    def build(self, index: int, file: str, line: int, values: dict[str, Any] | RowError) -> Row:
        """The row, with ``error`` set when there is no answering it."""
        if isinstance(values, RowError):
            return Row(index, unknown_id(index), line, file, error=values)
        inputs = self.columns.inputs
        extra = {name: value for name, value in values.items() if name not in inputs}
        row_id = unknown_id(index)
        try:
            row_id = read_id(values, self.columns.id, index)
            request = self._request(index, values)
        except ApiError as error:
            return Row(index, row_id, line, file, extra=extra, error=error.to_row_error())
        except RowError as error:
            return Row(index, row_id, line, file, extra=extra, error=error)
        self._note_model(request.model, file, line)
        prompt = request.prompts[0] if isinstance(request, CompletionRequest) else None
        return Row(
            index,
            row_id,
            line,
            file,
            prompt=prompt if isinstance(prompt, str) else None,
            messages=request.messages if isinstance(request, ChatRequest) else None,
            images=request.images,
            sampling=request.sampling,
            extra=extra,
            prompt_token_ids=prompt if isinstance(prompt, tuple) else None,
        )

    def _request(self, index: int, values: dict[str, Any]) -> ChatRequest | CompletionRequest:
        if values.get(self.columns.id) is None:
            raise _no_custom_id(values)
        method, url, body = values.get("method"), values.get("url"), values.get("body")
        if method != "POST":
            raise bad_request(f"'method' must be \"POST\", got {kind_of(method)}", "method")
        defaults = replace(self._defaults, seed=derive_seed(self._defaults.seed, index))
        request: ChatRequest | CompletionRequest
        if url == CHAT_URL:
            request = parse_chat_request(body, defaults, self._urls)
        elif url == COMPLETION_URL:
            request = parse_completion_request(body, defaults, self._urls)
        else:
            raise bad_request(
                f'\'url\' must be "{CHAT_URL}" or "{COMPLETION_URL}", got {kind_of(url)}', "url"
            )
        if isinstance(request, CompletionRequest) and request.echo:
            raise bad_request(
                "'echo' is not supported in a batch file: leave it out",
                "echo",
                "unsupported_parameter",
            )
        if isinstance(request, CompletionRequest) and len(request.prompts) > 1:
            raise bad_request(
                f"'prompt' has {len(request.prompts)} prompts: in a batch file send a request for "
                "each",
                "prompt",
                "unsupported_parameter",
            )
        n = request.sampling.n
        if n > 1 and request.sampling.logprobs is not None:
            raise bad_request(
                f"'logprobs' with {n} answers ('n') are not supported in a batch file: send a "
                "request for each answer, with a seed of its own",
                "logprobs",
                "unsupported_parameter",
            )
        if request.stream:
            raise bad_request(
                "'stream' is not possible in a batch file: leave it out",
                "stream",
                "unsupported_parameter",
            )
        return request

    def _note_model(self, name: str | None, file: str, line: int) -> None:
        if self._is_noted or name in self._expected:
            return
        self._is_noted = True
        logger.warning(
            '%s:%d asks for the model "%.100s": all requests are answered by %s',
            file,
            line,
            name,
            self._model,
        )


def _no_custom_id(values: Mapping[str, Any]) -> ApiError:
    own = [name for name in ("prompt", MESSAGES_COLUMN) if name in values]
    if not own or "body" in values:
        return missing("custom_id")
    return bad_request(
        f"'custom_id' and 'body' are missing, and there is '{own[0]}': this is a row of a "
        "manifest, not a request of an OpenAI batch file. Keep such rows in a file of their own, "
        "which is read without --format openai",
        "custom_id",
        "missing_required_parameter",
    )


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
