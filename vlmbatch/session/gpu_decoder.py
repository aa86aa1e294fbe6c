"""What ``--image-decoder gpu`` needs of the machine, and takes of its GPU."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

from vlmbatch.config import SessionConfig
from vlmbatch.errors import FieldError

if TYPE_CHECKING:
    from collections.abc import Callable

    from vlmbatch.images.loading.settings import DeviceDecoder
    from vlmbatch.models.processor import Processor

# Of the device, for the process that decodes: its CUDA context, a batch, what nvJPEG keeps.
_DEVICE_BYTES = 5 * 2**29


def decodes_on_gpu(config: SessionConfig, processor: Processor) -> bool:
    """Whether there are images that a GPU is to decode."""
    return config.image_loading.decoder == "gpu" and processor.images is not None


def reserved_bytes(config: SessionConfig, processor: Processor) -> int:
    """Memory of the device that its engine leaves to what decodes on it."""
    return _DEVICE_BYTES if decodes_on_gpu(config, processor) else 0


def check_gpu_decoder(config: SessionConfig, processor: Processor) -> None:
    """See that images can be decoded as they are to be.

    Raises:
        ConfigError: on a GPU, but something is missing for that; the message names it.
    """
    if not decodes_on_gpu(config, processor):
        return
    if config.engine.device == "cpu":
        raise FieldError(
            "image_decoder", "gpu needs a GPU, and device is cpu: leave out one of them", "device"
        )
    import torch

    missing = []
    if not torch.cuda.is_available():
        missing.append("a CUDA device (torch sees none; `vlmbatch doctor` says why)")
    if find_spec("torchvision") is None:
        missing.append("torchvision (pip install 'vlmbatch[cuda]')")
    if missing:
        raise FieldError("image_decoder", f"gpu needs {' and '.join(missing)}")


def gpu_decoder(device: str = "cuda") -> Callable[[], DeviceDecoder]:
    """What makes the decoder, in the process that it is sent to."""
    from vlmbatch.nvjpeg.decoder import NvJpegDecoder

    return partial(NvJpegDecoder, device)
