"""One worker process as its parent holds it: given an image at a time."""

from __future__ import annotations

import mmap
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.file import image_label
from vlmbatch.images.loading.child import ChildProcess, WorkerLostError
from vlmbatch.images.loading.protocol import (
    FileIdentity,
    MalformedReplyError,
    check_no_error,
    receive_reply,
    request_of,
    send,
    well_formed,
)
from vlmbatch.images.loading.settings import WorkerSettings
from vlmbatch.types import ImageGrid, ImageRef, PixelImage

_START_SECONDS = 60.0  # Python and Pillow on a cold network file system

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Decoded:
    """An image, and which file it came from (None for embedded bytes)."""

    image: PixelImage
    identity: FileIdentity | None


class FileProcess(ChildProcess):
    """One that is asked about a file at a time."""

    def ask(self, ref: ImageRef, timeout_s: float, read: Callable[[dict[str, Any]], T]) -> T:
        """What ``read`` makes of the reply. After a crash or a timeout ``alive`` is False.

        ``read`` raises MalformedReplyError.

        Raises:
            RowError: the file's own, or for its crashing or hanging the process.
            WorkerLostError: the process had ended before it took the file.
        """
        started = time.monotonic()
        self._connection.settimeout(timeout_s)
        try:
            send(self._connection, request_of(ref), ref.data or b"")
            reply = receive_reply(self._connection)
            check_no_error(reply)
            return read(reply)
        except TimeoutError as error:
            self.close()
            raise timed_out(ref, time.monotonic() - started, timeout_s) from error
        except ConnectionError as error:  # it left the request unread
            raise WorkerLostError(self._autopsy(error)) from error
        except EOFError as error:
            raise crashed(ref, self._autopsy(error)) from error


class WorkerProcess(FileProcess):
    """Belongs to one thread; ``kill`` alone may be called from another.

    Raises:
        WorkerLostError: the process cannot be started.
    """

    def __init__(self, settings: WorkerSettings) -> None:
        self._timeout_s = settings.timeout_s
        super().__init__(
            "vlmbatch.images.loading.worker",
            pickle.dumps(settings),
            settings.processor.largest_grid.num_bytes,
            start_s=_START_SECONDS,
        )

    def decode(self, ref: ImageRef) -> Decoded:
        """Have one image decoded; raises as ``ask`` does."""
        return self.ask(ref, self._timeout_s, lambda reply: decoded_image(reply, self._pixels))


def decoded_image(reply: dict[str, Any], memory: mmap.mmap, offset: int = 0) -> Decoded:
    """The image that a process tells of, with a copy of its pixels, which begin at ``offset``.

    Raises:
        MalformedReplyError: it tells of none.
    """
    with well_formed():
        height, width = (int(side) for side in reply["shape"][:2])
        grid = ImageGrid(*map(int, reply["grid"]))
        identity = reply["identity"] and tuple(map(int, reply["identity"]))
        content_hash = bytes.fromhex(reply["content_hash"])
        if min(height, width) < 1:
            raise MalformedReplyError
        pixels = np.frombuffer(memory, np.uint8, 3 * height * width, offset)
    pixels = pixels.reshape(height, width, 3).copy()
    pixels.flags.writeable = False  # rows share it
    return Decoded(PixelImage(pixels, content_hash, grid), identity)


def crashed(ref: ImageRef, how: str) -> RowError:
    """The error of an image that brought down the process that decoded it."""
    return RowError(ErrorCode.IMAGE_UNREADABLE, f"{image_label(ref)}: the decoder crashed ({how})")


def timed_out(ref: ImageRef, seconds: float, allowed: float) -> RowError:
    """The error of an image that took too long."""
    return RowError(
        ErrorCode.IMAGE_TIMEOUT,
        f"{image_label(ref)}: not decoded after {seconds:.1f} s; "
        f"{allowed:g} s are allowed (--image-timeout)",
    )
