"""Server-sent events, as OpenAI's clients read them."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.types import Send

from vlmbatch.serve.json_response import to_json

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would hold events back
]


class EventStream:
    """A response of events, each a JSON value. It begins with the first one."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self._turn = asyncio.Lock()  # several answers of one response come side by side

    async def put(self, value: Any) -> None:
        """Send one event; waits while the client reads too slowly."""
        await self._write(b"data: " + to_json(value) + b"\n\n")

    async def end(self) -> None:
        """Send what OpenAI's clients take for the end."""
        await self._write(b"data: [DONE]\n\n", last=True)

    async def _write(self, data: bytes, last: bool = False) -> None:
        async with self._turn:
            if not self.started:
                self.started = True
                start = {"type": "http.response.start", "status": 200, "headers": _HEADERS}
                await self._send(start)
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})
