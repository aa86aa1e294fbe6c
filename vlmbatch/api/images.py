"""Images as Python callers have them: Pillow's, arrays, tensors, bytes and paths."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vlmbatch.config import ImageInputType, ImageLimits
from vlmbatch.config.typed import shown
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.decode import copy_image
from vlmbatch.images.feature_file import GridOf, feature_image
from vlmbatch.types import FeatureImage, ImageRef

if TYPE_CHECKING:
    import torch

    ImageSource = Image.Image | str | os.PathLike[str] | bytes | NDArray[np.uint8] | torch.Tensor
    FeatureSource = NDArray[np.floating[Any]] | torch.Tensor | str | os.PathLike[str]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")


@dataclass(frozen=True, slots=True, eq=False)
class ImagePixelData:
    """An image for ``multi_modal_data``.

    ``image``: a Pillow image, the path of a file, a file's bytes, or pixels from 0 to 255, a numpy
    array or torch tensor of uint8, (H, W, 3) or (3, H, W), or with a 1 before. Files are decoded in
    processes of their own. All others are copied when their request is read.
    """

    image: ImageSource


@dataclass(frozen=True, slots=True, eq=False)
class ImageFeatureData:
    """An image as the vision tower's output, for a model of image_input_type "image_features".

    ``features``: a torch tensor or numpy array of float16, bfloat16, float32 or float64, copied
    when its request is read; or the path of a ``.npy`` or ``.safetensors`` file. Its shape is that
    which ``vlmbatch features`` stores: (image_feature_size, C), or with a 1 before, where all
    images take as many tokens. For LLaVA-1.5-7B it is (576, 1024), before the projector.
    """

    features: FeatureSource


@dataclass(frozen=True, slots=True, eq=False)
class HeldImage(ImageRef):
    """An image that is already decoded, in mode RGB."""

    image: Image.Image = field(kw_only=True, repr=False)

    @property
    def num_bytes(self) -> int:
        return 3 * self.image.width * self.image.height


@dataclass(frozen=True, slots=True, eq=False)
class HeldFeatures(ImageRef):
    """Features that are already in memory."""

    features: FeatureImage = field(kw_only=True, repr=False)

    @property
    def num_bytes(self) -> int:
        return self.features.num_bytes


@dataclass(frozen=True, slots=True)
class ImageReader:
    """Turns what callers give into references; ``feature_grid``: see ``Processor``."""

    input_type: ImageInputType
    feature_grid: GridOf
    limits: ImageLimits

    def read(self, given: object) -> ImageRef:
        """The image that ``given`` stands for; of files nothing is read yet.

        Raises:
            RowError: it is no image, or not of the kind that the model was opened for.
        """
        if isinstance(given, ImageFeatureData):
            if self.input_type != "image_features":
                raise self._other_kind("ImageFeatureData", "image_features")
            return self._features(given.features)
        if isinstance(given, ImagePixelData):
            if self.input_type != "pixel_values":
                raise self._other_kind("ImagePixelData", "pixel_values")
            return self._pixels(given.image)
        raise RowError(
            ErrorCode.IMAGE_INVALID,
            f"an image is an ImagePixelData or an ImageFeatureData, got {shown(given)}",
        )

    def read_plain(self, given: Any) -> Iterator[ImageRef]:
        """The images of ``{"image": given}``: one or several, without the class around them.

        An array or tensor with one axis more than an image has holds several, as in vLLM.

        Raises:
            RowError: as ``read`` does.
        """
        kind = ImagePixelData if self.input_type == "pixel_values" else ImageFeatureData
        num_axes = 4 if self.input_type == "pixel_values" else 3
        is_array = isinstance(given, np.ndarray) or _is_tensor(given)
        if given is None:
            return
        if isinstance(given, list | tuple) or (is_array and given.ndim == num_axes):
            several: Iterable[Any] = given
        else:
            several = (given,)
        for each in several:
            is_wrapped = isinstance(each, ImagePixelData | ImageFeatureData)
            yield self.read(each if is_wrapped else kind(each))

    def _pixels(self, source: object) -> ImageRef:
        if isinstance(source, str | os.PathLike):
            return path_ref(source)
        if isinstance(source, bytes):
            return ImageRef(data=source)
        if isinstance(source, Image.Image):
            return HeldImage(image=copy_image(source, self.limits, _label(source)))
        if _is_tensor(source):
            source = _to_numpy(source)
        if isinstance(source, np.ndarray):
            return HeldImage(image=copy_image(_array_image(source), self.limits, "array"))
        raise RowError(
            ErrorCode.IMAGE_INVALID,
            "an image is a PIL image, a path, bytes, or an array or tensor of uint8, "
            f"got {shown(source)}",
        )

    def _features(self, source: object) -> ImageRef:
        if isinstance(source, str | os.PathLike):
            return path_ref(source)
        if _is_tensor(source):
            values = _to_numpy(source)
        elif isinstance(source, np.ndarray) and source.dtype != np.uint16:  # ours for bfloat16
            values = source
        else:
            kind = f"an array of {source.dtype}" if isinstance(source, np.ndarray) else None
            raise RowError(
                ErrorCode.FEATURES_INVALID,
                "features are an array or tensor of float16, bfloat16, float32 or float64, or a "
                f"path, got {kind or shown(source)}",
            )
        return HeldFeatures(features=feature_image(values.copy(), self.feature_grid, "features"))

    def _other_kind(self, given: str, needed: str) -> RowError:
        return RowError(
            ErrorCode.IMAGE_INVALID,
            f"{given} needs image_input_type={needed!r}, but this model was opened with "
            f"{self.input_type!r}",
        )


def path_ref(path: str | os.PathLike[str]) -> ImageRef:
    """A file by its path, from the present working directory.

    Raises:
        RowError: ``image_invalid``, no path that a file can have, or a URL.
    """
    text = os.fsdecode(path)
    if not text or "\0" in text:
        cause = "contains a NUL character" if text else "is empty"
        raise RowError(ErrorCode.IMAGE_INVALID, f"the image path {text!r:.200} {cause}")
    if _URL.match(text):
        raise RowError(
            ErrorCode.IMAGE_INVALID,
            f"{text:.200} is a URL: images are not fetched; give a path, or the bytes",
        )
    return ImageRef(str(Path(text).absolute()))  # the processes that decode have their own


def _label(image: Image.Image) -> str:
    """What messages call it: its file, where Pillow opened one."""
    return str(getattr(image, "filename", "")) or "PIL image"


def _is_tensor(source: object) -> bool:
    import torch

    return isinstance(source, torch.Tensor)


def _to_numpy(tensor: Any) -> NDArray[Any]:
    """A tensor's values in host memory, shared with it where they can be; bfloat16 as uint16."""
    import torch

    tensor = tensor.detach().cpu()
    values: NDArray[Any] = (
        tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor
    ).numpy()
    return values


def _array_image(values: NDArray[Any]) -> Image.Image:
    if values.dtype != np.uint8:
        raise RowError(
            ErrorCode.IMAGE_INVALID,
            f"an array of {values.dtype}: pixels are uint8, from 0 to 255; what an image processor "
            "has resized and normalized is not taken, give the image itself",
        )
    pixels = values[0] if values.ndim == 4 and len(values) == 1 else values
    if pixels.ndim == 3 and pixels.shape[2] != 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
        raise RowError(
            ErrorCode.IMAGE_INVALID,
            f"an array of shape {values.shape}, expected (height, width, 3) or (3, height, width)",
        )
    return Image.fromarray(np.ascontiguousarray(pixels))
