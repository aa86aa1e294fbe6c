"""The worker process: ``python -m vlmbatch.images.loading.worker SOCKET PIXELS`` (descriptors).

Reads a request, decodes and resizes the image, replies; one after another until its parent is
gone. What goes wrong in a decoder goes wrong here. Imports neither torch nor the command line.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import resource
import signal
import socket
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np

from vlmbatch.config import ImageDecoder, ImageLimits, ImageResolution
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.file import image_label
from vlmbatch.images.loading.prepare import prepare_image
from vlmbatch.images.loading.protocol import file_identity, receive, send
from vlmbatch.models.family import ImageProcessor
from vlmbatch.types import ImageRef

# Address space of Python, its libraries and the largest image that a processor makes on its way (a
# padded square); and for each pixel of the file: Pillow was seen to take 4.3 (JPEG) to 24 bytes
# (WebP with transparency).
_BASE_BYTES = 2 * 2**30
_BYTES_PER_PIXEL = 32

# A worker that hangs is stopped by its parent. One whose parent died hanging ends itself, this
# much later.
_ORPHAN_SECONDS = 2.0


def main() -> None:
    """Serve until the other end of the socket closes."""
    # They reach a whole group of processes at once; ending a run is its parent's business.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    connection = socket.socket(fileno=int(sys.argv[1]))
    pixels = mmap.mmap(int(sys.argv[2]), 0)
    with contextlib.suppress(EOFError, ConnectionError):
        _serve(connection, np.frombuffer(pixels, np.uint8))


def _serve(connection: socket.socket, shared: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    limits: ImageLimits
    processor: ImageProcessor
    decoder: ImageDecoder
    limits, processor, decoder, timeout_s = pickle.loads(receive(connection)[1])
    memory = _BASE_BYTES + _BYTES_PER_PIXEL * limits.max_pixels + 2 * limits.max_bytes
    memory = min(memory, sys.maxsize)  # more is no limit that the system knows
    _restrain(memory)
    send(connection, {"ready": os.getpid()})
    while True:
        request, data = receive(connection)
        embedded, own = request["embedded"], request["resolution"]
        ref = ImageRef(
            request["path"],
            data if embedded else None,
            resolution=own and ImageResolution(*own),
            row_images=request["row_images"],
        )
        os.ftruncate(sys.stderr.fileno(), 0)  # what decoders print must not pile up
        signal.setitimer(signal.ITIMER_REAL, timeout_s + _ORPHAN_SECONDS)
        try:
            # Before the file is opened: if it is replaced in between, it is read anew next time.
            identity = None if embedded else file_identity(request["path"])
            image = prepare_image(ref, limits, processor, decoder)
            shared[: image.pixels.size] = image.pixels.reshape(-1)
            reply = {
                "content_hash": image.content_hash.hex(),
                "shape": image.pixels.shape,
                "grid": astuple(image.grid),
                "identity": identity,
            }
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
    """Bound the process's memory, leave no core file, and let the kernel kill it before others."""
    with contextlib.suppress(ValueError, OSError):  # a lower limit is in force, or none can be
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # not on this system
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    main()
