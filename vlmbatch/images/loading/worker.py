"""The worker process: ``python -m vlmbatch.images.loading.worker SOCKET PIXELS`` (descriptors).

Reads a request, decodes and resizes the image, replies; one after another until its parent is
gone. What goes wrong in a decoder goes wrong here. Imports neither torch nor the command line.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import resource
import signal
import socket
import sys
from typing import Any

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.file import image_label
from vlmbatch.images.formats import decode_on_one_thread
from vlmbatch.images.loading.prepare import prepare_image
from vlmbatch.images.loading.protocol import file_identity, receive, ref_of, reply_of, send
from vlmbatch.images.loading.serving import (
    ORPHAN_SECONDS,
    Shared,
    forget_what_was_said,
    give_way,
    serve_parent,
)
from vlmbatch.images.loading.settings import WorkerSettings
from vlmbatch.types import ImageRef

# Address space of Python, its libraries and the largest image that a processor makes on its way (a
# padded square); and for each pixel of the file: Pillow was seen to take 4.3 (JPEG) to 24 bytes
# (WebP with transparency).
_BASE_BYTES = 2 * 2**30
_BYTES_PER_PIXEL = 32


def main() -> None:
    """Serve until the other end of the socket closes."""
    serve_parent(_serve)


def _serve(connection: socket.socket, shared: Shared) -> None:
    settings: WorkerSettings = pickle.loads(receive(connection)[1])
    limits = settings.limits
    memory = _BASE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes
    memory = min(memory, sys.maxsize)  # more is no limit that the system knows
    _restrain(memory)
    decode_on_one_thread()
    send(connection, {"ready": os.getpid()})
    while True:
        request, data = receive(connection)
        ref = ref_of(request, data)
        forget_what_was_said()
        signal.setitimer(signal.ITIMER_REAL, settings.timeout_s + ORPHAN_SECONDS)
        try:
            # Before the file is opened: if it is replaced in between, it is read anew next time.
            identity = None if ref.data is not None else file_identity(ref.path or "")
            image = prepare_image(ref, limits, settings.processor, settings.decoder)
            shared[: image.pixels.size] = image.pixels.reshape(-1)
            reply = reply_of(image, identity)
        except (RowError, MemoryError) as error:
            reply = _error_reply(error, ref, memory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        send(connection, reply)


def _error_reply(error: RowError | MemoryError, ref: ImageRef, memory: int) -> dict[str, Any]:
    if isinstance(error, RowError) and not isinstance(error.__cause__, MemoryError):
        return {"code": error.code, "message": error.message}
    message = (
        f"{image_label(ref)}: decoding takes more memory than the {memory // 2**20} MiB that "
        "it may for an image of the allowed size"
    )
    return {"code": ErrorCode.IMAGE_TOO_LARGE, "message": message}


def _restrain(memory: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force, or none can be
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    give_way()


if __name__ == "__main__":
    main()
