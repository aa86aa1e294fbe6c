"""Where one tensor lies in a ``.npy`` or ``.safetensors`` file, by its header alone.

Neither is read with its library: numpy's evaluates the header as Python before it knows its length,
and safetensors' opens files by name, where ours are already open and checked. Formats:
https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html and
https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

MAX_HEADER_BYTES = 2**18
NPY_MAGIC = b"\x93NUMPY"
HEAD_BYTES = 16  # enough to tell the two formats

_MAX_DIMENSIONS = 8
_NPY_ITEM = r"\s*'(\w+)'\s*:\s*('[^']*'|True|False|\([\d,\s]*\))\s*"
_NPY_HEADER = re.compile(rf"{{{_NPY_ITEM},{_NPY_ITEM},{_NPY_ITEM}(?:,\s*)?}}\s*", re.ASCII)
_NPY_FIELDS = {"descr", "fortran_order", "shape"}
_SAFETENSORS_TYPES = {
    "F64": ("float64", "<f8"),
    "F32": ("float32", "<f4"),
    "F16": ("float16", "<f2"),
    "BF16": ("bfloat16", "<u2"),
}
_NPY_TYPES = {"f8": "float64", "f4": "float32", "f2": "float16"}


class TensorFileError(ValueError):
    """The header is malformed, or speaks of something else than one tensor."""


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One tensor in a file: ``num_bytes`` from ``offset`` on.

    ``dtype``: "float16", "float32", "float64" or "bfloat16", or how the file calls another type;
    ``storage`` is then None, and otherwise numpy's type of the bytes.
    """

    dtype: str
    storage: str | None
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int

    @property
    def num_bytes(self) -> int:
        assert self.storage is not None
        return math.prod(self.shape) * int(self.storage[2:])


def is_safetensors(head: bytes) -> bool:
    """Whether the file's first ``HEAD_BYTES`` are those of safetensors, which have no magic."""
    return head[8:9] == b"{"


def read_npy_header(file: BinaryIO) -> TensorHeader:
    """Read the header of a ``.npy`` file that stands at its start.

    Raises:
        TensorFileError: malformed, longer than ``MAX_HEADER_BYTES``, or a structured array's.
    """
    prefix = file.read(8)
    version = tuple(prefix[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise TensorFileError(f"version {'.'.join(map(str, version))} of .npy, expected 1.0 to 3.0")
    lengths = struct.Struct("<H" if version == (1, 0) else "<I")
    text = _read_header(file, lengths, "latin-1")
    found = _NPY_HEADER.fullmatch(text)
    fields = {} if found is None else dict(zip(*[iter(found.groups())] * 2, strict=True))
    if fields.keys() != _NPY_FIELDS or fields["fortran_order"] not in ("True", "False"):
        raise TensorFileError(f"a .npy header that cannot be understood: {text.strip()!r:.120}")
    descr = fields["descr"].strip("'")
    sizes = re.fullmatch(r"\(\s*((?:\d{1,18}\s*,\s*)*(?:\d{1,18}\s*)?)\)", fields["shape"])
    if sizes is None:
        raise TensorFileError(f"a .npy header with shape {fields['shape']!r:.80}")
    shape = tuple(map(int, re.findall(r"\d+", sizes[1])))
    if len(shape) > _MAX_DIMENSIONS:
        raise TensorFileError(f"a tensor of {len(shape)} dimensions")
    dtype = _NPY_TYPES.get(descr[1:]) if descr[:1] in ("<", ">") else None
    return TensorHeader(
        dtype or f"{descr:.40}",
        dtype and descr,
        shape,
        fields["fortran_order"] == "True",
        offset=file.tell(),
    )


def read_safetensors_header(file: BinaryIO, name: str) -> TensorHeader:
    """Read where the tensor ``name`` lies, or else the only one; the file stands at its start.

    Raises:
        TensorFileError: malformed, longer than ``MAX_HEADER_BYTES``, or of other tensors.
    """
    text = _read_header(file, struct.Struct("<Q"), "utf-8")
    try:
        tensors = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TensorFileError("a .safetensors header that is not JSON") from error
    tensors.pop("__metadata__", None)  # an object: the file's ninth byte is its brace
    if name not in tensors and len(tensors) != 1:
        names = ", ".join(f"{given!r:.40}" for given in list(tensors)[:3]) or "none"
        raise TensorFileError(
            f"{len(tensors)} tensors ({names}{', ...' if len(tensors) > 3 else ''}), "
            f"expected one, or one named {name!r}"
        )
    tensor = tensors[name] if name in tensors else next(iter(tensors.values()))
    dtype, shape, (begin, end) = _safetensors_fields(tensor)
    known, storage = _SAFETENSORS_TYPES.get(dtype, (dtype, None))
    header = TensorHeader(known, storage, shape, fortran_order=False, offset=file.tell() + begin)
    if storage is not None and header.num_bytes != end - begin:
        raise TensorFileError(
            f"a tensor of {header.num_bytes} bytes by its shape, {end - begin} by its offsets"
        )
    return header


def _read_header(file: BinaryIO, lengths: struct.Struct, encoding: str) -> str:
    prefix = file.read(lengths.size)
    if len(prefix) < lengths.size:
        raise TensorFileError("a file that ends within its header")
    (length,) = lengths.unpack(prefix)
    if length > MAX_HEADER_BYTES:
        raise TensorFileError(
            f"a header of {length} bytes, over the limit of {MAX_HEADER_BYTES} bytes"
        )
    raw = file.read(length)
    if len(raw) < length:
        raise TensorFileError(f"a file that ends within its header, {len(raw)} of {length} bytes")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise TensorFileError("a header that is not UTF-8") from error


def _safetensors_fields(tensor: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    try:
        dtype, shape, (begin, end) = tensor["dtype"], tensor["shape"], tensor["data_offsets"]
        numbers = [*shape, begin, end]
    except (KeyError, TypeError, ValueError) as error:
        raise TensorFileError("a .safetensors header without dtype, shape and offsets") from error
    if (
        not isinstance(dtype, str)
        or len(shape) > _MAX_DIMENSIONS
        or any(type(number) is not int or not 0 <= number < 2**63 for number in numbers)
    ):
        raise TensorFileError("a .safetensors header with a malformed dtype, shape or offset")
    return dtype[:40], tuple(shape), (begin, end)
