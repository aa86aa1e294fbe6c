"""The process that decodes on a device as its parent holds it: given a batch at a time."""

from __future__ import annotations

import pickle
import time
from collections.abc import Iterator, Sequence
from typing import Any

from vlmbatch.images.loading.child import ChildProcess, WorkerLostError
from vlmbatch.images.loading.process import Decoded, crashed, decoded_image, timed_out
from vlmbatch.images.loading.protocol import (
    MalformedReplyError,
    receive_reply,
    request_of,
    send,
    well_formed,
)
from vlmbatch.images.loading.settings import DeviceSettings
from vlmbatch.types import ImageRef

MAX_IMAGES = 32
_MAX_SHARED_BYTES = 2**29
_START_SECONDS = 180.0  # torch and a GPU's libraries on a cold network file system


def images_at_once(max_bytes: int) -> int:
    """Images of a batch where the largest takes ``max_bytes`` as pixels."""
    return max(1, min(MAX_IMAGES, _MAX_SHARED_BYTES // max_bytes))


class BatchLostError(Exception):
    """The process crashed or hung with several images in hand: one of them is to blame."""


class DeviceProcess(ChildProcess):
    """Belongs to one thread; ``kill`` alone may be called from another.

    Raises:
        WorkerLostError: the process cannot be started.
    """

    def __init__(self, settings: DeviceSettings) -> None:
        self._timeout_s = settings.timeout_s
        self._slot_bytes = settings.processor.largest_grid.num_bytes
        super().__init__(
            "vlmbatch.images.loading.device_worker",
            pickle.dumps(settings),
            self._slot_bytes * images_at_once(self._slot_bytes),
            start_s=_START_SECONDS,
        )

    def decode(self, refs: Sequence[ImageRef]) -> Iterator[tuple[int, Decoded | None]]:
        """Have images decoded: their places among ``refs``, as they are ready.

        None: the image is left to workers. After a crash or a timeout ``alive`` is False.

        Raises:
            RowError: the only image, or the last one left, crashed or hung the process.
            BatchLostError: one of several that were left did.
            WorkerLostError: the process had ended before it took them.
        """
        left = set(range(len(refs)))
        started = since = time.monotonic()
        self._connection.settimeout(self._timeout_s)
        try:
            data = b"".join(ref.data or b"" for ref in refs)
            send(self._connection, {"images": [request_of(ref) for ref in refs]}, data)
            while left:
                message = receive_reply(self._connection)
                since = time.monotonic()
                for slot, decoded in self._told(message, left):
                    left.remove(slot)
                    yield slot, decoded
                if left and since - started > len(refs) * self._timeout_s:  # it only talks
                    since = started
                    raise TimeoutError
        except TimeoutError as error:
            self.close()
            guilty = timed_out(refs[min(left)], time.monotonic() - since, self._timeout_s)
            raise guilty if len(left) == 1 else BatchLostError(guilty.message) from error
        except ConnectionError as error:  # it left the request unread
            raise WorkerLostError(self._autopsy(error)) from error
        except EOFError as error:
            how = self._autopsy(error)
            raise (
                crashed(refs[min(left)], how) if len(left) == 1 else BatchLostError(how)
            ) from error

    def _told(self, message: dict[str, Any], left: set[int]) -> list[tuple[int, Decoded | None]]:
        """What a message tells of images, each of which must be one of those ``left``."""
        with well_formed():
            told: dict[int, dict[str, Any] | None] = dict(message["images"])
            if len(told) < len(message["images"]) or not told.keys() <= left:
                raise MalformedReplyError
        return [(slot, self._decoded(slot, reply)) for slot, reply in told.items()]

    def _decoded(self, slot: int, reply: dict[str, Any] | None) -> Decoded | None:
        if reply is None:
            return None
        decoded = decoded_image(reply, self._pixels, slot * self._slot_bytes)
        if decoded.image.num_bytes > self._slot_bytes:
            raise MalformedReplyError
        return decoded
