"""One worker process as its parent holds it: started, given an image at a time, killed."""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import time
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.file import image_label
from vlmbatch.images.loading.protocol import FileIdentity, receive, send
from vlmbatch.processes import (
    anonymous_file,
    beyond_standard,
    cause_of_death,
    error_file,
    search_path,
)
from vlmbatch.types import ImageGrid, ImageRef, PixelImage

_START_SECONDS = 60.0  # Python and Pillow on a cold network file system
_EXIT_SECONDS = 5.0  # a killed process that takes longer is stuck in the kernel

_SINGLE_THREADED = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
# For the kernel to clear 50 MB anew takes a third of the time of decoding a large photo into them.
_KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": str(64 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(128 * 2**20),
}


class WorkerLostError(Exception):
    """The worker ended, or never came up, with no image in hand: none is to blame."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image, and which file it came from (None for embedded bytes)."""

    image: PixelImage
    identity: FileIdentity | None


class WorkerProcess:
    """Belongs to one thread; ``kill`` alone may be called from another.

    ``settings``: pickled (ImageLimits, ImageProcessor, ImageDecoder, seconds an image may take).
    ``max_bytes``: pixels of the largest image, in bytes.

    Raises:
        WorkerLostError: the process cannot be started.
    """

    def __init__(self, settings: bytes, max_bytes: int, timeout_s: float) -> None:
        self._settings = settings
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self.alive = True
        with contextlib.ExitStack() as descriptors:
            try:
                self._launch(descriptors)
            except OSError as error:
                raise WorkerLostError(f"{sys.executable}: {error.strerror}") from error
            self._descriptors = descriptors.pop_all()

    def _launch(self, mine: contextlib.ExitStack) -> None:
        """Start the process; ``mine`` closes what this side keeps open."""
        self._connection, theirs = socket.socketpair()
        mine.enter_context(self._connection)
        with theirs, contextlib.ExitStack() as passed:
            self._stderr = error_file("vlmbatch-worker-stderr")
            mine.callback(os.close, self._stderr)
            pixels = anonymous_file("vlmbatch-pixels")
            passed.callback(os.close, pixels)
            os.ftruncate(pixels, self._max_bytes)
            self._pixels = mine.enter_context(mmap.mmap(pixels, 0))
            command = [sys.executable, "-P", "-W", "ignore", "-m", "vlmbatch.images.loading.worker"]
            descriptors = [beyond_standard(each, passed) for each in (theirs.fileno(), pixels)]
            self._process = subprocess.Popen(
                [*command, *map(str, descriptors)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                pass_fds=descriptors,
                env=_environment(),
                process_group=0,  # out of reach of the terminal's Ctrl-C and Ctrl-Z
            )

    def wait_ready(self) -> None:
        """Wait until the process has imported what it needs.

        Raises:
            WorkerLostError: it ended, or took too long.
        """
        self._connection.settimeout(_START_SECONDS)
        try:
            send(self._connection, {}, self._settings)
            receive(self._connection)
        except TimeoutError as error:
            self.close()
            raise WorkerLostError(f"not ready within {_START_SECONDS:g} s") from error
        except (EOFError, ConnectionError) as error:
            raise WorkerLostError(self._autopsy()) from error
        self._connection.settimeout(self._timeout_s)

    def decode(self, ref: ImageRef) -> Decoded:
        """Have one image decoded. After a crash or a timeout ``alive`` is False.

        Raises:
            RowError: the image's own, or for its crashing or hanging the process.
            WorkerLostError: the process had ended before it took the image.
        """
        started = time.monotonic()
        try:
            request = {
                "path": ref.path,
                "embedded": ref.data is not None,
                "resolution": ref.resolution and astuple(ref.resolution),
                "row_images": ref.row_images,
            }
            send(self._connection, request, ref.data or b"")
            reply, _ = receive(self._connection)
        except TimeoutError as error:
            self.close()
            raise RowError(
                ErrorCode.IMAGE_TIMEOUT,
                f"{image_label(ref)}: not decoded after {time.monotonic() - started:.1f} s; "
                f"{self._timeout_s:g} s are allowed (--image-timeout)",
            ) from error
        except ConnectionError as error:  # it left the request unread
            raise WorkerLostError(self._autopsy()) from error
        except EOFError as error:
            raise RowError(
                ErrorCode.IMAGE_UNREADABLE,
                f"{image_label(ref)}: the decoder crashed ({self._autopsy()})",
            ) from error
        if "code" in reply:
            raise RowError(ErrorCode(reply["code"]), reply["message"])
        identity = reply["identity"] and tuple(reply["identity"])
        return Decoded(self._image(reply), identity)

    def _image(self, reply: dict[str, Any]) -> PixelImage:
        shape = height, width, _ = tuple(reply["shape"])
        pixels = np.frombuffer(self._pixels, np.uint8, 3 * height * width).reshape(shape).copy()
        pixels.flags.writeable = False  # rows share it
        grid = ImageGrid(*reply["grid"])
        return PixelImage(pixels, bytes.fromhex(reply["content_hash"]), grid)

    def kill(self) -> None:
        """End the process; ``decode`` or ``wait_ready``, if under way, raises."""
        self._process.kill()

    def close(self) -> None:
        """Kill the process, and free what was held for it."""
        self.alive = False
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        self._descriptors.close()

    def _autopsy(self) -> str:
        """What the process died of; closes."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_EXIT_SECONDS)
        cause = cause_of_death(self._process.poll(), self._stderr)
        self.close()
        return cause


def _environment() -> dict[str, str]:
    """This process's, with the modules that it can import; made for decoding."""
    variables = {**_SINGLE_THREADED, **_KEEP_FREED_MEMORY, "PYTHONPATH": search_path()}
    return {**os.environ, **variables}
