"""What a request holds on to, put into shared memory and found there again. No torch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vlmbatch.images.shared_memory import MappedMemory, Place, SharedMemory
from vlmbatch.replicas.messages import SharedImage, SharedInputs
from vlmbatch.types import FeatureImage, ImageInput, PixelImage, ProcessedInputs, Request


class Shared:
    """A request's images and inputs in ``memory``; ``arrays`` keep them there."""

    def __init__(self, request: Request, memory: SharedMemory) -> None:
        self._memory = memory
        self.arrays: list[NDArray[Any]] = []
        self.images = tuple(map(self._image, request.images))
        self.inputs = None if request.inputs is None else self._inputs(request.inputs)

    def _image(self, image: ImageInput) -> SharedImage:
        is_features = isinstance(image, FeatureImage)
        array = image.features if isinstance(image, FeatureImage) else image.pixels
        return SharedImage(self._place(array), image.content_hash, image.grid, is_features)

    def _inputs(self, inputs: ProcessedInputs) -> SharedInputs:
        arrays, others = {}, {}
        for name, value in inputs.tensors.items():
            try:
                array = np.asarray(value)
            except TypeError:  # a type that numpy lacks
                others[name] = value
                continue
            if array.dtype == np.object_ or not hasattr(value, "nbytes"):
                others[name] = value
            else:
                arrays[name] = self._place(array)
        return SharedInputs(arrays, others, inputs.num_images, inputs.num_image_tokens)

    def _place(self, array: NDArray[Any]) -> Place:
        """Where the array lies; one that is elsewhere is copied."""
        place = self._memory.place(array)
        if place is None:
            array = self._memory.copy(array)
            place = self._memory.place(array)
            assert place is not None
        self.arrays.append(array)
        return place


def image_of(shared: SharedImage, memory: MappedMemory) -> ImageInput:
    """The image, without a copy."""
    kind = FeatureImage if shared.is_features else PixelImage
    return kind(memory.array(shared.place), shared.content_hash, shared.grid)


def inputs_of(shared: SharedInputs, memory: MappedMemory) -> ProcessedInputs:
    """The inputs with numpy arrays in the place of tensors, without a copy."""
    arrays = {name: memory.array(place) for name, place in shared.arrays.items()}
    tensors = {**arrays, **shared.others}
    return ProcessedInputs(tensors, shared.num_images, shared.num_image_tokens)
