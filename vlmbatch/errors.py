"""What can go wrong, as the user meets it: an exit status for a run, a code for a row."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

_SHORTAGES = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.ENOMEM}
    | {errno.EAGAIN, errno.EIO}
)


class ErrorCode(StrEnum):
    """Codes of error rows, as written to the ``error_code`` column."""

    MANIFEST_LINE_INVALID = "manifest_line_invalid"
    ID_DUPLICATE = "id_duplicate"
    REQUEST_INVALID = "request_invalid"
    PROMPT_INVALID = "prompt_invalid"
    SAMPLING_INVALID = "sampling_invalid"
    RESOLUTION_INVALID = "resolution_invalid"
    IMAGE_TOKEN_MISMATCH = "image_token_mismatch"
    PROMPT_TOO_LONG = "prompt_too_long"
    IMAGE_INVALID = "image_invalid"
    IMAGE_MISSING = "image_missing"
    IMAGE_UNREADABLE = "image_unreadable"
    IMAGE_FORMAT_UNSUPPORTED = "image_format_unsupported"
    IMAGE_TOO_LARGE = "image_too_large"
    IMAGE_FORBIDDEN = "image_forbidden"
    IMAGE_FETCH_FAILED = "image_fetch_failed"
    IMAGE_TIMEOUT = "image_timeout"
    FEATURES_INVALID = "features_invalid"
    ENGINE_ERROR = "engine_error"

    @property
    def meaning(self) -> str:
        """One line for tables and the README."""
        return _MEANINGS[self]


_MEANINGS = {
    ErrorCode.MANIFEST_LINE_INVALID: "the manifest's line is malformed, not UTF-8, or too long",
    ErrorCode.ID_DUPLICATE: "an earlier row of the stream has the same id",
    ErrorCode.REQUEST_INVALID: "a request, of a batch file or in Python, that cannot be answered",
    ErrorCode.PROMPT_INVALID: "the prompt (or messages) is missing, null or of the wrong type",
    ErrorCode.SAMPLING_INVALID: "a per-row sampling value is of the wrong type or out of range",
    ErrorCode.RESOLUTION_INVALID: "a row's max_pixels or min_pixels does not suit model or run",
    ErrorCode.IMAGE_TOKEN_MISMATCH: "the number of <image> tokens does not fit the row's images",
    ErrorCode.PROMPT_TOO_LONG: "prompt and image tokens exceed the model's context length",
    ErrorCode.IMAGE_INVALID: "the image column holds neither a path nor image bytes",
    ErrorCode.IMAGE_MISSING: "no file at the image path",
    ErrorCode.IMAGE_UNREADABLE: "not a readable image: empty, truncated, corrupt, or not a file",
    ErrorCode.IMAGE_FORMAT_UNSUPPORTED: "an image format outside the allowed list",
    ErrorCode.IMAGE_TOO_LARGE: "more pixels or bytes than the limit allows",
    ErrorCode.IMAGE_FORBIDDEN: "outside the image root, or a URL of a host that is not allowed",
    ErrorCode.IMAGE_FETCH_FAILED: "the image could not be fetched from its URL",
    ErrorCode.IMAGE_TIMEOUT: "the image took longer to decode than --image-timeout allows",
    ErrorCode.FEATURES_INVALID: "image features of the wrong format, shape or type, or not finite",
    ErrorCode.ENGINE_ERROR: "the engine failed on this row",
}


class VlmbatchError(Exception):
    """Base of every error that a user can meet. Any of them can be pickled."""

    exit_status = 70

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException's would call the class with ``args``, which its __init__ may not take.
        return _unpickled, (type(self), self.args, self.__dict__)


class UsageError(VlmbatchError):
    """The command, its configuration, the manifest or the checkpoint cannot be used as given."""

    exit_status = 2


class ConfigError(UsageError):
    """An option or configuration value is invalid or contradicts the model."""


class FieldError(ConfigError):
    """A field cannot have its value. The message begins with its name as Python and files have it,
    and may have those of ``others`` in it."""

    def __init__(self, field: str, problem: str, *others: str) -> None:
        super().__init__(f"{field} {problem}")
        self.fields = (field, *others)

    def call(self, names: Mapping[str, str]) -> None:
        """Have the message call fields by other ``names``, each where it comes first."""
        message = str(self)
        for field in self.fields:
            if field in names:  # not within an option, such as --field-of-another
                place = rf"(?<![\w-]){re.escape(field)}(?![\w-])"
                message = re.sub(place, names[field], message, count=1)
        self.args = (message,)


class ManifestError(UsageError):
    """The manifest as a whole cannot be read; the message names file and line."""


class CheckpointError(UsageError):
    """The model folder is incomplete, malformed or of an unsupported kind."""


class OutputError(VlmbatchError):
    """Reading or writing failed below us (disk full, permission, vanished folder)."""

    exit_status = 74


class OutputLockedError(VlmbatchError):
    """Another run is writing the same output."""

    exit_status = 75


class EnginesLostError(VlmbatchError):
    """Every engine process has ended, and was started again as often as it may be."""

    exit_status = 74


class UnfinishedError(VlmbatchError):
    """Parts of a run are missing: their tasks have yet to run, or to end."""

    exit_status = 1


class RowError(VlmbatchError):
    """One row cannot be answered; it becomes an error row and the run continues."""

    exit_status = 1

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


class RequestError(RowError):
    """One request of a batch cannot be answered as it asks.

    ``param`` and ``api_code`` are what OpenAI's clients are told beside the message: the field, and
    OpenAI's code where ``code`` does not tell it.
    """

    def __init__(
        self, code: ErrorCode, message: str, param: str | None, api_code: str | None
    ) -> None:
        super().__init__(code, message)
        self.param = param
        self.api_code = api_code


def is_shortage(error: BaseException) -> bool:
    """Whether the system lacks something that it may have later: no fault of ours or the user's.

    Space, memory, open files or processes, or the limits that were set on them.
    """
    return isinstance(error, OSError) and error.errno in _SHORTAGES


def _unpickled(
    kind: type[VlmbatchError], arguments: tuple[Any, ...], attributes: dict[str, Any]
) -> VlmbatchError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(attributes)
    return error
