"""The lines of OpenAI's batch output: made of results, and results of them.

    {"id": "batch_req_<run>_<row>", "custom_id": "a", "error": null,
     "response": {"status_code": 200, "request_id": "req_<run>_<row>", "body": {...}}}

A request that failed has the error in its response's body, as OpenAI has it; a line that was no
request has no response, and the error beside it.
"""

from __future__ import annotations

import json
import re
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmbatch.errors import ErrorCode, UsageError
from vlmbatch.openai.errors import api_error, row_code
from vlmbatch.openai.logprobs import chat_logprobs, text_logprobs, tokens_of
from vlmbatch.openai.requests import COMPLETION_URL
from vlmbatch.openai.responses import (
    CHAT_ID_PREFIX,
    COMPLETION_ID_PREFIX,
    ResponseHead,
    chat_completion,
    joined,
    text_completion,
    usage,
)
from vlmbatch.types import Result

_HEAD = re.compile(rb'\{"id": "batch_req_([0-9a-f]{1,64})_([0-9]{1,18})", ')
HEAD_BYTES = 128  # of a line, with its id in it


@dataclass(frozen=True, slots=True)
class BatchLines:
    """Makes the lines of one run. ``created``: seconds since 1970; ``model`` has answered.

    Answers name the model as a server would by default, and not where it lies on this machine: by
    its Hub id, or by its folder's name.
    """

    run_id: str  # hexadecimal
    created: int
    model: str  # as the run was given it; kept as the name

    def __post_init__(self) -> None:
        folder = Path(self.model)
        if folder.is_dir():
            object.__setattr__(self, "model", folder.resolve().name)

    @classmethod
    def new(cls, model: str) -> BatchLines:
        """Those of a run that nothing is kept of."""
        return cls(secrets.token_hex(16), int(time.time()), model)

    def line(self, result: Result) -> dict[str, Any]:
        """One line, ready for JSON."""
        name = f"{self.run_id}_{result.index}"
        response, error = None, None
        if result.error_code is None:
            response = {
                "status_code": 200,
                "request_id": f"req_{name}",
                "body": self._body(name, result),
            }
        elif result.error_code is ErrorCode.MANIFEST_LINE_INVALID:
            error = {"code": str(result.error_code), "message": result.error_message}
        else:
            failure = api_error(
                result.error_code,
                result.error_message or "",
                result.error_param,
                result.error_api_code,
            )
            response = {
                "status_code": failure.status,
                "request_id": f"req_{name}",
                "body": failure.to_json(),
            }
        return {
            "id": f"batch_req_{name}",
            "custom_id": result.id,
            "response": response,
            "error": error,
        }

    def _body(self, name: str, result: Result) -> dict[str, Any]:
        assert result.text is not None
        assert result.finish_reason is not None
        tokens = usage(
            result.prompt_tokens or 0, result.completion_tokens or 0, result.image_tokens or 0
        )
        is_chat = result.extra.get("url") != COMPLETION_URL
        prefix = CHAT_ID_PREFIX if is_chat else COMPLETION_ID_PREFIX
        head = ResponseHead(f"{prefix}{name}", self.created, self.model)
        build, form = (
            (chat_completion, chat_logprobs) if is_chat else (text_completion, text_logprobs)
        )
        found = result.details.get("logprobs")
        logprobs = None if found is None else form(found)
        texts = result.details.get("texts", [result.text])
        reasons = result.details.get("finish_reasons", [result.finish_reason])
        return joined(
            [
                build(head, text, reason, tokens, logprobs)
                for text, reason in zip(texts, reasons, strict=True)
            ]
        )


def is_batch_output(output: Path) -> bool:
    """Whether an output is written in these lines, by its name."""
    return output.suffix == ".jsonl" and not output.is_dir()


def errors_path(output: Path) -> Path:
    """Where the lines of failed requests go: ``results.errors.jsonl`` beside ``results.jsonl``."""
    return output.with_name(f"{output.stem}.errors{output.suffix}")


def check_no_errors(output: Path) -> None:
    """What asks about a batch output is to name its results: they are read with their errors.

    Raises:
        UsageError: the path is that of the file of errors.
    """
    results = output.with_name(f"{output.name.removesuffix('.errors.jsonl')}.jsonl")
    if output == errors_path(results) and results.exists():
        raise UsageError(f"{output} has the errors of {results}: name that")


def line_head(raw: bytes) -> tuple[str, int] | None:
    """The run and row of a line, from its first ``HEAD_BYTES``; None when it is none of ours."""
    found = _HEAD.match(raw)
    return None if found is None else (found[1].decode(), int(found[2]))


def parse_line(raw: bytes) -> Result:
    """The result that a line was made of, without pass-through columns.

    Raises:
        ValueError: it is no line of ours, or was changed.
    """
    head = line_head(raw)
    if head is None:
        raise ValueError("no line of a batch output")
    try:
        values = json.loads(raw)
        if values["error"] is not None:
            code, message = ErrorCode(values["error"]["code"]), values["error"]["message"]
            return Result(head[1], values["custom_id"], error_code=code, error_message=message)
        body = values["response"]["body"]
        if "error" in body:
            failure = body["error"]
            code, api_code = row_code(failure["code"])
            return Result(
                head[1],
                values["custom_id"],
                error_code=code,
                error_message=failure["message"],
                error_param=failure["param"],
                error_api_code=api_code,
            )
        choices, tokens = body["choices"], body["usage"]
        texts = [
            each["message"]["content"] if "message" in each else each["text"] for each in choices
        ]
        reasons = [each["finish_reason"] for each in choices]
        details: dict[str, Any] = {}
        if (logprobs := choices[0]["logprobs"]) is not None:
            details["logprobs"] = tokens_of(logprobs)
        if len(choices) > 1:
            details |= {"texts": texts, "finish_reasons": reasons}
        return Result(
            head[1],
            values["custom_id"],
            texts[0],
            reasons[0],
            tokens["prompt_tokens"],
            tokens["prompt_tokens_details"]["image_tokens"],
            tokens["completion_tokens"],
            details=details,
        )
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"a field is missing: {error}") from error
