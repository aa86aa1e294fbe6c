"""What a pool of engines and an engine process say to each other. No torch, no pixels.

A request is named by a serial number of the pool's, which is used once: what comes late of a
request that was given up is of nobody else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmbatch.images.shared_memory import Place
from vlmbatch.replicas.replica import Event, ReplicaStatus
from vlmbatch.types import ImageGrid, Request


@dataclass(frozen=True, slots=True)
class SharedImage:
    """An image whose pixels, or features, are in shared memory; see ``PixelImage``."""

    place: Place
    content_hash: bytes
    grid: ImageGrid
    is_features: bool


@dataclass(frozen=True, slots=True)
class SharedInputs:
    """``ProcessedInputs`` whose arrays are in shared memory; what is no array is there itself."""

    arrays: Mapping[str, Place]
    others: Mapping[str, Any]
    num_images: int
    num_image_tokens: int


@dataclass(frozen=True, slots=True)
class Submit:
    """Answer ``request``, whose index is its serial number, and which has no images or inputs.

    These are ``images`` and ``inputs``.
    """

    request: Request
    images: tuple[SharedImage, ...]
    inputs: SharedInputs | None
    stream: bool


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give up a request."""

    serial: int


@dataclass(frozen=True, slots=True)
class TakeBack:
    """Give back requests that nothing has been computed of, at most so many: the last ones."""

    most: int


@dataclass(frozen=True, slots=True)
class ExpectNoMore:
    """All requests are here."""


@dataclass(frozen=True, slots=True)
class Reset:
    """Give up all requests and cached prefixes."""


@dataclass(frozen=True, slots=True)
class Step:
    """What rank 0 tells those that divide its model, as it runs a step: they run the same one.

    ``report``: say first that all messages before this one have been obeyed.
    """

    report: bool


ToEngine = Submit | Cancel | TakeBack | ExpectNoMore | Reset | Step


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What an engine takes. ``max_waiting``: requests that may usefully queue in it."""

    max_waiting: int
    max_model_len: int
    kv_cache_tokens: int
    on_cpu: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""

    limits: EngineLimits


@dataclass(frozen=True, slots=True)
class Begun:
    """The next step computes something of these for the first time: it may be what ends it."""

    serials: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What has come of the requests since the last report.

    ``received``: messages that the engine has obeyed so far. ``returned``: requests given back for
    ``TakeBack``; None where it was not asked to.
    """

    received: int
    events: list[Event]
    status: ReplicaStatus
    wants_requests: bool
    returned: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """What the engine's process has logged."""

    level: int
    message: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine could not be loaded, or raised something; its process ends.

    ``details``: the traceback.
    """

    error: BaseException
    details: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """The process has ended, or one that divides its model; ``cause`` says of what.

    Nothing more comes from it.
    """

    cause: str


FromEngine = Ready | Begun | Report | LogLine | Failed | Lost
