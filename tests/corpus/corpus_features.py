"""Files of image features, good and bad, and what must become of the rows that name them."""

from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
from corpus_refusals import PICKLE
from corpus_rows import ANYTHING, CorpusRow, ask, error
from numpy.typing import NDArray

SHAPE = (100, 128)  # of samples/tiny-llava


def feature_files() -> list[tuple[str, bytes]]:
    values = np.cos(np.arange(SHAPE[0] * SHAPE[1])).astype(np.float16).reshape(SHAPE)
    broken = values.copy()
    broken[3, 5] = np.nan
    bits = (values.astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    tensor = {"dtype": "BF16", "shape": [1, *SHAPE], "data_offsets": [0, bits.nbytes]}
    return [
        ("good.npy", npy(values)),
        ("good.safetensors", safetensors({"features": tensor}, bits.tobytes())),
        ("nan.npy", npy(broken)),
        ("truncated.npy", npy(values)[:1000]),
        ("class-token.npy", npy_header("<f2", (101, 128))),
        ("transposed.npy", npy_header("<f2", (128, 100))),
        ("huge.npy", npy_header("<f4", (2**40, 128))),
        ("integers.npy", npy_header("<i8", SHAPE)),
        ("objects.npy", npy_header("|O", SHAPE) + PICKLE),
        ("no-header.npy", b"\x93NUMPY\x01\x00\xff"),
        (
            "integers.safetensors",
            safetensors({"x": {**tensor, "dtype": "I16"}}, bits.tobytes()[:8]),
        ),
        ("two.safetensors", safetensors({"a": tensor, "b": tensor}, b"")),
        ("offsets.safetensors", safetensors({"x": {**tensor, "data_offsets": [0, 4]}}, b"1234")),
        ("long-header.safetensors", struct.pack("<Q", 2**40) + b"{}"),
        ("archive.npz", b"PK\x03\x04" + bytes(40)),
        ("empty.npy", b""),
    ]


def feature_rows() -> list[CorpusRow]:
    """Rows for ``--image-input-type image_features``; paths start from the corpus."""
    expected = f"expected {SHAPE} or (1, 100, 128)"
    bad = {
        "nan.npy": ("1 of 12800 numbers are NaN or infinite, the first at [3, 5]",),
        "truncated.npy": ("ends after 872 of 25600 bytes",),
        "class-token.npy": ("shape (101, 128)", expected, "leave out the class token"),
        "transposed.npy": ("shape (128, 100)", expected),
        "huge.npy": ("shape (1099511627776, 128)", expected),
        "integers.npy": ("numbers of type <i8, expected float16, bfloat16, float32 or float64",),
        "objects.npy": ("numbers of type |O",),
        "no-header.npy": ("ends within its header",),
        "integers.safetensors": ("numbers of type I16",),
        "two.safetensors": ("2 tensors ('a', 'b'), expected one, or one named 'features'",),
        "offsets.safetensors": ("25600 bytes by its shape, 4 by its offsets",),
        "long-header.safetensors": ("a header of 1099511627776 bytes, over the limit of",),
        "archive.npz": ("a zip archive", "features are read from .safetensors and .npy"),
    }
    rows = [
        CorpusRow(name, _content(f"features/{name}"), answer=ANYTHING)
        for name in ("good.npy", "good.safetensors")
    ]
    rows += [
        error(name, _content(f"features/{name}"), "features_invalid", name, *says)
        for name, says in bad.items()
    ]
    rows += [
        error(name, _content(f"images/{name}"), "features_invalid", "pickled", ".safetensors")
        for name in ("features.pt", "features.pkl")
    ]
    return [
        *rows,
        error("picture", _content("images/plain.png"), "features_invalid", "an image (PNG)"),
        error("empty.npy", _content("features/empty.npy"), "image_unreadable", "empty (0 bytes)"),
        error("none.npy", _content("features/none.npy"), "image_missing"),
        error("folder", _content("features"), "image_unreadable", "a folder"),
        error("null", _content(None), "image_token_mismatch"),
    ]


def npy(values: NDArray[np.generic]) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npy_header(descr: str, shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header


def safetensors(tensors: dict[str, Any], data: bytes) -> bytes:
    header = json.dumps(tensors).encode()
    return struct.pack("<Q", len(header)) + header + data


def _content(path: str | None) -> dict[str, Any]:
    return {"prompt": ask("Describe the picture."), "image": path}
