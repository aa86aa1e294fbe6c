"""What happens to all requests, whatever they are for."""

from __future__ import annotations

import hashlib
import hmac
import re
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vlmbatch.log import logger
from vlmbatch.openai.errors import ApiError
from vlmbatch.openai.responses import new_id
from vlmbatch.serve.errors import error_response
from vlmbatch.serve.metrics import ServerMetrics

_SANE_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_CLIENT_LEFT = 499  # no status of HTTP's, as nobody gets to see it; nginx counts it so too


class Observe:
    """Counts, times and logs each request, and gives each response the header ``x-request-id``.

    A client's own id is echoed if it is short and of plain characters; others get a new one.
    """

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        status, path = _CLIENT_LEFT, scope["path"]
        started = time.monotonic()
        request_id = _request_id(Headers(scope=scope))

        async def watched_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, watched_send)
        finally:
            seconds = time.monotonic() - started
            self._metrics.count_request(path, status, seconds)
            logger.debug(
                "%s %s: %d in %.3f s (%s)", scope["method"], path, status, seconds, request_id
            )


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _SANE_ID.fullmatch(given) else new_id("req_")


class RequireKey:
    """Refuses requests that do not bring the key as ``Authorization: Bearer KEY``."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._digest = _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(_digest(key.strip()), self._digest):
            await self._app(scope, receive, send)
            return
        message = "the API key is wrong" if key else "an API key is needed: Authorization: Bearer"
        await error_response(ApiError(401, message, code="invalid_api_key"))(scope, receive, send)


def _digest(key: str) -> bytes:
    """Of one length for all keys, so that comparing takes one time."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
