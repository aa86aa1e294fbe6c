"""A vision tower as a replica: requests are batches of images, answers are files. No torch.

A batch is computed as it was put together: its features are the same bytes from any tower.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING

from vlmbatch.config import SamplingParams
from vlmbatch.images.feature_file import TENSOR_NAME
from vlmbatch.models.processor import Processor
from vlmbatch.output.feature_folder import FeatureFiles
from vlmbatch.replicas.replica import Completion, Event, OnBegin, ReplicaStatus
from vlmbatch.types import PixelImage, Request

if TYPE_CHECKING:
    import torch

    from vlmbatch.engine.image_upload import ImageUpload
    from vlmbatch.models.vision_language_model import VisionModel

MAX_WAITING = 2  # batches: the next is there when one is done

_WRITERS = 4  # threads: most of their time they wait for the disk
_MAX_UNWRITTEN = 4  # batches whose features wait for the disk
_WRITE_SECONDS = 0.02  # that a poll waits for the disk, while another batch may come
_SAMPLING = SamplingParams(max_tokens=1)  # nothing is sampled


def batch_request(index: int, images: Mapping[str, PixelImage]) -> Request:
    """A request for the features of ``images``, by the names of their files (hexadecimal).

    The name is what identifies an image here, and its tokens tell how much there is to do.
    """
    named = tuple(
        PixelImage(image.pixels, bytes.fromhex(name), image.grid) for name, image in images.items()
    )
    return Request(index, [0] * sum(image.grid.num_tokens for image in named), _SAMPLING, named)


class TowerReplica:
    """An ``EngineReplica`` for what ``batch_request`` makes, which is done when it is durable.

    ``processor``: tells the shapes of features. ``model``: noted in each file. ``status`` counts
    images where others count requests, and their tokens as those of prompts.

    Raises:
        OutputError: by ``poll``, when the file system refuses.
    """

    def __init__(
        self,
        vision: VisionModel,
        upload: ImageUpload,
        processor: Processor,
        files: FeatureFiles,
        model: str,
        on_begin: OnBegin | None = None,
    ) -> None:
        self._vision = vision
        self._upload = upload
        self._processor = processor
        self._files = files
        self._metadata = {"model": model}
        self._on_begin = on_begin
        self._waiting: deque[Request] = deque()
        self._unwritten: deque[tuple[Request, list[Future[None]]]] = deque()
        self._num_images = self._num_tokens = 0  # that are durable
        self._writers = ThreadPoolExecutor(_WRITERS, thread_name_prefix="feature-writer")

    @property
    def num_unfinished(self) -> int:
        return len(self._waiting) + len(self._unwritten)

    @property
    def wants_requests(self) -> bool:
        return len(self._waiting) < MAX_WAITING

    @property
    def fills_step(self) -> bool:
        return bool(self._waiting)

    @property
    def status(self) -> ReplicaStatus:
        return ReplicaStatus(
            running=len(self._unwritten),
            waiting=len(self._waiting),
            prompt_tokens=self._num_tokens,
            answered=self._num_images,
        )

    def submit(self, request: Request, *, stream: bool = False) -> None:
        self._waiting.append(request)

    def poll(self) -> list[Event]:
        if self._waiting:
            self._compute(self._waiting.popleft())
        elif self._unwritten:
            wait(self._unwritten[0][1], _WRITE_SECONDS)
        return self._written()

    def cancel(self, index: int) -> None:
        self._waiting = deque(each for each in self._waiting if each.index != index)
        self._unwritten = deque(each for each in self._unwritten if each[0].index != index)

    def drop_waiting(self) -> None:
        self._waiting.clear()

    def take_back(self, most: int) -> list[int]:
        count = min(most, len(self._waiting))
        return [self._waiting.pop().index for _ in range(count)]

    def expect_no_more(self) -> None:
        """Nothing is done otherwise for it."""

    def reset(self) -> None:
        self._waiting.clear()
        self._unwritten.clear()

    def close(self) -> None:
        """Give up what is not being written yet."""
        self._writers.shutdown(cancel_futures=True)

    def _compute(self, request: Request) -> None:
        from safetensors.torch import save

        if self._on_begin is not None:
            self._on_begin([request.index])
        images = [image for image in request.images if isinstance(image, PixelImage)]
        files = []
        for image, features in zip(images, self._extract(images), strict=True):
            shape = self._processor.feature_shape(image.grid)
            data = save({TENSOR_NAME: features.reshape(shape).contiguous()}, self._metadata)
            name = image.content_hash.hex()
            files.append(self._writers.submit(self._files.write, name, data))
        self._unwritten.append((request, files))
        if len(self._unwritten) > _MAX_UNWRITTEN:
            wait(self._unwritten[0][1])

    def _extract(self, images: list[PixelImage]) -> list[torch.Tensor]:
        """Features (tokens, C) of each image, on the host."""
        import torch

        pixels = self._upload.pixels([image.pixels for image in images])
        features = self._vision.extract_features(pixels, [image.grid for image in images])
        return list(torch.split(torch.cat(features).cpu(), [len(each) for each in features]))

    def _written(self) -> list[Event]:
        """What has come of batches whose files are all durable; raises what writing raised."""
        events: list[Event] = []
        while self._unwritten and all(each.done() for each in self._unwritten[0][1]):
            request, files = self._unwritten.popleft()
            for each in files:
                each.result()
            self._num_images += len(files)
            self._num_tokens += len(request.token_ids)
            events.append(Completion(request.index, (), "stop", 0, time.monotonic()))
        return events
