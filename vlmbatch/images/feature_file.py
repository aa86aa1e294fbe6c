"""Image features from files: the output of a vision tower, checked against what the model takes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.file import image_label, open_image_bytes
from vlmbatch.images.formats import foreign_format, known_format
from vlmbatch.images.tensor_file import (
    HEAD_BYTES,
    NPY_MAGIC,
    TensorFileError,
    TensorHeader,
    is_safetensors,
    read_npy_header,
    read_safetensors_header,
)
from vlmbatch.types import FeatureImage, ImageGrid, ImageRef

GridOf = Callable[[tuple[int, ...]], ImageGrid]  # raises ValueError for a shape that it refuses

TENSOR_NAME = "features"  # in a .safetensors file of several tensors

_PICKLES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}
_KEPT_TYPES = ("float16", "float32", "uint16")
_BF16_EXPONENT = 0x7F80


def probe_features(ref: ImageRef, limits: ImageLimits, grid_of: GridOf) -> ImageGrid:
    """Check the header of a file of features; arguments and errors as for ``read_features``."""
    header, _ = _read(ref, limits, grid_of, values=False)
    return _grid(header.shape, grid_of, image_label(ref))


def read_features(ref: ImageRef, limits: ImageLimits, grid_of: GridOf) -> FeatureImage:
    """Read one image's features, float64 as float32, other types as they are.

    ``grid_of``: ``Processor.feature_grid``. No more is read than the header and a tensor of a shape
    that it takes.

    Raises:
        RowError: ``features_invalid``, or an image code where the file cannot be opened.
    """
    header, data = _read(ref, limits, grid_of, values=True)
    values = np.frombuffer(data, header.storage).reshape(
        header.shape, order="F" if header.fortran_order else "C"
    )
    return feature_image(values, grid_of, image_label(ref))


def feature_image(values: NDArray[np.generic], grid_of: GridOf, label: str) -> FeatureImage:
    """Features of a shape that ``grid_of`` takes, as the engine takes them: (tokens, C).

    ``values``: float16, float32 or float64, or uint16 that holds the bits of bfloat16. The array
    is not copied where that can be avoided: it must not change any more.

    Raises:
        RowError: ``features_invalid``, another shape or type, or numbers that are not finite.
    """
    grid = _grid(values.shape, grid_of, label)
    if values.dtype == np.float64:
        with np.errstate(over="ignore"):
            values = values.astype(np.float32)
    if values.dtype.name not in _KEPT_TYPES:
        raise _wrong_type(values.dtype.name, label)
    native = values.dtype.newbyteorder("=")
    kept = np.require(values.reshape(grid.num_tokens, -1), native, ["C", "W"])
    if kept.dtype == np.uint16:
        finite = (kept & _BF16_EXPONENT) != _BF16_EXPONENT
    else:
        finite = np.isfinite(kept)
    if not finite.all():
        row, column = np.argwhere(~finite)[0].tolist()
        raise _invalid(
            label,
            f"{finite.size - np.count_nonzero(finite)} of {finite.size} numbers are NaN or "
            f"infinite, the first at [{row}, {column}]; expected finite ones",
        )
    kind = f"features {kept.dtype.name} {kept.shape} {grid.height} x {grid.width}"
    digest = hashlib.blake2b(kind.encode(), digest_size=16)
    digest.update(kept.data)
    return FeatureImage(kept, digest.digest(), replace(grid, num_bytes=kept.nbytes))


def _read(
    ref: ImageRef, limits: ImageLimits, grid_of: GridOf, *, values: bool
) -> tuple[TensorHeader, bytes]:
    """The header, checked, and the tensor's bytes where ``values`` are asked for."""
    label = image_label(ref)
    if ref.path is not None and PurePath(ref.path).suffix.lower() in _PICKLES:
        raise _unreadable(label, "pickled, and reading it could run code")
    with open_image_bytes(ref, limits) as file:
        try:
            head = file.read(HEAD_BYTES)
            file.seek(0)
            if head.startswith(NPY_MAGIC):
                header = read_npy_header(file)
            elif is_safetensors(head):
                header = read_safetensors_header(file, TENSOR_NAME)
            else:
                raise _unreadable(label, _kind(head))
            if header.storage is None:
                raise _wrong_type(header.dtype, label)
            _grid(header.shape, grid_of, label)
            file.seek(0, 2)
            available = max(0, file.tell() - header.offset)
            if available < header.num_bytes:
                raise TensorFileError(
                    f"a file that ends after {available} of {header.num_bytes} bytes of numbers"
                )
            file.seek(header.offset)
            data = file.read(header.num_bytes if values else 0)
            if values and len(data) < header.num_bytes:
                raise TensorFileError("a file that became shorter while it was read")
        except TensorFileError as error:
            raise _invalid(label, str(error)) from error
        except OSError as error:
            raise RowError(
                ErrorCode.IMAGE_UNREADABLE, f"{label}: cannot be read: {error.strerror}"
            ) from error
    return header, data


def _grid(shape: tuple[int, ...], grid_of: GridOf, label: str) -> ImageGrid:
    try:
        return grid_of(shape)
    except ValueError as error:
        raise _invalid(label, str(error)) from error


def _wrong_type(found: str, label: str) -> RowError:
    hint = "; bfloat16 needs .safetensors" if found.endswith("V2") else ""
    shown = found if found.isprintable() else ascii(found)
    return _invalid(
        label, f"numbers of type {shown}, expected float16, bfloat16, float32 or float64{hint}"
    )


def _unreadable(label: str, cause: str) -> RowError:
    return _invalid(
        label,
        f"{cause}; features are read from .safetensors and .npy, which numpy.save, or "
        'safetensors.torch.save_file({"features": tensor}, path), writes',
    )


def _kind(head: bytes) -> str:
    if head.startswith(b"PK\x03\x04"):
        return "a zip archive, as torch.save and numpy.savez write it"
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        return "pickled, and reading it could run code"
    if name := known_format(head) or foreign_format(head):
        return f"an image ({name}), not features"
    return f"neither .safetensors nor .npy: it starts with {head[:8]!r}"


def _invalid(label: str, message: str) -> RowError:
    return RowError(ErrorCode.FEATURES_INVALID, f"{label}: {message}")
