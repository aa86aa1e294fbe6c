"""torchvision's JPEG decoder, without the seconds that torchvision takes to be imported."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

DecodeJpegs = Callable[[Sequence[Tensor], torch.device], list[Tensor]]

_RGB = 3  # of torchvision.io.ImageReadMode


def open_jpeg_decoder() -> DecodeJpegs:
    """What decodes files, (n,) uint8 on the host each, to (3, height, width) uint8 on a device.

    The operators are called that ``torchvision.io.decode_jpeg`` calls: importing that takes 4.5 s,
    for torch's compiler. A torchvision that has no such operators is imported.

    Raises:
        ImportError: torchvision is missing.
    """
    try:
        torch.ops.load_library(str(_library()))  # type: ignore[no-untyped-call]
        on_cuda, on_host = torch.ops.image.decode_jpegs_cuda, torch.ops.image.decode_jpeg
    except (AttributeError, OSError):
        return _imported()

    def decode(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        if device.type == "cuda":
            images: list[Tensor] = on_cuda(list(files), _RGB, device)
            return images
        return [on_host(file, _RGB, False) for file in files]

    return decode


def _library() -> Path:
    """Raises FileNotFoundError where it is not."""
    found = find_spec("torchvision")
    if found is None:
        raise ModuleNotFoundError("No module named 'torchvision'", name="torchvision")
    for folder in found.submodule_search_locations or ():
        for path in Path(folder).glob("image*.so"):  # image.so, image_stable.so
            return path
    raise FileNotFoundError("torchvision has no library for images")


def _imported() -> DecodeJpegs:
    from torchvision.io import ImageReadMode, decode_jpeg

    def decode(files: Sequence[Tensor], device: torch.device) -> list[Tensor]:
        images: list[Tensor] = decode_jpeg(list(files), ImageReadMode.RGB, device=device)
        return images

    return decode
