"""A request's body, within limits of size and time."""

from __future__ import annotations

import asyncio

from starlette.requests import Request

from vlmbatch.openai.errors import ApiError


async def read_body(request: Request, max_bytes: int, timeout_s: float) -> bytes:
    """The body of a request that is to be JSON.

    Raises:
        ApiError: 415 another kind of body, 413 too large, 408 not here in time.
        ClientDisconnect: the client left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    # Also what keeps other web sites' pages from using a server on their visitor's machine.
    if kind != "application/json":
        shown = f'"{kind:.80}"' if kind else "none"
        raise ApiError(
            415, f"the Content-Type must be application/json, got {shown}", code="invalid_type"
        )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(f"{int(declared):,} bytes", max_bytes)
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise _too_large("more", max_bytes)
    except TimeoutError as error:
        raise ApiError(
            408, f"the body did not arrive within {timeout_s:g} s", code="timeout"
        ) from error
    return bytes(body)


def _too_large(found: str, max_bytes: int) -> ApiError:
    message = f"the body has {found}, and the server takes {max_bytes:,} bytes at most"
    return ApiError(413, message, code="request_too_large")
