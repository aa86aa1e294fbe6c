"""Features from .npy and .safetensors: what is read, and what is refused before it is read."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from feature_shapes import takes
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save

from vlmbatch.config import ImageLimits
from vlmbatch.errors import ErrorCode, RowError
from vlmbatch.images.feature_file import feature_image, probe_features, read_features
from vlmbatch.images.loading.loader import FeatureLoader
from vlmbatch.types import FeatureImage, ImageRef

SHAPE = (3, 4)
LIMITS = ImageLimits()
VALUES = np.linspace(-2, 2, 12, dtype=np.float32).reshape(SHAPE)


def read(data: bytes, shape: tuple[int, int] = SHAPE) -> FeatureImage:
    grid = probe_features(ImageRef(data=data), LIMITS, takes(shape))
    image = read_features(ImageRef(data=data), LIMITS, takes(shape))
    assert (image.grid.height, image.grid.width) == (grid.height, grid.width)
    return image


def npy(values: NDArray[np.generic], version: tuple[int, int] | None = None) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, values, version)
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["<f2", ">f2", "<f4", ">f4"])
@pytest.mark.parametrize("in_order", [np.ascontiguousarray, np.asfortranarray])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_every_way_in_which_numpy_stores_an_array(
    dtype: str, in_order: Callable[..., Any], version: tuple[int, int]
) -> None:
    values = in_order(VALUES, dtype)
    found = read(npy(values, version)).features
    np.testing.assert_array_equal(found, values)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    assert found.flags.c_contiguous


def test_a_leading_one_is_dropped_and_float64_becomes_float32() -> None:
    found = read(npy(VALUES.astype(np.float64)[None])).features
    assert found.shape == SHAPE and found.dtype == np.float32
    np.testing.assert_array_equal(found, VALUES)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_of_safetensors(dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(VALUES).to(dtype)
    found = torch.from_numpy(read(save({"anything": tensor})).features)
    found = found.view(torch.bfloat16) if found.dtype == torch.uint16 else found
    assert torch.equal(found.double(), tensor.double())


def test_among_several_tensors_the_one_named_features_is_read() -> None:
    others = {"a": torch.ones(2), "z": torch.zeros(9, 9)}
    data = save({**others, "features": torch.from_numpy(VALUES)}, {"model": "some"})
    np.testing.assert_array_equal(read(data).features, VALUES)


def test_the_content_hash_tells_numbers_shape_and_type_apart() -> None:
    ones = np.ones((2, 6), np.float16)
    images = [
        feature_image(ones, takes((2, 6)), ""),
        feature_image(ones.reshape(6, 2), takes((6, 2)), ""),
        feature_image(ones.view(np.uint16), takes((2, 6)), ""),
        feature_image(ones.astype(np.float32), takes((2, 6)), ""),
        feature_image(ones * 2, takes((2, 6)), ""),
    ]
    assert len({image.content_hash for image in images}) == len(images)
    assert feature_image(ones[None], takes((2, 6)), "").content_hash == images[0].content_hash


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_number_that_is_not_finite(value: float, dtype: torch.dtype) -> None:
    tensor = torch.from_numpy(VALUES).clone().to(dtype)
    tensor[1, 2] = value
    with pytest.raises(
        RowError, match=r"1 of 12 numbers are NaN or infinite, .* \[1, 2\]"
    ) as caught:
        read(save({"features": tensor}))
    assert caught.value.code is ErrorCode.FEATURES_INVALID


def test_a_double_too_large_for_a_float_is_not_finite() -> None:
    with pytest.raises(RowError, match="12 of 12"):
        read(npy(np.full(SHAPE, 1e300)))


def test_what_a_header_promises_is_not_allocated() -> None:
    descr = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4)}"
    lying = struct.pack("<Q", 120) + (
        b'{"features":{"dtype":"F32","shape":[3,4],"data_offsets":[%d,%d]}}' % (2**50, 2**50 + 48)
    ).ljust(120)
    for data in (b"\x93NUMPY\x01\x00" + struct.pack("<H", len(descr)) + descr.encode(), lying):
        with pytest.raises(RowError, match="ends after 0 of 48 bytes"):
            read(data)


def test_fifo_folder_and_files_outside_the_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.npy").write_bytes(npy(VALUES))
    (root / "link.npy").symlink_to(tmp_path / "outside.npy")
    os.mkfifo(root / "pipe.npy")
    limits = ImageLimits(root=root)
    codes = {}
    for name in ("link.npy", "pipe.npy", ".", "none.npy"):
        with pytest.raises(RowError) as caught:
            read_features(ImageRef(str(root / name)), limits, takes(SHAPE))
        codes[name] = caught.value.code
    assert codes == {
        "link.npy": ErrorCode.IMAGE_FORBIDDEN,
        "pipe.npy": ErrorCode.IMAGE_UNREADABLE,
        ".": ErrorCode.IMAGE_UNREADABLE,
        "none.npy": ErrorCode.IMAGE_MISSING,
    }


def test_rows_of_one_file_share_its_features_until_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    np.save(path, VALUES)
    loader = FeatureLoader(LIMITS, SimpleNamespace(feature_grid=takes(SHAPE)))
    first = loader.submit(ImageRef(str(path))).result()
    assert loader.submit(ImageRef(str(path))).result() is first
    np.save(tmp_path / "b.npy", VALUES + 1)
    (tmp_path / "b.npy").replace(path)
    again = loader.submit(ImageRef(str(path))).result()
    assert again.content_hash != first.content_hash
    missing = loader.submit(ImageRef(str(tmp_path / "none.npy")))
    assert isinstance(missing.exception(), RowError)
    fetched = [ImageRef("s3://a/b.npy", npy(VALUES)) for _ in range(2)]
    embedded = loader.submit(fetched[0]).result()
    assert loader.submit(fetched[1]).result() is embedded


GOOD_FILES = [npy(VALUES), npy(VALUES, (2, 0)), save({"features": torch.from_numpy(VALUES)})]


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(GOOD_FILES)))
    for _ in range(draw(st.integers(1, 4))):
        position = draw(st.integers(0, min(len(data) - 1, 140)))
        data[position : position + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(data)


@given(damaged_files() | st.binary(max_size=80) | st.binary(max_size=60).map(b"\x93NUMPY".__add__))
@example(GOOD_FILES[0].replace(b"'<f4'", b"'\0<f4'"))
def test_damaged_files_are_errors_of_their_row(data: bytes) -> None:
    try:
        image = read(data)
    except RowError as error:
        assert error.code in (ErrorCode.FEATURES_INVALID, ErrorCode.IMAGE_UNREADABLE)
        assert str(error).isprintable() or "'" in str(error)
    else:
        assert image.features.shape == SHAPE
