"""Whatever ends a request early, as a response in OpenAI's shape."""

from __future__ import annotations

from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request

from vlmbatch.errors import RowError, VlmbatchError
from vlmbatch.openai.errors import SERVER_ERROR, ApiError, api_error
from vlmbatch.serve.engine_thread import EngineStoppedError
from vlmbatch.serve.json_response import JsonResponse

_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}}


def as_api_error(error: VlmbatchError) -> ApiError:
    """What a client is told of ``error``."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RowError):
        return api_error(error.code, error.message)
    if isinstance(error, EngineStoppedError):
        return ApiError(503, str(error), SERVER_ERROR, code="engine_stopped")
    return ApiError(500, str(error), SERVER_ERROR, code="internal_error")


def error_response(error: ApiError) -> JsonResponse:
    """The response that says it."""
    return JsonResponse(error.to_json(), error.status, _HEADERS.get(error.status))


async def on_error(request: Request, error: Exception) -> JsonResponse:
    """Starlette's handler of our own errors."""
    assert isinstance(error, VlmbatchError)
    return error_response(as_api_error(error))


async def on_http_error(request: Request, error: Exception) -> JsonResponse:
    """Starlette's handler of what its routes refuse: an unknown path, a method not allowed."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == HTTPStatus.NOT_FOUND:
        refusal = ApiError(404, f"there is nothing at {where:.200}", code="unknown_url")
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{where:.200} is not allowed; the path takes {allowed}"
        refusal = ApiError(405, message, code="method_not_allowed")
    else:
        refusal = ApiError(error.status_code, error.detail)
    response = error_response(refusal)
    response.headers.update(error.headers or {})
    return response


async def on_bug(request: Request, error: Exception) -> JsonResponse:
    """Starlette's handler of all else; the traceback goes to the log, and not to the client."""
    message = "internal error: the server's log has its cause"
    return error_response(ApiError(500, message, SERVER_ERROR, code="internal_error"))
