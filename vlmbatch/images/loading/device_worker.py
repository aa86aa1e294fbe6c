"""The process that decodes on a device, a batch at a time; its arguments are a worker's.

It takes plain JPEGs alone. All else, and whatever is wrong with an image, it leaves to the workers,
whose errors are then the only ones. What it decodes with is in its settings, which import it. It
tells of each image when that is ready, and before each step of its work that it goes on.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.images.loading.device_pipeline import DevicePipeline, SlotReply
from vlmbatch.images.loading.protocol import receive, ref_of, send
from vlmbatch.images.loading.serving import (
    ORPHAN_SECONDS,
    Shared,
    forget_what_was_said,
    give_way,
    serve_parent,
)
from vlmbatch.images.loading.settings import DeviceSettings
from vlmbatch.types import ImageRef


def main() -> None:
    """Serve until the other end of the socket closes."""
    serve_parent(_serve)


def _serve(connection: socket.socket, shared: Shared) -> None:
    settings: DeviceSettings = pickle.loads(receive(connection)[1])
    give_way()

    sending = threading.Lock()

    def tell(replies: Sequence[SlotReply]) -> None:
        with sending:
            # Each time: a batch may take as long as its images do one by one.
            signal.setitimer(signal.ITIMER_REAL, settings.timeout_s + ORPHAN_SECONDS)
            send(connection, {"images": replies})

    pipeline = DevicePipeline(settings, settings.open_decoder(), shared, tell)
    send(connection, {"ready": os.getpid()})
    while True:
        request, data = receive(connection)
        forget_what_was_said()
        pipeline.prepare([*_refs(request["images"], data)])
        signal.setitimer(signal.ITIMER_REAL, 0)


def _refs(requests: list[dict[str, Any]], data: bytes) -> Iterator[ImageRef]:
    start = 0
    for request in requests:
        end = start + (request["num_bytes"] or 0)
        yield ref_of(request, data[start:end])
        start = end


if __name__ == "__main__":
    main()
