"""Errors in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from vlmbatch.errors import ErrorCode, RequestError, VlmbatchError

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"

# Where OpenAI has a code of its own for what a row's code says.
_CODES = {ErrorCode.PROMPT_TOO_LONG: "context_length_exceeded"}
_ROW_CODES = {_CODES.get(code, str(code)): code for code in ErrorCode}
_STATUSES = {ErrorCode.ENGINE_ERROR: 500}  # all others are of the client's making: 400


class ApiError(VlmbatchError):
    """A request that is answered by an error.

    ``status`` is HTTP's; ``param`` names the field of the request that caused it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.param = param
        self.code = code

    def to_json(self) -> dict[str, Any]:
        """The response's body."""
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def to_row_error(self) -> RequestError:
        """The same as the error of a manifest's row: ``request_invalid``, or the image's code."""
        code, api_code = row_code(self.code)
        return RequestError(code, self.message, self.param, api_code)


def bad_request(message: str, param: str | None, code: str | None = "invalid_value") -> ApiError:
    """A 400."""
    return ApiError(400, message, INVALID_REQUEST, param, code)


def api_error(
    code: ErrorCode, message: str, param: str | None = None, api_code: str | None = None
) -> ApiError:
    """What a client is told of a row's error. ``api_code``: OpenAI's, if ``code`` does not tell."""
    status = _STATUSES.get(code, 400)
    kind = INVALID_REQUEST if status < 500 else SERVER_ERROR
    return ApiError(status, message, kind, param, api_code or _CODES.get(code, str(code)))


def row_code(code: str | None) -> tuple[ErrorCode, str | None]:
    """The row's code that ``api_error`` makes ``code`` of, and the ``api_code`` that it needs."""
    if code is not None and code in _ROW_CODES:
        return _ROW_CODES[code], None
    return ErrorCode.REQUEST_INVALID, code
