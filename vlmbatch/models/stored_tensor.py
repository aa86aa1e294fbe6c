"""Where a checkpoint's tensors lie in its safetensors files.

https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

import torch

from vlmbatch.errors import CheckpointError

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, or some of its rows, which lie from byte ``offset`` of ``file`` on."""

    file: BinaryIO
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """Size of the first dimension; a single number is one row."""
        return self.shape[0] if self.shape else 1

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.num_rows * self.row_bytes

    def rows(self, first: int, count: int) -> StoredTensor:
        """``count`` rows from the ``first`` on."""
        assert 0 <= first <= first + count <= self.num_rows
        shape = (count, *self.shape[1:]) if self.shape else ()
        return replace(self, offset=self.offset + first * self.row_bytes, shape=shape)

    def split(self, rows: int) -> Iterator[StoredTensor]:
        """Groups of so many rows; the last may have fewer."""
        for first in range(0, max(1, self.num_rows), rows):
            yield self.rows(first, min(rows, self.num_rows - first))

    def read_into(self, memory: memoryview) -> None:
        """Read the tensor's bytes; other threads may run meanwhile.

        Raises:
            CheckpointError: the file cannot be read, or has become shorter.
        """
        done = 0
        while done < self.num_bytes:
            try:
                number = os.preadv(self.file.fileno(), [memory[done:]], self.offset + done)
            except OSError as error:
                raise CheckpointError(
                    f"{self.file.name} cannot be read: {error.strerror}"
                ) from error
            if number == 0:
                size = os.fstat(self.file.fileno()).st_size
                raise CheckpointError(
                    f"{self.file.name} has {size} bytes, and a tensor of it ends at byte "
                    f"{self.offset + self.num_bytes}: it was changed while it was read"
                )
            done += number


def stored_tensors(file: BinaryIO) -> dict[str, StoredTensor]:
    """The floating-point tensors of a safetensors file, which the library has checked, by name."""
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    header = json.loads(file.read(length))
    return {
        name: StoredTensor(
            file,
            8 + length + entry["data_offsets"][0],
            _DTYPES[entry["dtype"]],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__" and entry["dtype"] in _DTYPES
    }
